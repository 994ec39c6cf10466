package main

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// An end is where a conversation begins or ends.
type end struct {
	in   *space
	addr netip.Addr
}

func (s *side) wireEnd() end     { return end{s.wire, wireAddr()} }
func (s *side) subEnd(i int) end { return end{s.box(i), subAddr(i)} }

const (
	port = 5057
	// wait is how long a socket's call may take before something is wrong,
	// or before a waiting thread looks whether it is to end.
	wait = 2 * time.Second
)

func sockaddr(a netip.Addr, port int) unix.Sockaddr {
	return &unix.SockaddrInet4{Port: port, Addr: a.As4()}
}

// socket makes one in the calling thread's namespace, bound to an address.
func socket(kind int, at netip.Addr, port int) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open socket: %w", err)
	}
	timeout := unix.NsecToTimeval(wait.Nanoseconds())
	if err := errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), // of connections before
		unix.Bind(fd, sockaddr(at, port)),
	); err != nil {
		return -1, errors.Join(fmt.Errorf("set up socket: %w", err), unix.Close(fd))
	}
	return fd, nil
}

// A conn is two sockets that are connected to each other.
type conn struct{ from, to int }

// dial connects two ends by SOCK_DGRAM or SOCK_STREAM. The sockets may be used
// from any thread.
func dial(kind int, from, to end) (conn, error) {
	c := conn{-1, -1}
	var err error
	if kind == unix.SOCK_DGRAM {
		err = errors.Join(
			to.in.do(func() (err error) { c.to, err = connect(kind, to.addr, port, from.addr); return err }),
			from.in.do(func() (err error) { c.from, err = connect(kind, from.addr, port, to.addr); return err }))
	} else {
		err = dialStream(&c, from, to)
	}
	if err != nil {
		return c, errors.Join(err, c.close())
	}
	return c, nil
}

func connect(kind int, from netip.Addr, fromPort int, to netip.Addr) (int, error) {
	fd, err := socket(kind, from, fromPort)
	if err != nil {
		return -1, err
	}
	if err := unix.Connect(fd, sockaddr(to, port)); err != nil {
		return -1, errors.Join(fmt.Errorf("connect: %w", err), unix.Close(fd))
	}
	return fd, nil
}

func dialStream(c *conn, from, to end) error {
	listener := -1
	err := to.in.do(func() (err error) {
		if listener, err = socket(unix.SOCK_STREAM, to.addr, port); err != nil {
			return err
		}
		return unix.Listen(listener, 1)
	})
	if listener >= 0 {
		defer unix.Close(listener)
	}
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	err = from.in.do(func() (err error) {
		c.from, err = connect(unix.SOCK_STREAM, from.addr, 0, to.addr)
		return err
	})
	if err != nil {
		return err
	}
	if c.to, _, err = unix.Accept4(listener, unix.SOCK_CLOEXEC); err != nil {
		return fmt.Errorf("accept: %w", err)
	}
	timeout := unix.NsecToTimeval(wait.Nanoseconds())
	return errors.Join(
		unix.SetsockoptTimeval(c.to, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout),
		unix.SetsockoptTimeval(c.to, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
		unix.SetsockoptInt(c.from, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
		unix.SetsockoptInt(c.to, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1))
}

func (c conn) close() error {
	var errs []error
	for _, fd := range []int{c.from, c.to} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}
