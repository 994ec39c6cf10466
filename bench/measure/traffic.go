package measure

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/internal/thread"
)

// UDP ports: who listens on the first only takes, on the second answers.
const (
	sinkPort = 9
	echoPort = 7
)

const (
	burst    = 512                   // frames between two looks at what has come
	batch    = 64                    // frames that a driver hands on at once
	buffer   = 1 << 24               // bytes of a socket: more than a burst with all that the kernel adds
	mostLost = 50                    // bursts in a turn
	patience = 15 * time.Second      // with an answer: others may have the CPU
	delay    = 20 * time.Millisecond // that a burst may have
)

// sockets are a side's.
type sockets struct {
	subSink, wireSink int // nobody sends back
	asks, answers     int // there and back
}

func newSockets(s *side) (*sockets, error) {
	k := &sockets{-1, -1, -1, -1}
	for _, x := range []struct {
		fd   *int
		in   *space
		port int
		to   [4]byte
	}{
		{&k.subSink, s.box, sinkPort, wirePrefix.Addr().As4()},
		{&k.wireSink, s.wire, sinkPort, subPrefix.Addr().As4()},
		{&k.asks, s.wire, echoPort, subPrefix.Addr().As4()},
		{&k.answers, s.box, echoPort, wirePrefix.Addr().As4()},
	} {
		err := x.in.do(func() (err error) {
			*x.fd, err = udp(x.port, x.to)
			return err
		})
		if err != nil {
			k.close()
			return nil, err
		}
	}
	return k, nil
}

// udp opens a socket that is connected to the same port of another address.
func udp(port int, to [4]byte) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open socket: %w", err)
	}
	wait := unix.NsecToTimeval(patience.Nanoseconds())
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait),
		unix.Bind(fd, &unix.SockaddrInet4{Port: port}),
		unix.Connect(fd, &unix.SockaddrInet4{Port: port, Addr: to}))
	if err != nil {
		return -1, errors.Join(fmt.Errorf("set up socket: %w", err), unix.Close(fd))
	}
	return fd, nil
}

