package main

import (
	"fmt"
	"runtime/debug"

	"github.com/xvlan/xvlan/bpf"
)

// version tells what this binary was built from.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

func longVersion() string { return fmt.Sprintf("xvlan %s, map schema %d", version(), bpf.Schema) }
