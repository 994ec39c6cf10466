package main

import (
	"fmt"
	"runtime/debug"

	"github.com/xvlan/xvlan/bpf"
)

// version tells what this binary was built from.
func version() string {
	v := "(devel)"
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		v = info.Main.Version
	}
	return fmt.Sprintf("xvlan %s, map schema %d", v, bpf.Schema)
}
