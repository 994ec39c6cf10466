//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/xvlan/xvlan/lab/vm/spec"
	"golang.org/x/sys/unix"
)

var (
	errTimeout = errors.New("time is up")
	errDone    = errors.New("guest is done") // the good end
	errDied    = errors.New("machine ended before the command did")
)

// kernelArgs make the kernel boot quickly and end the machine when it dies. Its
// warnings reach the console.
const kernelArgs = "console=ttyS0 loglevel=5 panic=-1 oops=panic reboot=t nokaslr mitigations=off " +
	"tsc=reliable no_timer_check random.trust_cpu=on audit=0 apparmor=0 selinux=0 " +
	"rcupdate.rcu_expedited=1 raid=noautodetect net.ifnames=0"

// consoleTail is how much of the console is kept for a failure.
const consoleTail = 64 << 10

// The descriptors that QEMU is started with: it writes to all but the last.
const (
	consoleFd = 3 + iota
	stdoutFd
	stderrFd
	resultFd
	initrdFd
)

// qemuArgs returns QEMU's command line.
func qemuArgs(o options, vmlinux string) []string {
	cmdline := kernelArgs
	if o.verbose {
		cmdline = strings.Replace(cmdline, "loglevel=5", "loglevel=7", 1)
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-M", "q35", "-cpu", "qemu64,+rdrand", "-m", fmt.Sprint(o.mem),
		"-kernel", vmlinux, "-initrd", fmt.Sprintf("/dev/fd/%d", initrdFd), "-append", cmdline,
		"-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap",
		"-device", "virtio-9p-pci,fsdev=root,mount_tag=" + spec.RootTag,
		"-chardev", fmt.Sprintf("file,id=console,path=/dev/fd/%d", consoleFd), "-serial", "chardev:console",
		"-device", "virtio-serial-pci",
	}
	if o.icount {
		args = append(args, "-accel", "tcg,thread=single", "-smp", "1",
			"-icount", fmt.Sprintf("shift=%d,sleep=off", o.icountShift))
	} else {
		args = append(args, "-accel", "tcg,thread=multi", "-smp", fmt.Sprint(o.smp))
	}
	for fd, name := range map[int]string{
		stdoutFd: spec.StdoutPort, stderrFd: spec.StderrPort, resultFd: spec.ResultPort,
	} {
		args = append(args,
			"-chardev", fmt.Sprintf("file,id=%s,path=/dev/fd/%d", name, fd),
			"-device", fmt.Sprintf("virtserialport,chardev=%s,name=%s", name, name))
	}
	for i := range o.nics {
		args = append(args,
			"-netdev", fmt.Sprintf("hubport,id=nic%d,hubid=%d", i, i/2),
			"-device", fmt.Sprintf("virtio-net-pci,netdev=nic%d,mac=52:54:00:00:00:%02x", i, i+1))
	}
	return args
}

// A guest is a running machine seen from outside.
type guest struct {
	stdout, stderr counter
	console        tail
	result         spec.Result
	copies         sync.WaitGroup
}

// boot runs the machine to its end and returns the command's exit code.
func boot(ctx context.Context, o options, qemu, vmlinux string, initrd *os.File) (int, error) {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	g := &guest{stdout: counter{w: os.Stdout}, stderr: counter{w: os.Stderr}}
	if o.verbose {
		g.console.also = os.Stderr
	}
	var complaints bytes.Buffer
	cmd := exec.CommandContext(ctx, qemu, qemuArgs(o, vmlinux)...)
	cmd.Stderr = &complaints
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	for _, read := range []func(io.Reader) error{ // in the order of their descriptors
		func(r io.Reader) error { return copyAll(&g.console, r) },
		func(r io.Reader) error { return copyAll(&g.stdout, r) },
		func(r io.Reader) error { return copyAll(&g.stderr, r) },
		func(r io.Reader) error { return g.awaitResult(ctx, r, end) },
	} {
		if err := g.pipe(cmd, read, end); err != nil {
			return 0, err
		}
	}
	ends := cmd.ExtraFiles
	cmd.ExtraFiles = append(cmd.ExtraFiles, initrd)
	err := cmd.Start()
	for _, f := range ends { // their other ends end with QEMU
		f.Close()
	}
	if err != nil {
		return 0, fmt.Errorf("start QEMU: %w", err)
	}
	waited := cmd.Wait()
	g.copies.Wait()
	cause := context.Cause(ctx)
	if errors.Is(cause, errDone) {
		g.reportTrouble()
		return g.result.Code, nil
	}
	fmt.Fprintf(os.Stderr, "%s%s", &complaints, g.console.bytes)
	if cause == nil {
		cause = errors.Join(errDied, waited)
	}
	return 0, cause
}

// pipe gives QEMU one more descriptor to write to and reads from its other end.
func (g *guest) pipe(cmd *exec.Cmd, read func(io.Reader) error, end context.CancelCauseFunc) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd.ExtraFiles = append(cmd.ExtraFiles, w)
	g.copies.Go(func() {
		defer r.Close()
		if err := read(r); err != nil {
			end(err)
		}
	})
	return nil
}

// awaitResult reads the result and ends the machine when all of the command's
// output has come through.
func (g *guest) awaitResult(ctx context.Context, r io.Reader, end context.CancelCauseFunc) error {
	err := json.NewDecoder(r).Decode(&g.result)
	if errors.Is(err, io.EOF) {
		return nil // the machine ended without one
	}
	if err != nil {
		return fmt.Errorf("read result: %w", err)
	}
	for g.stdout.n.Load() < g.result.Stdout || g.stderr.n.Load() < g.result.Stderr {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Millisecond):
		}
	}
	end(errDone)
	return nil
}

// reportTrouble prints the console if the kernel has complained meanwhile.
func (g *guest) reportTrouble() {
	if g.console.also != nil {
		return // it has been seen
	}
	for _, sign := range []string{"cut here", "BUG:", "Call Trace"} {
		if bytes.Contains(g.console.bytes, []byte(sign)) {
			fmt.Fprintf(os.Stderr, "vm: the kernel complained:\n%s", g.console.bytes)
			return
		}
	}
}

func copyAll(w io.Writer, r io.Reader) error {
	_, err := io.Copy(w, r)
	return err
}

// A counter passes on what is written and counts it.
type counter struct {
	w io.Writer
	n atomic.Int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n.Add(int64(n))
	return n, err
}

// A tail keeps the last of what is written.
type tail struct {
	bytes []byte
	also  io.Writer
}

func (t *tail) Write(p []byte) (int, error) {
	t.bytes = append(t.bytes, p...)
	if len(t.bytes) > 2*consoleTail {
		t.bytes = append([]byte(nil), t.bytes[len(t.bytes)-consoleTail:]...)
	}
	if t.also != nil {
		return t.also.Write(p)
	}
	return len(p), nil
}
