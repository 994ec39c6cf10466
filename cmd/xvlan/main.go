// Command xvlan makes and shows sub-interfaces: macvlan and ipvlan on BPF.
package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/vishvananda/netns"

	"github.com/xvlan/xvlan/loader"
)

// app is one run of the command, with all that it touches outside the kernel.
type app struct {
	in       io.Reader
	out, err io.Writer

	netns   string
	json    bool
	details bool
	stats   bool
	verbose bool

	logFormat string
	logLevel  string // "": as verbose says

	started bool // the words were understood, and a command has begun
}

func main() {
	// The network namespace belongs to the thread: stay on this one.
	runtime.LockOSThread()
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// guardNegative lets a negative number, which ip takes as any other, pass for no
// flag: a blank stands before it.
func guardNegative(args []string) []string {
	args = slices.Clone(args)
	for i, arg := range args {
		if _, err := strconv.Atoi(arg); err == nil && arg[0] == '-' && i > 0 && args[i-1] == "bclim" {
			args[i] = " " + arg
		}
	}
	return args
}

// run is the whole command, callable from tests; its thread must be locked
// when -n is among the arguments.
func run(args []string, stdout, stderr io.Writer) int {
	a := &app{in: os.Stdin, out: stdout, err: stderr}
	root := a.root()
	ownLetters(root, args)
	root.SetArgs(guardNegative(args))
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.Execute()
	if err != nil {
		a.fail(err, args)
	}
	return a.exitCode(err)
}

// exitText tells the exit codes.
const exitText = `It ends with 0 when all is done, with 1 when something has failed, and with 2
when the words typed make no sense; then nothing was done. What went wrong
stands in one line on standard error.`

func (a *app) root() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "xvlan",
		Short: "macvlan and ipvlan on BPF",
		Long: `xvlan gives containers and VMs their own place on the physical network, as the
kernel's macvlan and ipvlan do, by BPF programs on the parent device and on
each sub-interface. It takes the words of ip link:

  xvlan link add link eth0 name c1 type macvlan mode bridge
  ip link set c1 netns ns1

` + exitText,
		PersistentPreRun: func(*cobra.Command, []string) { a.started = true },
		SilenceUsage:     true,
		SilenceErrors:    true,
	}
	cmd.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return fmt.Errorf("%w; see `%s --help`: %w", err, c.CommandPath(), errUsage)
	})
	f := cmd.PersistentFlags()
	f.StringVarP(&a.netns, "netns", "n", "", "act in network namespace `NETNS`, as ip -n does")
	f.BoolVarP(&a.json, "json", "j", false, "print JSON")
	f.BoolVarP(&a.details, "details", "d", false, "show more")
	f.BoolVarP(&a.stats, "statistics", "s", false, "show counters")
	f.BoolVarP(&a.verbose, "verbose", "v", false, "log what is done, and verifier logs in full")
	f.Var(choice{&a.logFormat, []string{"text", "json"}}, "log-format", "how to log, and to say what went wrong (default text)")
	f.Var(choice{&a.logLevel, []string{"debug", "info", "warn", "error"}}, "log-level", "what to log, at least (default warn)")
	cmd.AddCommand(
		a.linkCmd(), a.parentCmd(), a.applyCmd(), a.configCmd(),
		a.topCmd(), a.monitorCmd(), a.captureCmd(), a.traceCmd(),
		a.probeCmd(), a.benchCmd(), a.demoCmd(),
		a.serveCmd(),
		a.manCmd(), a.versionCmd(),
	)
	cmd.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	completeFlags(cmd)
	return cmd
}

func (a *app) versionCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(a.out, longVersion())
			return err
		},
	}
}

// host opens the loader in the namespace asked for.
func (a *app) host() (*loader.Host, error) {
	if a.netns != "" {
		ns, err := netns.GetFromName(a.netns)
		if strings.Contains(a.netns, "/") {
			ns, err = netns.GetFromPath(a.netns)
		}
		if err != nil {
			return nil, fmt.Errorf("netns %s: %w; `ip netns` lists the named ones", a.netns, err)
		}
		defer ns.Close()
		if err := netns.Set(ns); err != nil {
			return nil, fmt.Errorf("enter netns %s: %w", a.netns, err)
		}
	}
	return loader.Open(a.logger())
}

// with runs fn on the host.
func (a *app) with(fn func(*loader.Host) error) error {
	h, err := a.host()
	if err != nil {
		return err
	}
	defer h.Close()
	return fn(h)
}
