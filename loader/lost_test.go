package loader

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/internal/thread"
	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/maps"
)

// slow lets a device receive by a kernel thread of its own, on the first CPU, when
// that has nothing else to do: who keeps it busy overruns the device's ring.
func (e *end) slow(t *testing.T) {
	t.Helper()
	e.ns.Run(t, "ethtool", "-K", e.dev, "gro", "on") // by a ring, at all
	e.ns.Run(t, "unshare", "-m", "sh", "-c",
		"mount -t sysfs sysfs /sys && echo 1 > /sys/class/net/"+e.dev+"/threaded")
	comms, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, path := range comms {
		comm, err := os.ReadFile(path)
		if err != nil || !strings.HasPrefix(string(comm), "napi/"+e.dev+"-") {
			continue // gone meanwhile, or another
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.SchedSetaffinity(pid, firstCPU()); err != nil {
			t.Fatalf("bind the receiving thread: %v", err)
		}
		if err := unix.SchedSetAttr(pid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_IDLE}, 0); err != nil {
			t.Fatalf("lower the receiving thread's priority: %v", err)
		}
		found = true
	}
	if !found {
		t.Fatalf("%s has no thread that receives", e.dev)
	}
}

func firstCPU() *unix.CPUSet {
	var set unix.CPUSet
	set.Set(0)
	return &set
}

func allSignals() *unix.Sigset_t {
	var set unix.Sigset_t
	for i := range set.Val {
		set.Val[i] = ^set.Val[i]
	}
	return &set
}

// flood sends so many of a frame out of a device, on the first CPU.
func (e *end) flood(t *testing.T, frame []byte, n int) {
	t.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "MIT", Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R2, int32(e.index(t))),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnCloneRedirect.Call(),
		asm.Mov.Imm(asm.R0, 0),
		asm.Return(),
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	err = thread.Run(func() error {
		if err := unix.Setns(e.ns.Fd(), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter namespace: %w", err)
		}
		if err := unix.SchedSetaffinity(0, firstCPU()); err != nil {
			return fmt.Errorf("bind: %w", err)
		}
		// A signal, as the run-time sends to itself, ends the run after a frame or
		// more, and the library begins anew.
		if err := unix.PthreadSigmask(unix.SIG_SETMASK, allSignals(), nil); err != nil {
			return fmt.Errorf("block signals: %w", err)
		}
		_, err := prog.Run(&ebpf.RunOptions{Data: frame, Repeat: uint32(n)})
		return err
	})
	if err != nil {
		t.Fatalf("flood: %v", err)
	}
}

// Under overload the books balance: what was sent has got to the parent or was
// lost on the wire, and what was handed to a sub-interface has arrived, or
// stands as dropped by its ring.
func TestLost(t *testing.T) {
	lab.NeedTool(t, "ethtool")
	lab.NeedTool(t, "unshare")
	onRungs(t, ourRungs, func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{noIPv6: true})
		e := s.sub(t, "mac1")
		s.addAtOnce(t, e, e.ip4)
		e.slow(t)
		// What may be a super-packet goes past the ring.
		s.host.ns.Run(t, "ethtool", "-K", s.link(t, e).Leg, "tso", "off")
		stats := func(e *end) *netlink.LinkStatistics { return e.ns.Link(t, e.dev).Attrs().Statistics }
		wire, inner, sub := stats(s.wire), stats(e), s.link(t, e).Stats
		question := arpQuestion(t, s.wire, e) // goes by the host leg
		var lost uint64
		for sent := uint64(0); lost == 0 && sent < 1_000_000; {
			const n = 20_000
			s.wire.flood(t, question, n)
			sent += n
			var before, given, got uint64
			lab.Eventually(t, "the books balance", func() bool {
				now := s.link(t, e).Stats
				before = stats(s.wire).TxDropped - wire.TxDropped
				given = now[maps.RX].Packets - sub[maps.RX].Packets
				lost = now[maps.DropRing].Packets - sub[maps.DropRing].Packets
				got = stats(e).RxPackets - inner.RxPackets
				return sent == before+given && given == got+lost
			})
			t.Logf("of %d %d were lost on the wire and %d handed over, of which %d arrived and %d were lost", sent, before, given, got, lost)
		}
		if lost == 0 {
			t.Error("nothing was lost")
		}
		if now := s.link(t, e).Stats; now.DroppedRX() != lost {
			t.Errorf("dropped are %d, %d by the ring", now.DroppedRX(), lost)
		}
	})
}

// arpQuestion asks for the IPv4 address of another.
func arpQuestion(t *testing.T, from, to *end) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{},
		&layers.Ethernet{SrcMAC: from.mac(t), DstMAC: layers.EthernetBroadcast, EthernetType: layers.EthernetTypeARP},
		&layers.ARP{
			AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4,
			Operation: layers.ARPRequest, SourceHwAddress: from.mac(t), SourceProtAddress: from.ip4.Addr().AsSlice(),
			DstHwAddress: make([]byte, 6), DstProtAddress: to.ip4.Addr().AsSlice(),
		}, gopacket.Payload(make([]byte, 18)))
	if err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// What a sub-interface sends and its pair of devices cannot take is counted, as
// what is handed to it and does not fit.
func TestLostMTU(t *testing.T) {
	onRungs(t, []rungCase{onTCX, onClsact}, func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{noIPv6: true})
		e := s.sub(t, "mac1")
		s.addAtOnce(t, e, e.ip4)
		small := e.ns.Link(t, e.dev)
		if err := e.ns.Handle().LinkSetMTU(small, 600); err != nil {
			t.Fatal(err)
		}
		before := s.link(t, e).Stats
		frame := append(arpQuestion(t, s.wire, e), make([]byte, 1000)...)
		const n = 7
		for range n {
			s.wire.ns.Send(t, s.wire.dev, frame)
		}
		lab.Eventually(t, "frames are counted as lost", func() bool {
			now := s.link(t, e).Stats
			return now[maps.RX].Packets-before[maps.RX].Packets == n && now[maps.DropRing].Packets-before[maps.DropRing].Packets == n
		})
	})
}
