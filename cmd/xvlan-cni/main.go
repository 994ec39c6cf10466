// Command xvlan-cni is the CNI plugin: container runtimes run it to have
// sub-interfaces made and removed.
package main

import "github.com/xvlan/xvlan/cni"

func main() { cni.Main() }
