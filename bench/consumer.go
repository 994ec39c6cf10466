package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/internal/thread"
)

// consumer is about small frames for a container that does not leave them to
// its kernel stack. With xvlan's delivery xdp an XDP program on the device gets
// them from driver to driver. A macvlan has no native XDP: there a tc program is
// the first that sees them, or they are read from a macvtap.
func (b *bench) consumer(ctx context.Context) (rows []*row, err error) {
	w, err := newWorld(plan{subs: 1, gro: true, xdp: true, port: true}, bareXDP, macvlan, macvtap, xvlan)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	var p pipes
	defer func() { err = errors.Join(err, p.close()) }()
	for _, s := range w.sides {
		if s.kind == macvtap {
			err = p.readTap(b, s)
		} else {
			err = p.consume(b, s)
		}
		if err != nil {
			return nil, err
		}
	}
	all, err := b.interleave(ctx, p.probes...)
	if err != nil {
		return nil, err
	}
	cable, mv, tap, xv := all[0][0], all[1][0], all[2][0], all[3][0]
	program, err := perSecond("60-byte frames to a program in the container: XDP, on macvlan tc", cable, mv, xv)
	if err != nil {
		return nil, err
	}
	reader, err := perSecond("60-byte frames to a program in the container: XDP, with a macvtap its reader", cable, tap, xv)
	if err != nil {
		return nil, err
	}
	return []*row{program.goal(4), reader.between("macvtap", "xvlan")}, nil
}

// consume has the first program drop frames that a side can have for it.
func (p *pipes) consume(b *bench, s *side) error {
	at := ingress
	if s.kind == bareXDP || s.kind == xvlan {
		at = xdpHook
	}
	k, err := p.sink(at, func(k *sink) error {
		if s.kind == bareXDP {
			return k.on(s.host, parentDev)
		}
		return k.on(s.box(1), subName(1))
	})
	if err != nil {
		return err
	}
	return p.generate(b, s, k, smallFrame(subMAC(1), subAddr(1)), rotation{})
}

// tapQueue is how many frames wait for their reader: more than a turn's.
const tapQueue = 1 << 15

// A tap reads the frames that come to a macvtap, on a thread of its own.
type tap struct {
	fd, tid int
	read    atomic.Uint64
	stop    atomic.Bool
	ended   chan error
}

// openTap opens the macvtap c1 of a side.
func openTap(b *bench, s *side) (*tap, error) {
	number, err := tapNumber(s)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "xvb")
	if err != nil {
		return nil, fmt.Errorf("make folder: %w", err)
	}
	defer os.RemoveAll(dir)
	node := filepath.Join(dir, "tap")
	if err := unix.Mknod(node, unix.S_IFCHR|0o600, int(number)); err != nil {
		return nil, fmt.Errorf("make node of macvtap: %w", err)
	}
	fd, err := unix.Open(node, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open macvtap: %w", err)
	}
	t := &tap{fd: fd, ended: make(chan error, 1)}
	started := make(chan error, 1)
	go func() {
		t.ended <- thread.Run(func() error {
			t.tid = unix.Gettid()
			err := pin(b.cpus.other)
			if started <- err; err != nil {
				return err
			}
			return t.loop()
		})
	}()
	if err := <-started; err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return t, nil
}

// tapNumber is the device number of a macvtap's node, which only its own
// namespace's sysfs tells.
func tapNumber(s *side) (number uint64, err error) {
	l, err := s.box(1).link(subName(1))
	if err != nil {
		return 0, err
	}
	err = thread.Run(func() error {
		if err := errors.Join(unix.Unshare(unix.CLONE_NEWNS),
			unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
			netns.Set(s.box(1).ns),
			unix.Mount("sysfs", "/sys", "sysfs", 0, "")); err != nil {
			return fmt.Errorf("mount sysfs of %s: %w", s.box(1).name, err)
		}
		text, err := os.ReadFile(fmt.Sprintf("/sys/class/net/%s/tap%d/dev", subName(1), l.Attrs().Index))
		if err != nil {
			return fmt.Errorf("find macvtap: %w", err)
		}
		var major, minor uint32
		if _, err := fmt.Sscanf(strings.TrimSpace(string(text)), "%d:%d", &major, &minor); err != nil {
			return fmt.Errorf("read number of macvtap: %w", err)
		}
		number = unix.Mkdev(major, minor)
		return nil
	})
	return number, err
}

// loop reads until it is to stop.
func (t *tap) loop() error {
	buf := make([]byte, 2048)
	for !t.stop.Load() {
		_, err := unix.Read(t.fd, buf)
		switch {
		case err == nil:
			t.read.Add(1)
			continue
		case errors.Is(err, unix.EAGAIN):
			const look = 100 // milliseconds
			_, err = unix.Poll([]unix.PollFd{{Fd: int32(t.fd), Events: unix.POLLIN}}, look)
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("read macvtap: %w", err)
		}
	}
	return nil
}

func (t *tap) close() error {
	t.stop.Store(true)
	return errors.Join(<-t.ended, unix.Close(t.fd))
}

// readTap adds a probe of what a frame costs until it has been read.
func (p *pipes) readTap(b *bench, s *side) error {
	t, err := openTap(b, s)
	if err != nil {
		return err
	}
	p.closers = append(p.closers, closeFunc(t.close))
	l, err := s.wire.link(wireDev)
	if err != nil {
		return err
	}
	g, err := newGenerator(l.Attrs().Index, rotation{})
	if err != nil {
		return err
	}
	p.closers = append(p.closers, closeFunc(g.close))
	frame := smallFrame(subMAC(1), subAddr(1))
	p.probes = append(p.probes, func() ([]float64, error) {
		var spent time.Duration
		want := t.read.Load() + frames
		err := s.wire.do(func() (err error) {
			if err := pin(b.cpus.main); err != nil {
				return err
			}
			spent, err = cost(func() error {
				if err := g.send(frame, frames, poll); err != nil {
					return err
				}
				return t.await(want)
			}, b.cpus.soft, 0, t.tid)
			return err
		})
		return []float64{float64(spent) / frames}, err
	})
	return nil
}

// await waits until so many frames have been read.
func (t *tap) await(n uint64) error {
	for end := time.Now().Add(wait); t.read.Load() < n; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("%d frames were not read", n-t.read.Load())
		}
	}
	return nil
}
