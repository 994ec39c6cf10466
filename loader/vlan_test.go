package loader

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/xvlan/xvlan/maps"
)

// vlanned describes a sub-interface in the VLANs of these words.
func (s *site) vlanned(t testing.TB, e *end, words string) LinkSpec {
	t.Helper()
	spec := s.spec(e)
	spec.Netns, spec.Up = e.ns.Name(), true
	spec.VLAN = vlanWords(t, words)
	return spec
}

// vlanWords reads "vlan 10 qinq 20 trunk 0,10".
func vlanWords(t testing.TB, words string) (spec VLANSpec) {
	t.Helper()
	said := map[string]string{}
	for fields := strings.Fields(words); len(fields) > 1; fields = fields[2:] {
		said[fields[0]] = fields[1]
	}
	if err := spec.Parse(said["vlan"], said["qinq"], said["trunk"]); err != nil {
		t.Fatal(err)
	}
	return spec
}

// tables reads what the maps say of VLANs.
func (s *site) tables(t testing.TB) (claimed []maps.VLAN, macs []string, rec maps.Parent) {
	t.Helper()
	s.do(t, func(h *Host) error {
		return h.eachParent(func(_ folder, set *maps.Set, p maps.Parent) error {
			rec = p
			all, err := set.Claimed()
			if err != nil {
				return err
			}
			for v := range all {
				claimed = append(claimed, v)
			}
			keys, err := set.MACs()
			for _, k := range keys {
				macs = append(macs, fmt.Sprintf("%d %s of %d", int32(k.VLAN), k.MAC, k.ID))
			}
			return err
		})
	})
	slices.Sort(claimed)
	slices.Sort(macs)
	return claimed, macs, rec
}

// checkTables compares what the maps say of VLANs with what they should.
func (s *site) checkTables(t testing.TB, vlans, trunks uint32, claimed []maps.VLAN, macs ...string) {
	t.Helper()
	c, m, rec := s.tables(t)
	slices.Sort(macs)
	if rec.VLANs != vlans || rec.Trunks != trunks || !slices.Equal(c, claimed) || !slices.Equal(m, macs) {
		t.Errorf("%d sub-interfaces in VLANs, %d trunks, claimed %v, MACs %q\nwant %d, %d, %v, %q",
			rec.VLANs, rec.Trunks, c, m, vlans, trunks, claimed, macs)
	}
}

var (
	vlanMAC  = net.HardwareAddr{0x02, 0, 0x5e, 0x10, 0, 0x33}
	vlanAddr = netip.MustParsePrefix("10.77.0.50/24")
)

// Keys and claims follow what sub-interfaces are made, changed and removed.
func TestVLANTables(t *testing.T) {
	onRungs(t, []rungCase{onTCX, onClsact}, func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{noIPv6: true})
		add := func(name, words string, mac net.HardwareAddr, addrs ...netip.Prefix) *end {
			e := s.sub(t, name)
			spec := s.vlanned(t, e, words)
			spec.MAC, spec.Addrs = mac, addrs
			s.do(t, func(h *Host) error { return h.Add(spec) })
			return e
		}
		q := maps.NewVLAN(10, 20)
		mac := vlanMAC.String()
		one := add("mac1", "vlan 10", vlanMAC, vlanAddr)
		two := add("mac2", "vlan 10 qinq 20", vlanMAC, vlanAddr)
		s.checkTables(t, 2, 0, []maps.VLAN{10, q}, "10 "+mac+" of 1", fmt.Sprintf("%d %s of 2", q, mac))
		for _, e := range []*end{one, two} {
			if l := s.link(t, e); !slices.Equal(l.Addrs, []LinkAddr{{Addr: vlanAddr.Addr(), Origin: maps.Given}}) {
				t.Errorf("%s has %v", e.name, l.Addrs)
			}
		}
		sel := func(e *end) Selector { return Selector{Name: e.dev, Netns: e.ns.Name()} }
		set := func(e *end, words string) error {
			return s.try(t, func(h *Host) error { return h.SetVLAN(sel(e), vlanWords(t, words)) })
		}
		if err := set(two, "vlan 10"); !errors.Is(err, ErrExists) {
			t.Errorf("into a VLAN where another has its MAC: %v", err)
		}
		if err := set(two, "vlan 12"); err != nil {
			t.Error(err)
		}
		s.checkTables(t, 2, 0, []maps.VLAN{10, 12}, "10 "+mac+" of 1", "12 "+mac+" of 2")
		if l := s.link(t, two); l.VLAN.String() != "vlan 12" || len(l.Addrs) != 1 {
			t.Errorf("it is %s with %v", l.VLAN, l.Addrs)
		}
		if err := set(one, "vlan off trunk 0,5,12"); !errors.Is(err, ErrExists) {
			t.Errorf("a trunk with a VLAN where another has its MAC: %v", err)
		}
		if err := set(one, "vlan off trunk 0,5,4090-4094"); err != nil {
			t.Error(err)
		}
		s.checkTables(t, 2, 1, []maps.VLAN{5, 12, 4090, 4091, 4092, 4093, 4094}, "-1 "+mac+" of 1", "0 "+mac+" of 1", "12 "+mac+" of 2")
		// What an interruption may leave is put right by the next look.
		s.do(t, func(h *Host) error {
			return h.eachParent(func(_ folder, set *maps.Set, p maps.Parent) error {
				p.VLANs, p.Trunks = 0, 5
				d := maps.Dest{ID: 1, Gen: 1, Origin: maps.Given}
				return errors.Join(set.PutParent(p), set.Claim(map[maps.VLAN]bool{77: true}), set.PutMAC(77, vlanMAC, d), set.PutAddr(77, vlanAddr.Addr(), d))
			})
		})
		s.sweep(t)
		s.checkTables(t, 2, 1, []maps.VLAN{5, 12, 4090, 4091, 4092, 4093, 4094}, "-1 "+mac+" of 1", "0 "+mac+" of 1", "12 "+mac+" of 2")
		if l := s.link(t, one); len(l.Addrs) != 1 {
			t.Errorf("it has %v", l.Addrs)
		}
		if err := set(one, "trunk 5"); !errors.Is(err, ErrUnsupported) {
			t.Errorf("a trunk without untagged frames, which has an address: %v", err)
		}
		s.sweep(t)
		s.del(t, two)
		if err := set(one, "trunk off"); err != nil {
			t.Error(err)
		}
		s.checkTables(t, 0, 0, nil, "0 "+mac+" of 1")
		s.del(t, one)
		s.checkGone(t)
	})
}
