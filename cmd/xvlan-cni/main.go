// Command xvlan-cni is the CNI plugin: container runtimes run it, without
// arguments, to have sub-interfaces made and removed.
//
//	xvlan-cni install DIRECTORY
//
// puts it where they look for it.
package main

import (
	"fmt"
	"os"

	"github.com/xvlan/xvlan/cni"
)

func main() {
	if len(os.Args) == 1 {
		cni.Main()
		return
	}
	if len(os.Args) != 3 || os.Args[1] != "install" {
		fmt.Fprintln(os.Stderr, "xvlan-cni: a container runtime calls it without arguments; type `xvlan-cni install /opt/cni/bin` to put it there")
		os.Exit(2)
	}
	if err := cni.Install(os.Args[2], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "xvlan-cni:", err)
		os.Exit(1)
	}
}
