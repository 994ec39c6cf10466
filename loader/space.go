package loader

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// ErrAstray is returned when the calling thread could not be brought back to
// its own network namespace. Whatever it did next would be done to the wrong
// devices: the caller must end, or never use the thread again.
var ErrAstray = errors.New("this thread is in another network namespace and cannot return")

// netnsDir is where `ip netns` keeps the names of namespaces.
const netnsDir = "/run/netns"

// within runs fn with the calling thread in the namespace. What fn opens there
// stays of that namespace.
func (s *space) within(fn func() error) error {
	if s.own {
		return fn()
	}
	return enter(s.file, fn)
}

// enter is within for a namespace's file. The netlink library does not tell
// when it could not come back from another namespace, so it is never asked to go.
// Until it is back the goroutine keeps its thread, which no other may have
// that did not come back.
func enter(f *os.File, fn func() error) error {
	runtime.LockOSThread()
	astray := false
	defer func() {
		if !astray {
			runtime.UnlockOSThread()
		}
	}()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return fmt.Errorf("open own netns: %w", err)
	}
	defer home.Close()
	if err := netns.Set(netns.NsHandle(f.Fd())); err != nil {
		return fmt.Errorf("enter netns: %w", err)
	}
	err = fn()
	back := netns.Set(netns.NsHandle(home.Fd()))
	if back != nil { // short of memory, say
		back = netns.Set(netns.NsHandle(home.Fd()))
	}
	if back != nil {
		astray = true
		return errors.Join(fmt.Errorf("%w: %w", ErrAstray, back), err)
	}
	return err
}

// handleIn opens netlink in another network namespace.
func handleIn(f *os.File) (handle *netlink.Handle, err error) {
	err = enter(f, func() (err error) {
		handle, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil && handle != nil {
		handle.Close()
		handle = nil
	}
	return handle, err
}

// socket opens a netlink socket for messages that the netlink library does not
// offer.
func (s *space) socket() (sock *nl.NetlinkSocket, err error) {
	err = s.within(func() (err error) {
		sock, err = nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_ROUTE)
		return err
	})
	if err != nil && sock != nil {
		sock.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("open netlink%s: %w", s.where(), err)
	}
	return sock, nil
}

// eachSpace visits the other network namespaces that can be entered: those with
// a name and, if there are ids of others, those that a mount or a process leads
// to. here is the own one's id as seen from there, -1 if nothing there leads here.
func (h *Host) eachSpace(fn func(s *space, here int) error) error {
	self, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return fmt.Errorf("open own netns: %w", err)
	}
	defer self.Close()
	own, err := inode(self.Name())
	if err != nil {
		return fmt.Errorf("look at own netns: %w", err)
	}
	left, err := nsids()
	if err != nil {
		return err
	}
	seen := map[uint64]bool{own: true}
	for _, files := range []iter.Seq[string]{namedSpaces, mountedSpaces, processSpaces} {
		if err := h.visit(files, self, seen, left, fn); err != nil {
			return err
		}
		if len(left) == 0 {
			break // nobody is without a name
		}
	}
	return nil
}

func (h *Host) visit(files iter.Seq[string], self *os.File, seen map[uint64]bool, left map[int]bool, fn func(*space, int) error) error {
	for file := range files {
		ino, err := inode(file)
		if err != nil || seen[ino] {
			continue // gone meanwhile, not ours to see, or visited
		}
		s, err := openSpace(strings.TrimPrefix(file, netnsDir+"/"))
		if errors.Is(err, ErrNotFound) || errors.Is(err, ErrInvalid) || errors.Is(err, ErrPrivilege) {
			continue // deleted meanwhile, a name without a namespace yet, or not ours to enter
		}
		if err != nil {
			return err
		}
		id, err := h.nl.GetNetNsIdByFd(int(s.file.Fd()))
		here := -1
		if err == nil {
			here, err = s.nl.GetNetNsIdByFd(int(self.Fd()))
		}
		if err == nil {
			seen[ino] = true
			delete(left, id)
			err = fn(s, here)
		}
		s.close()
		if err != nil {
			return err
		}
	}
	return nil
}

