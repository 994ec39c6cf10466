// Command xvlan-netavark is a plugin for podman's network stack, see package
// netavark. Podman calls the driver by the name of this file.
package main

import (
	"os"
	"runtime"
	"runtime/debug"

	"github.com/xvlan/xvlan/netavark"
)

func main() {
	runtime.LockOSThread() // the network namespace belongs to the thread
	version := "(devel)"
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		version = info.Main.Version
	}
	os.Exit(netavark.Run(os.Args[1:], os.Stdin, os.Stdout, version))
}
