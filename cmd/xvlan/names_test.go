package main

import (
	"net/http"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/lab"
)

// What a container calls its device is nothing that a terminal obeys, and takes
// no metrics from anybody.
func TestNames(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"c1", "c2"} {
		w.must(t, "link add link eth0 "+name+" netns "+w.inside.Name()+" type macvlan mode bridge")
	}
	odd := "c\x1b[2J\xff\u009b"
	w.inside.Run(t, "ip", "link", "set", "c1", "name", odd)
	w.inside.Run(t, "ip", "link", "set", "c2", "name", `c\xff`) // which quoting must not confuse
	for _, line := range [][]string{
		{"link", "show"}, {"-d", "link", "show"}, {"link", "show", odd}, {"parent", "show"},
		{"link", "set", odd, "type", "macvlan", "mode", "l4"},
		{"link", "show", "no" + odd},
		{"trace", "eth0", "arp", "10.77.0.254", subAddr},
	} {
		r := w.xvlan(t, line...)
		for _, out := range []string{r.out, r.err} {
			bad := strings.IndexFunc(out, func(c rune) bool { return c != '\n' && (c == utf8.RuneError || !unicode.IsPrint(c)) })
			if bad >= 0 {
				t.Errorf("%q prints %q", line, out)
			}
		}
	}
	if out := w.must(t, "link show"); !strings.Contains(out, "c?[2J??@eth0") {
		t.Errorf("it is not shown:\n%s", out)
	}
	cmd, base := w.startServing(t)
	lab.Eventually(t, "it is ready", func() bool { code, _ := get(t, base+"/readyz"); return code == http.StatusOK })
	code, scraped := get(t, base+"/metrics")
	for _, link := range []string{`\"c\\x1b[2J\\xff\\u009b\"`, `\"c\\\\xff\"`} {
		series := `xvlan_link_up{link="` + link + `",netns="` + w.inside.Name() + `",parent="eth0"} 0`
		if code != http.StatusOK || !strings.Contains(scraped, series) {
			t.Errorf("%d, no %s in\n%s", code, series, scraped)
		}
	}
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if r := wait(t, cmd); r.code != exitOK || r.err != "" {
		t.Errorf("exit status %d\n%s", r.code, r.err)
	}
	w.must(t, "parent detach eth0")
}
