package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cpus are the two CPUs that everything runs on, which may be the same.
type cpus struct {
	main, other int
	soft        kthreads // ksoftirqd on them
}

// findCPUs chooses the last two that this process may use: the first one has
// most of the machine's interrupts.
func findCPUs() (*cpus, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("read CPU affinity: %w", err)
	}
	c := &cpus{main: -1}
	for cpu := range len(set) * 64 {
		if set.IsSet(cpu) {
			c.other, c.main = c.main, cpu
		}
	}
	if c.other < 0 {
		c.other = c.main
	}
	var err error
	c.soft, err = findKthreads(fmt.Sprintf("ksoftirqd/%d\n", c.main), fmt.Sprintf("ksoftirqd/%d\n", c.other))
	return c, err
}

// kthreads are kernel threads' /proc/PID/schedstat.
type kthreads []string

// findKthreads finds those whose names, and the newline behind, begin so. Where they are not to be seen,
// what they do goes uncounted.
func findKthreads(prefixes ...string) (kthreads, error) {
	all, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var k kthreads
	for _, path := range all {
		comm, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		if slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(string(comm), p) }) {
			k = append(k, filepath.Join(filepath.Dir(path), "schedstat"))
		}
	}
	return k, nil
}

// time is what they have run for. Those that have ended are taken to be idle:
// a worker ends after minutes without work.
func (k kthreads) time() (time.Duration, error) {
	var sum time.Duration
	for _, path := range k {
		stat, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("read CPU time: %w", err)
		}
		ns, _, _ := strings.Cut(string(stat), " ")
		d, err := strconv.ParseInt(ns, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read CPU time in %s: %w", path, err)
		}
		sum += time.Duration(d)
	}
	return sum, nil
}

// cost is the CPU time that threads of this process and of the kernel took
// while fn ran. A softirq raised in a system call runs at its end, on the
// caller's time; what does not end there goes on in ksoftirqd.
func cost(fn func() error, kernel kthreads, threads ...int) (time.Duration, error) {
	sum := func() (time.Duration, error) {
		total, err := kernel.time()
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
