package lab

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestVethPing(t *testing.T) {
	NeedTool(t, "ping")
	NeedTool(t, "ip")
	a, b := NewNetns(t, "a"), NewNetns(t, "b")
	VethWith(t, a, "eth0", b, "eth1", VethOptions{MTU: 9000})
	a.Addr(t, "eth0", "10.9.0.1/24", "fd09::1/64")
	b.Addr(t, "eth1", "10.9.0.2/24", "fd09::2/64")
	a.Run(t, "ping", "-c1", "-W2", "-M", "do", "-s", "8972", "10.9.0.2")
	a.Run(t, "ping", "-c1", "-W2", "fd09::2")
	a.Run(t, "ip", "netns", "exec", b.Name(), "ping", "-c1", "-W2", "10.9.0.1")

	if out, err := a.Try(t, "ping", "-c1", "-W1", "10.8.0.2"); err == nil {
		t.Errorf("ping without a route answered:\n%s", out)
	}
}

func TestDoComesBack(t *testing.T) {
	NeedRoot(t)
	before, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	n := NewNetns(t, "do")
	for range 10 { // a test that ends inside leaves by Goexit, as a failing one does
		t.Run("skipped inside", func(t *testing.T) {
			n.Do(t, func() {
				if inside, _ := os.Readlink("/proc/thread-self/ns/net"); inside == before {
					t.Errorf("Do stayed in %s", inside)
				}
				t.SkipNow()
			})
		})
	}
	n.Do(t, func() {})
	if after, _ := os.Readlink("/proc/thread-self/ns/net"); after != before {
		t.Errorf("network namespace after Do is %s, was %s", after, before)
	}
}

func TestStart(t *testing.T) {
	n := NewNetns(t, "start")
	var pid int
	t.Run("background", func(t *testing.T) {
		cmd := n.Start(t, "sh", "-c", "echo ready; exec sleep 1000")
		pid = cmd.Process.Pid
		Eventually(t, "the command writes", func() bool { return strings.Contains(OutputOf(cmd), "ready") })
	})
	if err := unix.Kill(pid, 0); err != unix.ESRCH {
		t.Errorf("process %d after the test: %v", pid, err)
	}
}

func TestCapture(t *testing.T) {
	NeedTool(t, "ip")
	a, b := NewNetns(t, "a"), NewNetns(t, "b")
	Veth(t, a, "eth0", b, "eth1")
	capture := b.Capture(t, "eth1")

	frame := make([]byte, 64)
	copy(frame, []byte{0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2})
	binary.BigEndian.PutUint16(frame[12:], 0x88b5)
	tagged := append([]byte(nil), frame[:12]...)
	tagged = append(tagged, 0x81, 0x00, 0x20, 0x2a)
	tagged = append(tagged, frame[12:]...)
	a.Send(t, "eth0", frame)
	a.Send(t, "eth0", tagged)

	ours := func(f Frame) bool { return bytes.HasPrefix(f.Data, frame[:12]) }
	b.Run(t, "ip", "link", "set", "eth1", "down") // does not end the capture

	got := capture.Matching(3, 200*time.Millisecond, ours)
	if len(got) != 2 {
		t.Fatalf("captured %d frames, want 2", len(got))
	}
	if !bytes.Equal(got[0].Wire(), frame) || got[0].HasVLAN || got[0].PktType != unix.PACKET_OTHERHOST {
		t.Errorf("untagged frame came as %+v", got[0])
	}
	if !bytes.Equal(got[1].Wire(), tagged) || got[1].VLANTCI != 0x202a {
		t.Errorf("tagged frame came as %+v", got[1])
	}
}

func TestHasKind(t *testing.T) {
	for kind, want := range map[string]bool{"veth": true, "macvlan": true, "nonesuch": false} {
		if got := HasKind(t, kind); got != want {
			t.Errorf("HasKind(%q) = %v", kind, got)
		}
	}
	for _, kind := range []string{"ipvlan", "vlan", "vxlan", "netkit", "dummy", "bond", "bridge", "macvtap"} {
		t.Logf("%s: %v", kind, HasKind(t, kind))
	}
}

func TestCleanup(t *testing.T) {
	NeedRoot(t)
	var path string
	t.Run("inner", func(t *testing.T) { path = NewNetns(t, "gone").Path() })
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("%s after the test: %v", path, err)
	}
	if !strings.Contains(path, fmt.Sprintf("xvt%d-", os.Getpid())) {
		t.Errorf("path %s does not name the process", path)
	}
}
