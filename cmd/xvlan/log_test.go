package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/lab"
)

// A logLine is one line of JSON on standard error.
type logLine struct {
	Time, Level, Msg, Err, Reason string
	Exit                          int
}

// Each exit code, and the form in which the reason is said.
func TestExitCodes(t *testing.T) {
	w := newWorld(t)
	w.must(t, "link add link eth0 c1 type macvlan mode bridge")
	for _, tt := range []struct {
		line   string
		code   int
		reason string
		says   string
	}{
		{"link show c1", 0, "", ""},
		{"version", 0, "", ""},
		{"help link", 0, "", ""},
		{"link show nope", 1, "not found", "sub-interface nope"},
		{"link add link eth0 c1 type macvlan mode bridge", 1, "already taken", "name c1"},
		{"link add link eth0 c2 addr 127.0.0.1/8 type macvlan mode bridge", 1, "not valid", "addr 127.0.0.1/8"},
		{"link add link eth0 c2 mtu 60 type macvlan mode bridge", 1, "not valid", "mtu 60"},
		{"link set c1 delivery xdp", 1, "not supported here", "delivery xdp"},
		{"-n nope link", 1, "", "netns nope"},
		{"link add link", 2, "usage", "link: its value is missing"},
		{"lnik", 2, "usage", "lnik"},
		{"link show --nope", 2, "usage", "--nope"},
		{"version 2", 2, "usage", "2"},
	} {
		for _, form := range []string{"", "--log-format text ", "--log-format json ", "--log-format=json "} {
			r := w.xvlan(t, strings.Fields(form+tt.line)...)
			if tt.code == 0 {
				if r.code != 0 || r.err != "" {
					t.Errorf("%s%s: %+v", form, tt.line, r)
				}
				continue
			}
			if !strings.Contains(form, "json") {
				r.refused(t, tt.code)
				r.says(t, tt.says)
				continue
			}
			var l logLine
			if err := json.Unmarshal([]byte(r.err), &l); err != nil {
				t.Errorf("%s%s: says %q: %v", form, tt.line, r.err, err)
				continue
			}
			if r.code != tt.code || l.Exit != tt.code || l.Level != "ERROR" || l.Msg != "failed" || l.Time == "" ||
				l.Reason != tt.reason || !strings.Contains(l.Err, tt.says) {
				t.Errorf("%s%s: exit status %d, says %s", form, tt.line, r.code, r.err)
			}
		}
	}
	w.must(t, "parent detach eth0")
}

// The daemon logs from the level on that is asked for, in the form that is.
func TestLogs(t *testing.T) {
	w := newWorld(t)
	for _, tt := range []struct{ flags, out, err string }{
		{"", "", ""},
		{"--log-level warn", "", ""},
		{"--log-level info", "", `level=INFO msg=serving|level=INFO msg=ended`},
		{"-v", "", `level=INFO msg=serving|level=INFO msg=ended`},
		{"-v --log-level error", "", ""},
		{"--log-format json", `"msg":"metrics","url":"http://127.0.0.1:`, ""},
		{"--log-format json --log-level info", `"msg":"metrics"`, `"level":"INFO","msg":"serving"|"level":"INFO","msg":"ended"`},
	} {
		cmd := command(t, append(strings.Fields(tt.flags), "-n", w.host.Name(), "serve", "--listen", "127.0.0.1:0")...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer cmd.Process.Kill() // it ends before, if all is well
		patiently(t, "it says where", func() bool { return strings.Contains(lab.OutputOf(cmd), "/metrics") })
		if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		r := wait(t, cmd)
		if r.code != exitOK || !strings.Contains(r.out, tt.out) || (tt.err == "") != (r.err == "") {
			t.Errorf("%s: %+v", tt.flags, r)
		}
		r.says(t, tt.err)
		for line := range strings.Lines(r.out + r.err) {
			if strings.Contains(tt.flags, "json") && !json.Valid([]byte(line)) {
				t.Errorf("%s: no JSON: %s", tt.flags, line)
			}
		}
	}
	// A second one is an error in the same form.
	cmd, _ := w.startServing(t)
	r := w.xvlan(t, "--log-format", "json", "serve", "--listen", "")
	var l logLine
	unmarshal(t, r.err, &l)
	if r.code != exitFail || !strings.Contains(l.Err, "another xvlan serves") {
		t.Errorf("a second one: %+v", r)
	}
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	wait(t, cmd)
}

// On a terminal logs have the form of errors.
func TestTerminalLog(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(newTerminalHandler(&out, slog.LevelInfo))
	log.Debug("not")
	log.Info("stepped down", "parent", "eth0", "reason", "no XDP")
	log.With("parent", "eth0").WithGroup("of").Warn("close maps", "err", errors.New("bad"), "time", 1)
	log.Error("cannot follow")
	want := "xvlan: stepped down: parent=eth0 reason=\"no XDP\"\n" +
		"xvlan: warning: close maps: parent=eth0 of.err=bad of.time=1\n" +
		"xvlan: error: cannot follow\n"
	if out.String() != want {
		t.Errorf("logged\n%swant\n%s", &out, want)
	}
	w := newWorld(t)
	p := w.atTerminal(t, 24, 80, nil, "--log-level", "info", "serve", "--listen", "")
	patiently(t, "it logs for people", func() bool { return strings.HasPrefix(p.out.String(), "xvlan: serving: version=") })
	if err := p.cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Wait(); err != nil {
		t.Error(err)
	}
}
