// Package cni is the CNI plugin: what container runtimes call by the verbs of
// the Container Network Interface, versions 0.3.0 to 1.1.0 of its specification.
// Sub-interfaces are made by package loader, addresses come from IPAM plugins.
// A sub-interface is known by its owner, which names network, container and
// device; nothing else is kept of it.
package cni

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/containernetworking/cni/pkg/invoke"
	cnins "github.com/containernetworking/cni/pkg/ns"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/containernetworking/plugins/pkg/ns"

	"github.com/xvlan/xvlan/loader"
)

// versions are those of the specification that are spoken.
var versions = version.PluginSupports("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")

// codeNotAvailable is STATUS's code for a plugin that cannot serve an ADD.
const codeNotAvailable = 50

// Error codes of the plugin's own, which begin at 100.
const (
	codeExists    = 100 + iota // loader.ErrExists: a name, MAC or address is somebody else's
	codeBusy                   // loader.ErrBusy
	codePrivilege              // loader.ErrPrivilege
	codeTransient              // loader.ErrTransient
)

// Main is the plugin's process: the verb in CNI_COMMAND, the configuration on
// standard input, and the result or the error on standard output.
func Main() {
	// The network namespace belongs to the thread: stay on this one.
	runtime.LockOSThread()
	about := "xvlan-cni (devel)"
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		about = "xvlan-cni " + info.Main.Version
	}
	coded := func(verb func(*skel.CmdArgs) error) func(*skel.CmdArgs) error {
		return func(args *skel.CmdArgs) error { return withCode(verb(args)) }
	}
	skel.PluginMainFuncs(skel.CNIFuncs{
		Add: coded(add), Del: coded(del), Check: coded(check), GC: coded(gc), Status: coded(status),
	}, versions, about)
}

// withCode gives an error its number, and keeps all of what it says.
func withCode(err error) error {
	if err == nil {
		return nil
	}
	code := types.ErrInternal
	if known, ok := errors.AsType[*types.Error](err); ok {
		code = known.Code
	} else {
		for _, c := range []struct {
			err  error
			code uint
		}{
			{loader.ErrInvalid, types.ErrInvalidNetworkConfig}, {loader.ErrNotFound, types.ErrInvalidNetworkConfig},
			{loader.ErrUnsupported, types.ErrUnsupportedField}, {loader.ErrExists, codeExists}, {loader.ErrBusy, codeBusy},
			{loader.ErrPrivilege, codePrivilege}, {loader.ErrTransient, codeTransient},
		} {
			if errors.Is(err, c.err) {
				code = c.code
				break
			}
		}
	}
	return types.NewError(code, err.Error(), "")
}

// call is one run of the plugin.
type call struct {
	*conf
	args  *skel.CmdArgs
	netns ns.NetNS // the container's; nil where there is none any more
}

// begin reads the configuration and opens the container's namespace.
func begin(args *skel.CmdArgs) (*call, error) {
	c, err := parse(args)
	if err != nil {
		return nil, err
	}
	here, same := cnins.CheckNetNS(args.Netns)
	if same != nil {
		return nil, same
	}
	if override := strings.ToUpper(args.NetnsOverride); here && override != "TRUE" && override != "1" {
		return nil, types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_NETNS %s: is the plugin's own network namespace", args.Netns), "")
	}
	netns, err := ns.GetNS(args.Netns)
	if err != nil {
		return nil, types.NewError(types.ErrUnknownContainer, fmt.Sprintf("CNI_NETNS %s: %v", args.Netns, err), "")
	}
	return &call{c, args, netns}, nil
}

// inside runs fn in the container's namespace.
func (c *call) inside(fn func() error) error {
	return c.netns.Do(func(ns.NetNS) error { return fn() })
}

// host runs fn with the loader in the namespace that the master is in, or was.
func (c *call) host(fn func(*loader.Host) error) error {
	if c.LinkInContainer && c.netns != nil {
		return c.inside(func() error { return withHost(fn) })
	}
	return withHost(fn)
}

// withHost runs fn with the loader in the thread's namespace. What is not as it
// should be, but no reason to fail, goes to standard error, for the runtime's log.
func withHost(fn func(*loader.Host) error) error {
	h, err := loader.Open(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
	if err != nil {
		return err
	}
	defer h.Close()
	return fn(h)
}

// selector means the sub-interface that the call is about.
func (c *call) selector() loader.Selector {
	return loader.Selector{Owner: c.owner, Name: c.args.IfName, Netns: c.args.Netns}
}

// exec calls the IPAM plugin, if there is one, by a function of package invoke.
func (c *conf) exec(args *skel.CmdArgs, fn func(context.Context, string, []byte, invoke.Exec) error) error {
	if c.IPAM.Type == "" {
		return nil
	}
	if err := fn(context.Background(), c.IPAM.Type, args.StdinData, nil); err != nil {
		return fmt.Errorf("ipam %s: %w", c.IPAM.Type, err)
	}
	return nil
}

// usesDevice tells whether the IPAM plugin works by the device. The specification
// lets none count on it, and the reference plugin ptp has none yet when it asks.
func (c *conf) usesDevice() bool { return c.IPAM.Type == "dhcp" }

// findIPAM makes sure of the IPAM plugin before anything is made.
func (c *conf) findIPAM(args *skel.CmdArgs) error {
	if c.IPAM.Type == "" {
		return nil
	}
	if _, err := invoke.FindInPath(c.IPAM.Type, filepath.SplitList(args.Path)); err != nil {
		return invalid("ipam.type: %q: %v", c.IPAM.Type, err)
	}
	return nil
}

// previous is the result of the plugin before this one in a chain, or in CHECK of
// the whole chain; nil without.
func (c *conf) previous() (*current.Result, error) {
	if c.RawPrevResult == nil {
		return nil, nil
	}
	if err := version.ParsePrevResult(&c.PluginConf); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, fmt.Sprintf("prevResult: %v", err), "")
	}
	result, err := current.NewResultFromResult(c.PrevResult)
	if err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, fmt.Sprintf("prevResult: %v", err), "")
	}
	return result, nil
}
