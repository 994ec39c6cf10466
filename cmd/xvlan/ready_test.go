package main

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	ebpflink "github.com/cilium/ebpf/link"

	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/lab"
)

// The daemon is not ready, and says why, as long as there is something that it
// cannot put right; healthy it is all the time.
func TestReady(t *testing.T) {
	w := newWorld(t)
	w.must(t, "link add --datapath xdp link eth0 c1 netns "+w.inside.Name()+" up type macvlan mode bridge")
	cmd, base := w.startServing(t)
	await := func(code int) (body string) {
		t.Helper()
		lab.Eventually(t, fmt.Sprintf("/readyz answers %d", code), func() bool {
			var got int
			got, body = get(t, base+"/readyz")
			return got == code
		})
		if code, body := get(t, base+"/healthz"); code != http.StatusOK {
			t.Errorf("health: %d %s", code, body)
		}
		return body
	}
	await(http.StatusOK)
	pin := filepath.Join(pinDir, fmt.Sprintf("%d-%d", w.cookie, parentIndex), "xdp")
	ours, err := ebpflink.LoadPinnedLink(pin, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "MIT",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2 /* XDP_PASS */), asm.Return()}})
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	if err := cmd.Process.Signal(unix.SIGSTOP); err != nil { // or it would be quicker
		t.Fatal(err)
	}
	var theirs ebpflink.Link
	w.do(t, func() { // somebody else puts his program in the place of ours
		if err = ours.Detach(); err == nil {
			theirs, err = ebpflink.AttachXDP(ebpflink.XDPOptions{Program: prog, Interface: parentIndex, Flags: ebpflink.XDPDriverMode})
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	w.host.Run(t, "ip", "link", "set", "eth0", "mtu", "1400") // which is heard of
	if body := await(http.StatusServiceUnavailable); !strings.Contains(body, "eth0") || !strings.Contains(body, "another XDP program") {
		t.Errorf("not ready: %s", body)
	}
	if err := theirs.Close(); err != nil {
		t.Fatal(err)
	}
	await(http.StatusOK) // without anything that is heard of
	w.must(t, "parent detach eth0")
}
