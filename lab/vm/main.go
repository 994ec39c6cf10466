//go:build linux

// Command vm runs a command on another kernel: it boots a Debian kernel in QEMU,
// with this machine's files as the guest's, runs the command there in the same
// folder with the same environment, and ends with its output and exit code.
//
//	go run ./lab/vm -kernel 6.1 -- uname -r
//	go test -exec "$(pwd)/vm -kernel 6.12" ./...
//
// # What the guest is
//
// QEMU interprets its instructions (TCG), so it needs no /dev/kvm, and it is up
// in a few seconds: the kernel is entered directly (PVH), with no firmware menu
// and no boot loader, and the only thing in its initramfs is a static Go
// program, lab/vm/init, with the modules needed to reach the root folder.
//
// That is this machine's root folder by 9p, read-only, under an overlay in
// memory: the command sees every file of the host, test binaries and sources
// included, and may write anywhere, but nothing it writes outlives it. Freshly
// mounted are /proc, /sys, /dev, /run, the BPF file system on /sys/fs/bpf,
// cgroup2, tracefs and debugfs. There is no udev and no other service; modules
// load on demand by modprobe; lo is up. The command is root. XVLAN_VM in its
// environment says the kernel it was asked to run on.
//
// It has one CPU unless -smp says otherwise. With more, QEMU (7.2) may run on one
// what another has just patched away: a kernel whose tc programs and packet
// sockets come and go then soon dies of an int3.
//
// Three virtio serial ports carry standard output, standard error and the exit
// code, so binary output arrives as it was written; the serial console is kept
// aside and printed when there is no exit code or the kernel has complained.
//
// # Kernels
//
// A kernel comes from the newest Debian package of the wanted series,
// downloaded and unpacked, not installed, into a folder of the user's cache.
// Programs that are missing are installed from their Debian packages.
//
// # Counting instructions
//
// With -icount the guest has one CPU whose clock advances a nanosecond an
// instruction (2^shift nanoseconds with -icount-shift), and skips what it would
// sleep: times measured in the guest are counts of instructions executed, and
// repeat.
//
// # Network cards
//
// With -net the guest has that many virtio-net cards, eth0 on, joined by twos as
// by a cable: eth0 with eth1, eth2 with eth3. Filters of the cards work as real
// ones' do.
//
// # Exit codes
//
// The command's own; 128 and the signal's number if one ended it; 124 when the
// time was up; 125 when the machine did not come to run the command to its end.
// A machine that dies is tried once more, within the same time limit: QEMU's
// interpreter has faults of its own, rare ones. That it was is said on standard
// error.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

const (
	exitTimeout = 124
	exitFailure = 125
)

// options is what the flags say.
type options struct {
	kernel      string
	timeout     time.Duration
	mem         int
	smp         int
	icount      bool
	icountShift int
	nics        int
	verbose     bool
	args        []string
}

func main() {
	// QEMU is to die with the thread that started it, so that must be the one
	// that lives longest.
	runtime.LockOSThread()
	var o options
	flag.StringVar(&o.kernel, "kernel", "6.12", "kernel series, as 6.12 or 6.1")
	flag.DurationVar(&o.timeout, "timeout", 10*time.Minute, "time limit, boot included")
	flag.IntVar(&o.mem, "mem", 2048, "memory in MiB")
	flag.IntVar(&o.smp, "smp", 1, "number of CPUs")
	flag.BoolVar(&o.icount, "icount", false, "count instructions; one CPU")
	flag.IntVar(&o.icountShift, "icount-shift", 0, "an instruction takes 2^n nanoseconds")
	flag.IntVar(&o.nics, "net", 0, "number of virtio network cards, joined by twos")
	flag.BoolVar(&o.verbose, "v", false, "print what the kernel says")
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: vm [flags] [--] command [args...]")
		flag.PrintDefaults()
	}
	flag.Parse()
	o.args = flag.Args()
	if len(o.args) == 0 {
		flag.Usage()
		os.Exit(2)
	}
	code, err := run(o)
	if err != nil {
		fmt.Fprintf(os.Stderr, "vm: %v\n", err)
	}
	os.Exit(code)
}

// run gets what the machine needs, boots it and returns the exit code.
func run(o options) (int, error) {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
	defer stop()
	k, err := getKernel(ctx, o.kernel)
	if err != nil {
		return exitFailure, fmt.Errorf("get kernel %s: %w", o.kernel, err)
	}
	qemu, err := needTool(ctx, "qemu-system-x86_64", "qemu-system-x86")
	if err != nil {
		return exitFailure, err
	}
	initrd, err := makeInitrd(ctx, o, k)
	if err != nil {
		return exitFailure, fmt.Errorf("make initramfs: %w", err)
	}
	defer initrd.Close()

	ctx, cancel := context.WithTimeoutCause(ctx, o.timeout, errTimeout)
	defer cancel()
	code, err := boot(ctx, o, qemu, k.vmlinux, initrd)
	if errors.Is(err, errDied) {
		fmt.Fprintf(os.Stderr, "vm: %v; trying once more\n", err)
		code, err = boot(ctx, o, qemu, k.vmlinux, initrd)
	}
	if errors.Is(err, errTimeout) {
		return exitTimeout, fmt.Errorf("%w after %v", err, o.timeout)
	}
	if err != nil {
		return exitFailure, err
	}
	return code, nil
}
