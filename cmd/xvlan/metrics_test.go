package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/lab"
)

// get fetches from the daemon, which listens where the tests run.
func get(t *testing.T, address string) (code int, body string) {
	t.Helper()
	r, err := http.Get(address)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	raw, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(raw)
}

// startServing starts the daemon for the namespace host and returns where it
// answers.
func (w *world) startServing(t *testing.T) (cmd *exec.Cmd, base string) {
	t.Helper()
	cmd = command(t, "-n", w.host.Name(), "serve", "--listen", "127.0.0.1:0")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() }) // it has ended before, if all is well
	said := regexp.MustCompile(`metrics on (http://\S+)/metrics\n`)
	lab.Eventually(t, "it says where", func() bool {
		m := said.FindStringSubmatch(lab.OutputOf(cmd))
		if m != nil {
			base = m[1]
		}
		return m != nil
	})
	return cmd, base
}

// scrapedValue finds the value of a series in what was scraped.
func scrapedValue(t *testing.T, scraped, series string) float64 {
	t.Helper()
	for line := range strings.Lines(scraped) {
		if value, ok := strings.CutPrefix(line, series+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	t.Errorf("no %s in\n%s", series, scraped)
	return -1
}

// What is scraped says what link show says, in a form that promtool finds
// nothing wrong with, and a Prometheus takes it.
func TestMetrics(t *testing.T) {
	lab.NeedTool(t, "promtool")
	w := goldenWorld(t)
	cmd, base := w.startServing(t)
	lab.Eventually(t, "it is ready", func() bool { code, _ := get(t, base+"/readyz"); return code == http.StatusOK })
	if code, body := get(t, base+"/healthz"); code != http.StatusOK || body != "ok\n" {
		t.Errorf("health: %d %s", code, body)
	}
	code, scraped := get(t, base+"/metrics")
	if code != http.StatusOK {
		t.Fatalf("%d %s", code, scraped)
	}
	check := exec.Command("promtool", "check", "metrics")
	check.Stdin = strings.NewReader(scraped)
	if out, err := check.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
	w.host.Run(t, "promtool", "check", "rules", "../../metrics/alerts.yml")
	m1, i1 := w.links(t)[0], w.links(t)[1]
	of := func(name, netns string) string {
		return fmt.Sprintf(`{link="%s",netns="%s",parent="eth0"}`, name, netns)
	}
	with := func(name, netns, label string) string {
		return strings.Replace(of(name, netns), `parent="eth0"`, `parent="eth0",`+label, 1)
	}
	inside := w.inside.Name()
	for series, want := range map[string]float64{
		"xvlan_link_receive_packets_total" + of("m1", inside):                                 float64(m1.Verdicts["rx"].Packets),
		"xvlan_link_receive_bytes_total" + of("m1", inside):                                   float64(m1.Verdicts["rx"].Bytes),
		"xvlan_link_transmit_packets_total" + of("m1", inside):                                float64(m1.Verdicts["tx"].Packets),
		"xvlan_link_transmit_bytes_total" + of("m1", inside):                                  float64(m1.Verdicts["tx"].Bytes),
		"xvlan_link_dropped_packets_total" + with("m1", inside, `reason="drop_mtu"`):          float64(m1.Verdicts["drop_mtu"].Packets),
		"xvlan_link_up" + of("m1", inside):                                                    1,
		"xvlan_link_up" + of("i1", ""):                                                        0,
		"xvlan_link_receive_packets_total" + of("i1", ""):                                     float64(i1.Verdicts["rx"].Packets),
		`xvlan_link_addresses{link="m1",netns="` + inside + `",origin="given",parent="eth0"}`: 2,
		`xvlan_link_addresses{link="i1",netns="",origin="learned",parent="eth0"}`:             0,
		`xvlan_link_info{class="bridge",host="off",link="i1",mode="l2",netns="",parent="eth0",qinq="",trunk="",type="ipvlan",via_host="off",vlan=""}`: 1,
		`xvlan_parent_present{parent="eth0"}`:                         1,
		`xvlan_parent_links{parent="eth0"}`:                           2,
		`xvlan_map_entries{map="subs",parent="eth0"}`:                 2,
		`xvlan_map_max_entries{map="subs",parent="eth0"}`:             1024,
		`xvlan_map_entries{map="by_mac",parent="eth0"}`:               1,
		`xvlan_program_runs_total{parent="eth0",program="xvlan_xdp"}`: 0,
		`xvlan_scrape_errors_total`:                                   0,
	} {
		if got := scrapedValue(t, scraped, series); got != want {
			t.Errorf("%s is %v, want %v", series, got, want)
		}
	}
	if !strings.Contains(scraped, `xvlan_parent_info{parent="eth0",reason="veth: native XDP would make its peer give up TSO",rung="tc"} 1`) {
		t.Errorf("no rung in\n%s", scraped)
	}
	if strings.Contains(scraped, "drop_route") {
		t.Errorf("a reason that nothing was dropped for in\n%s", scraped)
	}
	prom := startPrometheus(t, base)
	rx := strconv.FormatUint(m1.Verdicts["rx"].Packets, 10)
	prom.await(t, "xvlan_link_receive_packets_total"+of("m1", inside), func(values []string) bool { return slices.Equal(values, []string{rx}) })
	prom.checkDashboard(t)

	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if r := wait(t, cmd); r.code != exitOK || r.err != "" {
		t.Errorf("exit status %d\n%s", r.code, r.err)
	}
	w.must(t, "parent detach eth0")
}

// A promServer is a Prometheus that scrapes the daemon each second.
type promServer struct {
	address string
	out     *lab.Output
}

// startPrometheus runs it until the test ends.
func startPrometheus(t *testing.T, base string) *promServer {
	t.Helper()
	lab.NeedTool(t, "prometheus")
	target, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0") // finds a port that is free
	if err != nil {
		t.Fatal(err)
	}
	p := &promServer{address: ln.Addr().String(), out: &lab.Output{}}
	ln.Close()
	dir := t.TempDir()
	config := filepath.Join(dir, "prometheus.yml")
	text := fmt.Sprintf("scrape_configs:\n- job_name: xvlan\n  scrape_interval: 1s\n  static_configs:\n  - targets: ['%s']\n", target.Host)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("prometheus", "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+p.address)
	cmd.Stdout, cmd.Stderr = p.out, p.out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return p
}

// query returns the values that an expression has now, or what is wrong with it.
func (p *promServer) query(expr string) (values []string, err error) {
	r, err := http.Get("http://" + p.address + "/api/v1/query?query=" + url.QueryEscape(expr))
	if err != nil {
		return nil, err // not up yet
	}
	defer r.Body.Close()
	var answer struct {
		Error string
		Data  struct {
			Result []struct{ Value [2]any }
		}
	}
	if err := json.NewDecoder(r.Body).Decode(&answer); err != nil {
		return nil, err
	}
	if answer.Error != "" {
		return nil, errors.New(answer.Error)
	}
	for _, r := range answer.Data.Result {
		values = append(values, fmt.Sprint(r.Value[1]))
	}
	return values, nil
}

// await asks until the answer will do.
func (p *promServer) await(t *testing.T, expr string, ok func(values []string) bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		values, err := p.query(expr)
		if err == nil && ok(values) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("prometheus says of %s: %v %v\n%s", expr, values, err, p.out)
		}
	}
}

// checkDashboard asks what each panel and variable of the dashboard asks, and
// expects data.
func (p *promServer) checkDashboard(t *testing.T) {
	t.Helper()
	raw, err := os.ReadFile("../../metrics/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
		Templating struct {
			List []struct{ Name, Query string }
		}
	}
	unmarshal(t, string(raw), &dashboard)
	fill := strings.NewReplacer("$__rate_interval", "1m", "$instance", ".*", "$parent", ".*", "$link", ".*")
	some := func(values []string) bool { return len(values) > 0 }
	for _, panel := range dashboard.Panels {
		if len(panel.Targets) == 0 {
			t.Errorf("panel %q shows nothing", panel.Title)
		}
		for _, target := range panel.Targets {
			p.await(t, fill.Replace(target.Expr), some)
		}
	}
	labels := regexp.MustCompile(`^label_values\((.*), (\w+)\)$`)
	for _, v := range dashboard.Templating.List {
		if m := labels.FindStringSubmatch(v.Query); m != nil {
			p.await(t, "count by ("+m[2]+") ("+fill.Replace(m[1])+")", some)
		} else if v.Name != "datasource" {
			t.Errorf("variable %s asks %q", v.Name, v.Query)
		}
	}
}

func TestListenRefused(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	w := newWorld(t)
	for address, want := range map[string]string{
		ln.Addr().String(): "in use|another xvlan serve|--listen",
		"nowhere":          "listen nowhere|127.0.0.1:10973",
	} {
		cmd := command(t, "-n", w.host.Name(), "serve", "--listen", address)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill() }) // it has ended before, if all is well
		r := wait(t, cmd)
		code := exitFail
		if address == "nowhere" {
			code = exitUsage
		}
		r.refused(t, code)
		for _, part := range strings.Split(want, "|") {
			if !strings.Contains(r.err, part) {
				t.Errorf("%s: %q does not say %q", address, r.err, part)
			}
		}
	}
}
