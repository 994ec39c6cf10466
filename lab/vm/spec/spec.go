// Package spec is what the runner outside a virtual machine and the init inside
// it tell each other.
package spec

// The files of the initramfs and the names of the virtio objects.
const (
	File       = "/spec.json"
	ModulesDir = "/modules" // to be loaded in the order of their names
	RootTag    = "root"     // the 9p share
	StdoutPort = "stdout"
	StderrPort = "stderr"
	ResultPort = "result"
)

// A Spec says what to run in the guest.
type Spec struct {
	Args    []string
	Env     []string
	Dir     string
	Modules string   // the folder with the kernel's modules, as the host names it
	Load    []string // modules to load by modprobe before the command
}

// A Result is the last thing a guest says. The ports are not kept in step with
// each other, so it carries how much the other two have been given.
type Result struct {
	Code           int
	Stdout, Stderr int64
}
