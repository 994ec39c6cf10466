package main

import (
	"encoding/json"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/xvlan/xvlan/lab"
)

// Modes and flags in ip's words, made and changed, and shown as ip shows them.
// Each line stands on those before it.
var modeWords = map[string][]struct{ line, data string }{
	"macvlan": {
		{"link add link eth0 c1 type macvlan", `{"mode":"vepa"}`},
		{"link set c1 type macvlan mode private", `{"mode":"private"}`},
		{"link set dev c1 type macvlan mode bridge", `{"mode":"bridge"}`},
		{"link set c1 type macvlan mode source", `{"mode":"source"}`},
		{"link set c1 type macvlan macaddr add 02:00:00:00:00:01", `{"macaddr_count":1,"macaddr_data":["02:00:00:00:00:01"],"mode":"source"}`},
		{"link set c1 type macvlan macaddr del 02:00:00:00:00:01", `{"mode":"source"}`},
		{"link set c1 type macvlan macaddr set 02:00:00:00:00:02", `{"macaddr_count":1,"macaddr_data":["02:00:00:00:00:02"],"mode":"source"}`},
		{"link set c1 type macvlan macaddr flush", `{"mode":"source"}`},
		{"link set c1 type macvlan mode vepa", `{"mode":"vepa"}`},
		{"link set c1 type macvlan bcqueuelen 5 bclim 2", `{"mode":"vepa"}`},
		{"link set c1 netns IN type macvlan mode bridge bclim -1", `{"mode":"bridge"}`},
	},
	"passthru": {
		{"link add link eth0 c1 type macvlan mode passthru", `{"mode":"passthru"}`},
	},
	"source": {
		{"link add link eth0 c1 type macvlan mode source macaddr add 02:00:00:00:00:03", `{"macaddr_count":1,"macaddr_data":["02:00:00:00:00:03"],"mode":"source"}`},
	},
	"ipvlan": {
		{"link add link eth0 c1 type ipvlan mode l2 private", `{"mode":"l2","private":true}`},
		{"link set c1 type ipvlan vepa", `{"mode":"l2","vepa":true}`},
		{"link set c1 type ipvlan bridge", `{"bridge":true,"mode":"l2"}`},
		{"link set c1 type ipvlan mode l2 private", `{"mode":"l2","private":true}`},
		{"link set c1 type ipvlan mode l3", `{"mode":"l3","private":true}`},
		{"link set c1 type ipvlan mode l3s bridge", `{"bridge":true,"mode":"l3s"}`},
		{"link set c1 type ipvlan mode l2", `{"bridge":true,"mode":"l2"}`},
	},
	"ipvlan l3": {
		{"link add link eth0 c1 type ipvlan", `{"bridge":true,"mode":"l3"}`},
		{"link set c1 type ipvlan vepa", `{"mode":"l3","vepa":true}`},
	},
	"ipvlan l3s": {
		{"link add link eth0 c1 addr 192.0.2.1/24 type ipvlan mode l3s private", `{"mode":"l3s","private":true}`},
	},
}

func TestModeWords(t *testing.T) {
	for kind, lines := range modeWords {
		for _, datapath := range []string{"tc", "kernel"} {
			t.Run(kind+" "+datapath, func(t *testing.T) {
				if strings.HasPrefix(kind, "ipvlan") && datapath == "kernel" && !lab.HasKind(t, "ipvlan") {
					t.Skip("this kernel is built without ipvlan")
				}
				w := newWorld(t)
				before := w.snapshot(t)
				fill := strings.NewReplacer("IN", w.inside.Name(), "link add", "link add --datapath "+datapath)
				for _, tt := range lines {
					if datapath == "kernel" && strings.Contains(tt.line, "bclim") && !lab.KernelFrom(t, 6, 4) {
						r := w.xvlan(t, strings.Fields(fill.Replace(tt.line))...)
						if r.refused(t, exitFail); !strings.Contains(r.err, "bclim: not supported here") {
							t.Errorf("%s: %s", tt.line, r.err)
						}
						tt.line, _, _ = strings.Cut(tt.line, " bclim")
					}
					w.must(t, fill.Replace(tt.line))
					if got := infoData(t, w.must(t, "-j link show c1")); string(got) != tt.data {
						t.Errorf("%s: shown as %s, want %s", tt.line, got, tt.data)
					}
					if datapath == "kernel" && !strings.Contains(tt.line, "netns") {
						sameAsIP(t, tt.data, w.host.Run(t, "ip", "-j", "-d", "link", "show", "c1"))
					}
				}
				w.must(t, "link del c1")
				w.same(t, before)
			})
		}
	}
}

// infoData picks the info_data of the one device that is shown.
func infoData(t *testing.T, shown string) json.RawMessage {
	t.Helper()
	var links []struct {
		Info struct {
			Data any `json:"info_data"`
		} `json:"linkinfo"`
	}
	unmarshal(t, shown, &links)
	data, err := json.Marshal(links[0].Info.Data) // in the order of keys
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// sameAsIP checks that ip says the same, in what it may say more of.
func sameAsIP(t *testing.T, ours, shown string) {
	t.Helper()
	var want, got map[string]any
	unmarshal(t, ours, &want)
	unmarshal(t, string(infoData(t, shown)), &got)
	for key, value := range want {
		if !reflect.DeepEqual(got[key], value) {
			t.Errorf("%s is %v, with ip %v", key, value, got[key])
		}
	}
}

// The demonstration shows that all reach all, and removes itself, also when it
// is stopped.
func TestDemo(t *testing.T) {
	for name, stop := range map[string]bool{"whole": false, "stopped": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			cmd := command(t, "demo")
			start(t, w.do, cmd)
			made := func() []string {
				found, err := filepath.Glob(filepath.Join(filepath.Dir(w.host.Path()), "xvdemo"+strconv.Itoa(cmd.Process.Pid)+"-*"))
				if err != nil {
					t.Fatal(err)
				}
				return found
			}
			if stop {
				lab.Eventually(t, "its namespaces are there", func() bool { return len(made()) == 6 })
				if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
					t.Fatal(err)
				}
			}
			r := wait(t, cmd)
			if stop {
				r.says(t, "xvlan: interrupted")
			} else if r.code != exitOK || !strings.HasSuffix(r.out, "Everything the demonstration made is removed again.\n") {
				t.Errorf("exit status %d\n%s%s", r.code, r.out, r.err)
			}
			if left := made(); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

func TestVersion(t *testing.T) {
	w := newWorld(t)
	if out := w.must(t, "version"); !strings.HasPrefix(out, "xvlan ") || !strings.Contains(out, "schema") {
		t.Errorf("version prints %s", out)
	}
	if r := w.process(t, command(t, "version")); r.code != exitOK || r.out != w.must(t, "version") {
		t.Errorf("as a process: %+v", r)
	}
}
