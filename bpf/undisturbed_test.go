package bpf_test

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"testing"
)

// A trial is a test whose errors do not count yet.
type trial struct {
	testing.TB
	errors []string
}

func (t *trial) Errorf(format string, args ...any) {
	t.errors = append(t.errors, fmt.Sprintf(format, args...))
}

// undisturbed makes a check. What comes out of a veth waits in a queue of its
// CPU, which all namespaces share and others may have filled: if the check
// finds an error and the kernel has thrown frames away meanwhile, it is made
// again.
func undisturbed(t *testing.T, check func(tb testing.TB)) {
	t.Helper()
	for attempt := 1; ; attempt++ {
		before := thrownAway(t)
		try := &trial{TB: t}
		check(try)
		if len(try.errors) == 0 {
			return
		}
		if attempt < 10 && thrownAway(t) != before {
			continue
		}
		for _, e := range try.errors {
			t.Errorf("%s", e)
		}
		return
	}
}

// thrownAway returns how many frames the CPUs' full queues have refused.
func thrownAway(tb testing.TB) (sum uint64) {
	tb.Helper()
	stat, err := os.ReadFile("/proc/net/softnet_stat")
	if err != nil {
		tb.Fatal(err)
	}
	for lines := bufio.NewScanner(bytes.NewReader(stat)); lines.Scan(); {
		var processed, dropped uint64
		if _, err := fmt.Sscanf(lines.Text(), "%x %x", &processed, &dropped); err != nil {
			tb.Fatalf("parse softnet_stat: %v", err)
		}
		sum += dropped
	}
	return sum
}