// spaceOf opens the namespace of an id, where the sub-interface is: by its name, if
// that is it, which saves a look at all others.
func (h *Host) spaceOf(l Link, nsid int) (*space, error) {
	if nsid >= 0 && l.Netns != "" {
		if s, err := openSpace(l.Netns); err == nil {
			if id, err := h.nl.GetNetNsIdByFd(int(s.file.Fd())); err == nil && id == nsid {
				return s, nil
			}
			s.close()
		} else if errors.Is(err, ErrAstray) {
			return nil, err
		}
	}
	return h.spaceByID(nsid)
}

// spaceByID opens the namespace of an id as seen from here, ErrNotFound if
// nothing that can be opened leads to it. A negative id is the own one.
func (h *Host) spaceByID(nsid int) (*space, error) {
	if nsid < 0 {
		return openSpace("")
	}
	for _, files := range []iter.Seq[string]{namedSpaces, mountedSpaces, processSpaces} {
		seen := map[uint64]bool{}
		for file := range files {
			ino, err := inode(file)
			if err != nil || seen[ino] {
				continue
			}
			seen[ino] = true
			if !h.hasID(file, nsid) {
				continue
			}
			s, err := openSpace(strings.TrimPrefix(file, netnsDir+"/"))
			if err != nil {
				return nil, err
			}
			// A process may have ended, and another have its number.
			if id, err := h.nl.GetNetNsIdByFd(int(s.file.Fd())); err == nil && id == nsid {
				return s, nil
			}
			s.close()
		}
	}
	return nil, fmt.Errorf("netns nsid %d: %w: no name, mount or process leads to it", nsid, ErrNotFound)
}

func (h *Host) hasID(file string, nsid int) bool {
	f, err := os.Open(file)
	if err != nil {
		return false
	}
	defer f.Close()
	id, err := h.nl.GetNetNsIdByFd(int(f.Fd()))
	return err == nil && id == nsid
}

// nsids lists the ids of other namespaces that the own one knows.
func nsids() (map[int]bool, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETNSID, unix.NLM_F_DUMP)
	msg := nl.NewRtGenMsg()
	req.AddData(msg)
	msgs, err := whole(func() ([][]byte, error) { return req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNSID) })
	if err != nil {
		return nil, fmt.Errorf("list netns ids: %w", err)
	}
	ids := map[int]bool{}
	for _, m := range msgs {
		attrs, err := nl.ParseRouteAttr(m[msg.Len():])
		if err != nil {
			return nil, fmt.Errorf("read netns ids: %w", err)
		}
		for _, a := range attrs {
			if a.Attr.Type == unix.NETNSA_NSID {
				ids[int(int32(binary.NativeEndian.Uint32(a.Value)))] = true
			}
		}
	}
	return ids, nil
}

// The ways to namespaces: names, mounts, which container runtimes keep, and
// processes. Which namespace a file stands for is told by its inode.

func namedSpaces(yield func(string) bool) {
	entries, err := os.ReadDir(netnsDir)
	if err != nil {
		return // there are none
	}
	for _, e := range entries {
		if !yield(filepath.Join(netnsDir, e.Name())) {
			return
		}
	}
}

func mountedSpaces(yield func(string) bool) {
	f, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// 36 35 0:4 net:[4026532177] /run/docker/netns/1 rw ...
		fields := strings.Fields(lines.Text())
		if len(fields) > 4 && strings.HasPrefix(fields[3], "net:[") && !yield(fields[4]) {
			return
		}
	}
}

func processSpaces(yield func(string) bool) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return
	}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err == nil && !yield(filepath.Join("/proc", e.Name(), "ns/net")) {
			return
		}
	}
}

// spaceLives tells whether a name, a mount or a process leads to the network
// namespace of a cookie.
func spaceLives(cookie uint64) (bool, error) {
	for _, files := range []iter.Seq[string]{namedSpaces, mountedSpaces, processSpaces} {
		for file := range files {
			f, err := os.Open(file)
			if err != nil {
				continue // gone meanwhile, or not ours to see
			}
			var got uint64
			err = enter(f, func() (err error) {
				got, err = netnsCookie()
				return err
			})
			f.Close()
			if errors.Is(err, ErrAstray) {
				return false, err
			}
			if err == nil && got == cookie {
				return true, nil
			}
		}
	}
	return false, nil
}

func inode(file string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil {
		return 0, &fs.PathError{Op: "stat", Path: file, Err: err}
	}
	return st.Ino, nil
}