func (k *sockets) close() {
	for _, fd := range []int{k.subSink, k.wireSink, k.asks, k.answers} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// in measures what a frame takes from the parent's driver to a socket, and in
// making it. It is made as an XDP frame, so that neither a socket nor a copy of
// the wire's stands for what is no NIC's.
func (s *side) in(on *cpu) probe {
	f := frame(s.mac, wireMAC(), wirePrefix.Addr(), subPrefix.Addr())
	const liveFrames = 2 // BPF_F_TEST_XDP_LIVE_FRAMES: verdicts are carried out
	return s.flood(s.wire, on, s.subSink, func() error {
		_, err := s.generator.Run(&ebpf.RunOptions{Data: f, Repeat: burst, Flags: liveFrames, BatchSize: batch})
		return err
	})
}

// out measures what a datagram takes from a socket to one on the wire.
func (s *side) out(on *cpu) probe {
	payload := make([]byte, 18)
	return s.flood(s.box, on, s.wireSink, func() error {
		for range burst {
			if _, err := unix.Write(s.subSink, payload); err != nil && !errors.Is(err, unix.ENOBUFS) {
				return err
			}
		}
		return nil
	})
}

// flood measures the CPU time of bursts, sent from a namespace, for each frame
// that comes to a socket. A burst that loses many does not count.
func (s *side) flood(from *space, on *cpu, to int, send func() error) probe {
	return func(d time.Duration) (cost float64, err error) {
		err = from.do(func() error {
			if err := on.pin(); err != nil {
				return err
			}
			var (
				spent      time.Duration
				came, lost int
			)
			for begin := time.Now(); came == 0 || time.Since(begin) < d; {
				before := on.softirqs()
				t, err := cpuTime(send)
				if err != nil {
					return fmt.Errorf("send: %w", err)
				}
				n := drain(to, burst)
				if n >= burst*9/10 {
					came += n
					spent += t + on.softirqs() - before
				} else if lost++; lost > mostLost { // a busy machine may lose some
					return fmt.Errorf("of %d frames, sent %d times, %d arrived", burst, lost, n)
				}
			}
			cost = float64(spent) / float64(came)
			return nil
		})
		return cost, err
	}
}

// drain takes what has come to a socket, and waits a little for what is missing.
func drain(fd, want int) (n int) {
	var buf [64]byte
	for end := time.Now().Add(delay); n < want; {
		if _, _, err := unix.Recvfrom(fd, buf[:], unix.MSG_DONTWAIT); err == nil {
			n++
		} else if time.Now().After(end) {
			break
		}
	}
	return n
}

// roundTrip measures the time, in microseconds, from asking to having the
// answer: the median of a turn.
func (s *side) roundTrip(on *cpu) probe {
	return func(d time.Duration) (us float64, err error) {
		answering := make(chan error, 1)
		go func() { answering <- thread.Run(func() error { return s.answer(on) }) }()
		end := time.Now().Add(d)
		var taken []float64
		err = thread.Run(func() error {
			if err := on.pin(); err != nil {
				return err
			}
			var buf [64]byte
			for len(taken) == 0 || time.Now().Before(end) {
				begin := time.Now()
				if _, err := unix.Write(s.asks, buf[:18]); err != nil {
					return fmt.Errorf("ask: %w", err)
				}
				if _, err := read(s.asks, buf[:]); err != nil {
					return fmt.Errorf("wait for an answer: %w", err)
				}
				taken = append(taken, float64(time.Since(begin))/1e3)
			}
			_, err := unix.Write(s.asks, nil) // ends it
			return err
		})
		if err := errors.Join(err, <-answering); err != nil {
			return 0, err
		}
		slices.Sort(taken)
		return taken[len(taken)/2], nil
	}
}

// answer returns each datagram, until an empty one comes or none for a while.
func (s *side) answer(on *cpu) error {
	if err := on.pin(); err != nil {
		return err
	}
	var buf [64]byte
	for {
		n, err := read(s.answers, buf[:])
		if errors.Is(err, unix.EAGAIN) || err == nil && n == 0 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("wait for a question: %w", err)
		}
		if _, err := unix.Write(s.answers, buf[:n]); err != nil {
			return fmt.Errorf("answer: %w", err)
		}
	}
}

// read goes on where a signal has come in between.
func read(fd int, buf []byte) (n int, err error) {
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		n, err = unix.Read(fd, buf)
	}
	return n, err
}

// A cpu is the one that all traffic runs on.
type cpu struct {
	number int
	soft   string // schedstat of its ksoftirqd; "" where that is not to be seen, and what it does goes uncounted
}

// lastCPU is the last one that this process may use: the first has most of the
// machine's interrupts.
func lastCPU() (*cpu, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("read CPU affinity: %w", err)
	}
	c := &cpu{}
	for n := range len(set) * 64 {
		if set.IsSet(n) {
			c.number = n
		}
	}
	names, _ := filepath.Glob("/proc/[0-9]*/comm") // the pattern is good
	for _, name := range names {
		if comm, err := os.ReadFile(name); err == nil && string(comm) == fmt.Sprintf("ksoftirqd/%d\n", c.number) {
			c.soft = filepath.Join(filepath.Dir(name), "schedstat")
			break
		}
	}
	return c, nil
}

// pin keeps the calling thread, and what it raises, on the CPU.
func (c *cpu) pin() error {
	var set unix.CPUSet
	set.Set(c.number)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("pin to CPU %d: %w", c.number, err)
	}
	return nil
}

// softirqs is how long the kernel's thread has gone on with softirqs that took
// too long where they were raised.
func (c *cpu) softirqs() time.Duration {
	stat, err := os.ReadFile(c.soft)
	if err != nil {
		return 0
	}
	ns, _, _ := strings.Cut(string(stat), " ")
	d, err := strconv.ParseInt(ns, 10, 64)
	if err != nil {
		return 0
	}
	return time.Duration(d)
}
