package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/loader"
	"github.com/xvlan/xvlan/maps"
)

// demoNode is one network namespace of the demonstration: the wire's far end
// or a sub-interface.
type demoNode struct {
	name string
	kind maps.Kind // 0: the wire
	mode maps.Mode
	ip4  netip.Prefix
	ip6  netip.Prefix
}

// The addresses are those kept for documentation, RFC 5737 and RFC 3849.
var demoNodes = []demoNode{
	{"wire", 0, 0, netip.MustParsePrefix("192.0.2.254/24"), netip.MustParsePrefix("2001:db8::254/64")},
	{"web", maps.Macvlan, maps.Bridge, netip.MustParsePrefix("192.0.2.11/24"), netip.MustParsePrefix("2001:db8::11/64")},
	{"db", maps.Macvlan, maps.Bridge, netip.MustParsePrefix("192.0.2.12/24"), netip.MustParsePrefix("2001:db8::12/64")},
	{"dns", maps.Ipvlan, maps.L2, netip.MustParsePrefix("192.0.2.13/24"), netip.MustParsePrefix("2001:db8::13/64")},
	{"log", maps.Ipvlan, maps.L2, netip.MustParsePrefix("192.0.2.14/24"), netip.MustParsePrefix("2001:db8::14/64")},
}

const (
	demoHostIP = "192.0.2.1/24"
	demoParent = "eth0"
	demoPings  = 5
)

// demo holds what has to be cleaned up.
type demo struct {
	*app
	ctx    context.Context
	home   netns.NsHandle
	prefix string
	spaces map[string]netns.NsHandle
}

func (a *app) demoCmd() *cobra.Command {
	var datapath string
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show it at work in namespaces made for it, and removed at the end",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			dp, err := parseDatapath(datapath)
			if err != nil {
				return err
			}
			return a.demo(dp)
		},
	}
	cmd.Flags().StringVar(&datapath, "datapath", "", "rung to stand on: xdp or tc")
	return cmd
}

func (a *app) demo(dp loader.Datapath) error {
	if dp == loader.Kernel {
		return usagef("datapath kernel: the demonstration mixes macvlan and ipvlan on one parent, which the kernel's drivers cannot")
	}
	if _, err := exec.LookPath("ping"); err != nil {
		return fmt.Errorf("find ping: %w; it is in the package iputils-ping", err)
	}
	if a.netns != "" {
		return usagef("netns: the demonstration makes namespaces of its own; leave -n out")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	home, err := netns.Get()
	if err != nil {
		return fmt.Errorf("open own netns: %w", err)
	}
	d := &demo{app: a, ctx: ctx, home: home, prefix: fmt.Sprintf("xvdemo%d-", os.Getpid()), spaces: map[string]netns.NsHandle{}}
	err = d.build(dp)
	if err == nil {
		err = d.talk()
	}
	if err := errors.Join(err, d.cleanup()); err != nil {
		return err
	}
	_, err = fmt.Fprintln(a.out, "Everything the demonstration made is removed again.")
	return err
}

// space makes a named namespace with its loopback device up.
func (d *demo) space(name string) error {
	ns, err := netns.NewNamed(d.prefix + name) // and enters it
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("make netns: %w: run it as root", loader.ErrPrivilege)
	}
	if err != nil {
		return fmt.Errorf("make netns %s: %w", name, err)
	}
	d.spaces[name] = ns
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}

