package referee

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/xvlan/xvlan/lab"
)

// A driver makes sub-interfaces by ip's words.
type driver struct {
	name    string
	program string
	args    []string // before the words
}

// The kernel's drivers, and xvlan on its rungs, on tc also with netkit legs. A veth
// parent is given XDP only on request.
var (
	kernelDriver = driver{name: "ip", program: "ip", args: []string{"link", "add"}}
	rungs        = []string{"tc", "netkit", "xdp", "kernel"}
)

func xvlanDriver(tb testing.TB, rung string) driver {
	args := []string{"link", "add", "--datapath", rung}
	if rung == "netkit" {
		args = []string{"link", "add", "--datapath", "tc", "leg", "netkit"}
	}
	return driver{name: rung, program: xvlanBin(tb), args: args}
}

// errNotBuilt is xvlan's answer to words that it does not know yet.
var errNotBuilt = errors.New("not built yet")

// wrongWords is the exit status by which it says so.
const wrongWords = 2

// add makes a sub-interface.
func (d driver) add(tb testing.TB, ns *lab.Netns, words ...string) error {
	tb.Helper()
	out, err := ns.Try(tb, d.program, append(append([]string(nil), d.args...), words...)...)
	if exit := (*exec.ExitError)(nil); d.program != "ip" && errors.As(err, &exit) && exit.ExitCode() == wrongWords {
		return fmt.Errorf("%w: %s", errNotBuilt, strings.TrimSpace(out))
	}
	return err
}

// follow lets xvlan see what has been done without it: the host's addresses, and
// those that it is to have routes to.
func (d driver) follow(tb testing.TB, ns *lab.Netns) {
	tb.Helper()
	if d.program != "ip" {
		ns.Run(tb, d.program, "link", "show")
	}
}

// detach takes away what xvlan keeps for a parent.
func (d driver) detach(tb testing.TB, ns *lab.Netns) {
	if d.program == "ip" {
		return
	}
	// Devices of the kernel rung have gone with their namespaces.
	if out, err := ns.Try(tb, d.program, "parent", "detach", parentDev); err != nil && !strings.Contains(out, "nothing of xvlan") {
		tb.Errorf("%v", err)
	}
}

// xvlanBin is the program: XVLAN_BIN, or else one built for these tests.
func xvlanBin(tb testing.TB) string {
	tb.Helper()
	if path := os.Getenv("XVLAN_BIN"); path != "" {
		return path
	}
	path, err := buildXvlan()
	if err != nil {
		tb.Fatalf("build xvlan: %v; or name one by XVLAN_BIN", err)
	}
	return path
}

var binDir string // removed by TestMain

var buildXvlan = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "referee")
	if err != nil {
		return "", err
	}
	binDir = dir
	path := filepath.Join(dir, "xvlan")
	cmd := exec.Command("go", "build", "-o", path, "github.com/xvlan/xvlan/cmd/xvlan")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", errors.Join(err, errors.New(string(out)))
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if binDir != "" {
		_ = os.RemoveAll(binDir) // in the temporary folder anyway
	}
	os.Exit(code)
}
