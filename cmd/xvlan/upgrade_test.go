package main

import "testing"

// Programs that are this xvlan's already are left alone, and it is said.
func TestUpgradeSame(t *testing.T) {
	w := newWorld(t)
	if out := w.must(t, "parent upgrade"); out != "" {
		t.Errorf("with nothing attached it says\n%s", out)
	}
	w.must(t, "link add link eth0 c1 type macvlan mode bridge")
	for _, line := range []string{"parent upgrade", "parent upgrade eth0"} {
		if out, want := w.must(t, line), "eth0: has these programs already\n"; out != want {
			t.Errorf("%s says %q, want %q", line, out, want)
		}
	}
	var got []upgradeJSON
	unmarshal(t, w.must(t, "-j parent upgrade"), &got)
	if len(got) != 1 || got[0] != (upgradeJSON{"eth0", false}) {
		t.Errorf("in JSON it says %+v", got)
	}
	w.must(t, "link del c1")
	r := w.xvlan(t, "parent", "upgrade", "eth0")
	r.refused(t, exitFail)
	r.says(t, "eth0|not found")
}
