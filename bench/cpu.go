package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cpus are the two CPUs that everything runs on, which may be the same, and
// the kernel's threads there for softirqs that did not end within their share.
type cpus struct {
	main, other int
	schedstat   map[int]string // by CPU
}

// findCPUs chooses the last two that this process may use: the first one has
// most of the machine's interrupts. Where the kernel's threads are not to be
// seen, what they do goes uncounted.
func findCPUs() (*cpus, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("read CPU affinity: %w", err)
	}
	c := &cpus{main: -1, schedstat: map[int]string{}}
	for cpu := range len(set) * 64 {
		if set.IsSet(cpu) {
			c.other, c.main = c.main, cpu
		}
	}
	if c.other < 0 {
		c.other = c.main
	}
	all, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	for _, path := range all {
		comm, err := os.ReadFile(path)
		if err != nil {
			continue // the process has ended
		}
		n, ok := strings.CutPrefix(strings.TrimSpace(string(comm)), "ksoftirqd/")
		if cpu, err := strconv.Atoi(n); ok && err == nil {
			c.schedstat[cpu] = filepath.Dir(path) + "/schedstat"
		}
	}
	return c, nil
}

// soft is what the kernel's softirq threads of both CPUs have run for.
func (c *cpus) soft() (time.Duration, error) {
	var sum time.Duration
	for cpu, path := range c.schedstat {
		if cpu != c.main && cpu != c.other {
			continue
		}
		stat, err := os.ReadFile(path)
		if err != nil {
			return 0, fmt.Errorf("read time of ksoftirqd/%d: %w", cpu, err)
		}
		ns, _, _ := strings.Cut(string(stat), " ")
		d, err := strconv.ParseInt(ns, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read time of ksoftirqd/%d: %w", cpu, err)
		}
		sum += time.Duration(d)
	}
	return sum, nil
}

// cost is the CPU time that threads and softirqs took while fn ran. A softirq
// raised in a system call runs at its end, on the caller's time; one that does
// not end there goes on in ksoftirqd.
func (c *cpus) cost(fn func() error, threads ...int) (time.Duration, error) {
	sum := func() (time.Duration, error) {
		total, err := c.soft()
		for _, tid := range threads {
			d, terr := threadTime(tid)
			total += d
			err = errors.Join(err, terr)
		}
		return total, err
	}
	before, err0 := sum()
	err1 := fn()
	after, err2 := sum()
	return after - before, errors.Join(err0, err1, err2)
}

// threadTime is the CPU time of any thread of this process; 0 is the caller.
// The clock's number is what pthread_getcpuclockid(3) makes of a thread's.
func threadTime(tid int) (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^tid<<3|6), &ts); err != nil {
		return 0, fmt.Errorf("read CPU time of thread %d: %w", tid, err)
	}
	return time.Duration(ts.Nano()), nil
}

// pin keeps the calling thread on one CPU.
func pin(cpu int) error {
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("pin to CPU %d: %w", cpu, err)
	}
	return nil
}