// build makes a host with a parent, a wire behind it, and the sub-interfaces.
func (d *demo) build(dp loader.Datapath) error {
	for _, n := range demoNodes {
		if err := d.space(n.name); err != nil {
			return err
		}
	}
	if err := d.space("host"); err != nil { // and stay in it
		return err
	}
	if err := d.cable(); err != nil {
		return err
	}
	return d.with(func(h *loader.Host) error {
		for _, n := range demoNodes {
			if n.kind == 0 {
				continue
			}
			err := h.Add(loader.LinkSpec{
				Parent: demoParent, Name: n.name, Kind: n.kind, Mode: n.mode, Netns: d.prefix + n.name,
				Addrs: []netip.Prefix{n.ip4, n.ip6}, Up: true, Datapath: dp,
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// cable connects the host's parent with the wire.
func (d *demo) cable() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = demoParent
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "wire", PeerNamespace: netlink.NsFd(d.spaces["wire"])}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("make the wire: %w", err)
	}
	if err := d.address(demoParent, demoHostIP); err != nil {
		return err
	}
	if err := netns.Set(d.spaces["wire"]); err != nil {
		return fmt.Errorf("enter netns: %w", err)
	}
	wire := demoNodes[0]
	if err := d.address("wire", wire.ip4.String(), wire.ip6.String()); err != nil {
		return err
	}
	if err := netns.Set(d.spaces["host"]); err != nil {
		return fmt.Errorf("enter netns: %w", err)
	}
	return nil
}

func (d *demo) address(dev string, cidrs ...string) error {
	l, err := netlink.LinkByName(dev)
	if err != nil {
		return fmt.Errorf("find %s: %w", dev, err)
	}
	for _, cidr := range cidrs {
		addr, err := netlink.ParseAddr(cidr)
		if err != nil {
			return fmt.Errorf("parse %s: %w", cidr, err)
		}
		addr.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(l, addr); err != nil {
			return fmt.Errorf("add %s to %s: %w", cidr, dev, err)
		}
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("set %s up: %w", dev, err)
	}
	return nil
}

// talk lets all ping all and prints what came of it.
func (d *demo) talk() error {
	fmt.Fprintf(d.out, "A host's parent %s with four sub-interfaces of two kinds, and a wire behind it.\n\n", demoParent)
	fmt.Fprintf(d.out, "Median round-trip time in µs, IPv4 / IPv6, of %d pings:\n\n", demoPings)
	w := tabwriter.NewWriter(d.out, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(w, "from \\ to\t")
	for _, to := range demoNodes {
		fmt.Fprintf(w, "%s\t", to.name)
	}
	fmt.Fprintln(w)
	reached, asked := 0, 0
	for _, from := range demoNodes {
		fmt.Fprintf(w, "%s\t", from.name)
		for _, to := range demoNodes {
			if from.name == to.name {
				fmt.Fprint(w, "·\t")
				continue
			}
			v4, ok4 := d.ping(from.name, to.ip4.Addr())
			v6, ok6 := d.ping(from.name, to.ip6.Addr())
			fmt.Fprintf(w, "%s / %s\t", v4, v6)
			asked += 2
			for _, ok := range []bool{ok4, ok6} {
				if ok {
					reached++
				}
			}
			if d.ctx.Err() != nil {
				return errors.New("interrupted")
			}
		}
		fmt.Fprintln(w)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(d.out)
	if err := d.summary(); err != nil {
		return err
	}
	if reached < asked {
		return fmt.Errorf("%d of %d pairs did not reach each other", asked-reached, asked)
	}
	fmt.Fprintf(d.out, "\nAll %d pairs reached each other.\n", asked)
	return nil
}

var rttPattern = regexp.MustCompile(`time=([0-9.]+) ms`)

// ping returns the median round-trip time in µs from one namespace.
func (d *demo) ping(from string, to netip.Addr) (string, bool) {
	if err := netns.Set(d.spaces[from]); err != nil {
		return err.Error(), false
	}
	defer func() { _ = netns.Set(d.spaces["host"]) }() // the next use finds out
	// A thread's child starts in its namespace. One answer is awaited for
	// the address to resolve; IPv6 may have to wait for its own first.
	warm := exec.CommandContext(d.ctx, "ping", "-c", "1", "-w", "5", to.String())
	if err := warm.Run(); err != nil {
		return "lost", false
	}
	out, err := exec.CommandContext(d.ctx, "ping", "-c", fmt.Sprint(demoPings), "-i", "0.002", "-W", "1", to.String()).Output()
	if err != nil {
		return "lost", false
	}
	var times []float64
	for _, m := range rttPattern.FindAllStringSubmatch(string(out), -1) {
		var ms float64
		if _, err := fmt.Sscan(m[1], &ms); err == nil {
			times = append(times, ms*1000)
		}
	}
	if len(times) < demoPings {
		return "lost", false
	}
	slices.Sort(times)
	return fmt.Sprintf("%.0f", times[len(times)/2]), true
}

// summary prints every sub-interface and its counters.
func (d *demo) summary() error {
	if err := netns.Set(d.spaces["host"]); err != nil {
		return fmt.Errorf("enter netns: %w", err)
	}
	return d.with(func(h *loader.Host) error {
		links, err := h.Links()
		if err != nil {
			return err
		}
		w := tabwriter.NewWriter(d.out, 0, 8, 2, ' ', 0)
		fmt.Fprintln(w, "NAME\tTYPE\tMODE\tMAC ON THE WIRE\tADDRESSES\tRX PACKETS\tTX PACKETS\tDROPS")
		for _, l := range links {
			var addrs []string
			for _, a := range l.Addrs {
				if !a.Addr.IsLinkLocalUnicast() {
					addrs = append(addrs, a.Addr.String())
				}
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%d\t%d\n", l.Name, l.Kind, l.Mode, l.WireMAC,
				strings.Join(addrs, " "), l.Stats[maps.RX].Packets, l.Stats[maps.TX].Packets, l.Stats.Drops().Packets)
		}
		if err := w.Flush(); err != nil {
			return err
		}
		if len(links) > 0 {
			fmt.Fprintf(d.out, "\nRung: %s (%s)\n", links[0].Rung, links[0].Rung.Reason)
		}
		return nil
	})
}

// cleanup detaches the parent and removes the namespaces, devices and all.
func (d *demo) cleanup() error {
	var errs []error
	if host, ok := d.spaces["host"]; ok {
		if err := netns.Set(host); err != nil {
			errs = append(errs, fmt.Errorf("enter netns: %w", err))
		} else {
			errs = append(errs, d.with(func(h *loader.Host) error {
				if err := h.Detach(demoParent); err != nil && !errors.Is(err, loader.ErrNotFound) {
					return err
				}
				return nil
			}))
		}
	}
	errs = append(errs, netns.Set(d.home))
	for name, ns := range d.spaces {
		errs = append(errs, ns.Close(), netns.DeleteNamed(d.prefix+name))
	}
	return errors.Join(append(errs, d.home.Close())...)
}
