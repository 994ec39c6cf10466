// Package lab gives tests what they stand on: network namespaces, veth pairs
// between them, commands inside them, raw frames in and out, and checks of what
// the running kernel and the machine have. Everything it makes is taken away by
// the test's own clean-up, also after a failure.
//
// Its subfolder vm boots other kernels, so that tests written with this package
// run on those too.
package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// netnsDir is where ip-netns(8) looks for named network namespaces.
const netnsDir = "/run/netns"

var netnsCount atomic.Int64

// A Netns is a named network namespace, known to `ip netns` too, that lives as
// long as the test that made it.
type Netns struct {
	name   string
	ns     netns.NsHandle
	handle *netlink.Handle
	remove func() error
}

// NewNetns makes a network namespace with its loopback up and IPv6's duplicate
// address detection off for every device that comes into it. The role becomes
// the end of its name: xvt<pid>-<n>-<role>.
func NewNetns(tb testing.TB, role string) *Netns {
	tb.Helper()
	NeedRoot(tb)
	n := &Netns{name: fmt.Sprintf("xvt%d-%d-%s", os.Getpid(), netnsCount.Add(1), role)}
	n.remove = sync.OnceValue(n.doRemove)
	if err := n.create(); err != nil {
		tb.Fatalf("make network namespace %s: %v", n.name, err)
	}
	tb.Cleanup(func() {
		if err := n.remove(); err != nil {
			tb.Errorf("remove network namespace %s: %v", n.name, err)
		}
	})
	n.Sysctl(tb, "net.ipv6.conf.all.accept_dad", "0")
	n.Sysctl(tb, "net.ipv6.conf.default.accept_dad", "0")
	n.Up(tb, "lo")
	return n
}

// create makes the namespace from a thread of its own, pins it by name and
// opens a netlink handle in it.
func (n *Netns) create() error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return err
	}
	path := filepath.Join(netnsDir, n.name)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	errc := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			errc <- fmt.Errorf("unshare: %w", err)
			return
		}
		errc <- unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, "")
	}()
	if err := <-errc; err != nil {
		return errors.Join(err, os.Remove(path))
	}
	if n.ns, err = netns.GetFromPath(path); err != nil {
		return errors.Join(err, n.remove())
	}
	if n.handle, err = netlink.NewHandleAt(n.ns); err != nil {
		return errors.Join(err, n.remove())
	}
	return nil
}

func (n *Netns) doRemove() error {
	if n.handle != nil {
		n.handle.Close()
	}
	if n.ns > 0 {
		n.ns.Close()
	}
	path := filepath.Join(netnsDir, n.name)
	return errors.Join(unix.Unmount(path, unix.MNT_DETACH), os.Remove(path))
}

// Remove takes the namespace away before the test ends, with the devices in it
// that have no other to go back to. The kernel does so in its own time.
func (n *Netns) Remove(tb testing.TB) {
	tb.Helper()
	if err := n.remove(); err != nil {
		tb.Fatalf("remove network namespace %s: %v", n.name, err)
	}
}

// Name returns the name that `ip netns exec` takes.
func (n *Netns) Name() string { return n.name }

// Path returns the file that stands for the namespace.
func (n *Netns) Path() string { return filepath.Join(netnsDir, n.name) }

// Fd returns a descriptor of the namespace that belongs to n.
func (n *Netns) Fd() int { return int(n.ns) }

// Handle returns a netlink handle in the namespace, to be used from any thread.
func (n *Netns) Handle() *netlink.Handle { return n.handle }

// Do runs fn in the namespace, in the calling goroutine, which stays on one OS
// thread meanwhile. Goroutines that fn starts run elsewhere. fn may fail the
// test or call Do of another namespace. A thread that cannot be brought back is
// not used any more.
func (n *Netns) Do(tb testing.TB, fn func()) {
	tb.Helper()
	runtime.LockOSThread()
	old, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		tb.Fatalf("open this thread's network namespace: %v", err)
	}
	defer old.Close()
	if err := netns.Set(n.ns); err != nil {
		runtime.UnlockOSThread()
		tb.Fatalf("enter network namespace %s: %v", n.name, err)
	}
	defer func() {
		if err := netns.Set(old); err != nil {
			tb.Fatalf("leave network namespace %s: %v", n.name, err)
		}
		runtime.UnlockOSThread()
	}()
	fn()
}

// Sysctl sets a net.* key, written with dots, in the namespace. A key whose
// protocol the kernel has not is left alone; a device name with a dot in it
// cannot be said.
func (n *Netns) Sysctl(tb testing.TB, key, value string) {
	tb.Helper()
	n.Do(tb, func() {
		path := "/proc/sys/" + strings.ReplaceAll(key, ".", "/")
		err := os.WriteFile(path, []byte(value), 0o644)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			tb.Fatalf("set sysctl %s: %v", key, err)
		}
	})
}

// Link returns the device called dev as the namespace has it now.
func (n *Netns) Link(tb testing.TB, dev string) netlink.Link {
	tb.Helper()
	link, err := n.handle.LinkByName(dev)
	if err != nil {
		tb.Fatalf("find device %s in %s: %v", dev, n.name, err)
	}
	return link
}

// Up sets devices up.
func (n *Netns) Up(tb testing.TB, devs ...string) {
	tb.Helper()
	for _, dev := range devs {
		if err := n.handle.LinkSetUp(n.Link(tb, dev)); err != nil {
			tb.Fatalf("set %s up in %s: %v", dev, n.name, err)
		}
	}
}

// Addr gives dev addresses in the form 10.0.0.1/24 or fd00::1/64, the latter
// usable at once.
func (n *Netns) Addr(tb testing.TB, dev string, cidrs ...string) {
	tb.Helper()
	link := n.Link(tb, dev)
	for _, cidr := range cidrs {
		addr, err := netlink.ParseAddr(cidr)
		if err != nil {
			tb.Fatalf("parse address %s: %v", cidr, err)
		}
		if addr.IP.To4() == nil {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := n.handle.AddrAdd(link, addr); err != nil {
			tb.Fatalf("add address %s to %s in %s: %v", cidr, dev, n.name, err)
		}
	}
}
