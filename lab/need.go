package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// debianPackages says which Debian package holds a tool, where the two names
// differ.
var debianPackages = map[string]string{
	"bridge":             "iproute2",
	"dhclient":           "isc-dhcp-client",
	"dhcpcd":             "dhcpcd-base",
	"dnsmasq":            "dnsmasq-base",
	"docker":             "docker.io",
	"dockerd":            "docker.io",
	"ip":                 "iproute2",
	"kea-dhcp4":          "kea-dhcp4-server",
	"modprobe":           "kmod",
	"ndisc6":             "ndisc6",
	"nft":                "nftables",
	"ping":               "iputils-ping",
	"qemu-system-x86_64": "qemu-system-x86",
	"rdisc6":             "ndisc6",
	"ss":                 "iproute2",
	"sysctl":             "procps",
	"tc":                 "iproute2",
	"xdp-loader":         "xdp-tools",
}

// NeedRoot skips the test where it is not run by root.
func NeedRoot(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("network namespaces need root")
	}
}

// NeedKernel skips the test where the running kernel is older than the one that
// brought the feature.
func NeedKernel(tb testing.TB, major, minor int, feature string) {
	tb.Helper()
	haveMajor, haveMinor, err := KernelVersion()
	if err != nil {
		tb.Fatalf("%v", err)
	}
	if haveMajor < major || haveMajor == major && haveMinor < minor {
		tb.Skipf("%s needs Linux %d.%d, this is %d.%d", feature, major, minor, haveMajor, haveMinor)
	}
}

// KernelFrom tells whether the kernel is of this version or later.
func KernelFrom(tb testing.TB, major, minor int) bool {
	tb.Helper()
	haveMajor, haveMinor, err := KernelVersion()
	if err != nil {
		tb.Fatal(err)
	}
	return haveMajor > major || haveMajor == major && haveMinor >= minor
}

// KernelVersion returns the first two numbers of the running kernel's release.
func KernelVersion() (major, minor int, err error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return 0, 0, fmt.Errorf("read kernel release: %w", err)
	}
	release := unix.ByteSliceToString(uts.Release[:])
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return 0, 0, fmt.Errorf("parse kernel release %q: %w", release, err)
	}
	return major, minor, nil
}

// NeedTool fails the test where a program is not installed.
func NeedTool(tb testing.TB, name string) {
	tb.Helper()
	if _, err := exec.LookPath(name); err == nil {
		return
	}
	pkg, ok := debianPackages[name]
	if !ok {
		pkg = name
	}
	tb.Fatalf("%s is not installed: apt-get install %s", name, pkg)
}

// HasKind reports whether the kernel can make devices of a kind ("ipvlan",
// "vlan", "netkit" ...) by trying, which also loads the module where there is
// one. It cannot tell for "tun", which netlink does not make.
func HasKind(tb testing.TB, kind string) bool {
	tb.Helper()
	n := NewNetns(tb, "kind")
	Veth(tb, n, "parent", n, "peer")
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "probe"
	attrs.ParentIndex = n.Link(tb, "parent").Attrs().Index
	err := n.handle.LinkAdd(&netlink.GenericLink{LinkAttrs: attrs, LinkType: kind})
	// Kinds that want parameters say EINVAL, unknown ones EOPNOTSUPP.
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EINVAL) {
		tb.Fatalf("add a device of kind %s: %v", kind, err)
	}
	if err := n.remove(); err != nil {
		tb.Fatalf("remove network namespace %s: %v", n.name, err)
	}
	return !errors.Is(err, unix.EOPNOTSUPP)
}

// NeedNetkit skips a test where the kernel has no netkit.
func NeedNetkit(tb testing.TB) {
	tb.Helper()
	if !HasKind(tb, "netkit") {
		tb.Skip("the kernel has no netkit (Linux 6.8, CONFIG_NETKIT)")
	}
}

// Eventually waits for something that the kernel does in its own time, for thirty
// seconds at most; what it is stands in the failure.
func Eventually(tb testing.TB, what string, cond func() bool) {
	tb.Helper()
	const limit, step = 30 * time.Second, 10 * time.Millisecond
	for deadline := time.Now().Add(limit); !cond(); time.Sleep(step) {
		if time.Now().After(deadline) {
			tb.Fatalf("not within %v: %s", limit, what)
		}
	}
}
