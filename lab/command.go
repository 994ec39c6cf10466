package lab

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	commandTime = 2 * time.Minute // a foreground command that takes longer is killed
	pipeTime    = 2 * time.Second // how long a dead command's children may hold its output
)

// Run runs a command in the namespace and returns what it wrote, standard
// output and error together. Unlike `ip netns exec` it stays in the mount
// namespace it is called in. If the command fails, so does the test.
func (n *Netns) Run(tb testing.TB, name string, args ...string) string {
	tb.Helper()
	out, err := n.Try(tb, name, args...)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	return out
}

// Try is Run for commands that may fail.
func (n *Netns) Try(tb testing.TB, name string, args ...string) (string, error) {
	tb.Helper()
	// Clean-ups run commands too, when the test's own context is over.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(tb.Context()), commandTime)
	defer cancel()
	var out Output
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = pipeTime
	err := n.start(tb, cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return out.String(), fmt.Errorf("run %s in %s: %w\n%s", strings.Join(cmd.Args, " "), n.name, err, &out)
	}
	return out.String(), nil
}

// Start starts a command in the namespace and leaves it running until the test
// ends, when it is killed. What it has written so far is had from OutputOf. The
// test may wait for it itself.
func (n *Netns) Start(tb testing.TB, name string, args ...string) *exec.Cmd {
	tb.Helper()
	out := &Output{}
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.WaitDelay = pipeTime
	if err := n.start(tb, cmd); err != nil {
		tb.Fatalf("start %s in %s: %v", strings.Join(cmd.Args, " "), n.name, err)
	}
	tb.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill() // it may have ended by itself
			_ = cmd.Wait()         // "killed" is no news
		}
		if tb.Failed() {
			tb.Logf("%s in %s: %v\n%s", strings.Join(cmd.Args, " "), n.name, cmd.ProcessState, out)
		}
	})
	return cmd
}

// start starts cmd from a thread in the namespace: the child inherits that.
func (n *Netns) start(tb testing.TB, cmd *exec.Cmd) (err error) {
	tb.Helper()
	n.Do(tb, func() { err = cmd.Start() })
	return err
}

// OutputOf returns what a command started with Start has written so far.
func OutputOf(cmd *exec.Cmd) string {
	if out, ok := cmd.Stdout.(*Output); ok {
		return out.String()
	}
	return ""
}

// Output gathers what a command writes and can be read meanwhile.
type Output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}
