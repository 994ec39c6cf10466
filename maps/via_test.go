package maps

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/xvlan/xvlan/bpf"
)

// Networks come back as they were put, in order, and go.
func TestVias(t *testing.T) {
	s := newSet(t)
	var most []netip.Prefix
	for i := range bpf.ViaNets {
		most = append(most, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, 0}), 16))
	}
	for _, nets := range [][]netip.Prefix{
		{netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("169.254.169.254/32"), netip.MustParsePrefix("fd00:96::/112")},
		{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0"), netip.MustParsePrefix("2001:db8::/33"), netip.MustParsePrefix("2001:db8::1/128")},
		most, nil,
	} {
		turned := slices.Clone(nets)
		slices.Reverse(turned)
		if err := s.PutVia(2, turned); err != nil {
			t.Fatal(err)
		}
		all, err := s.Vias()
		if err != nil {
			t.Fatal(err)
		}
		if slices.SortFunc(nets, netip.Prefix.Compare); !slices.Equal(all[2], nets) || len(all) > 1 {
			t.Errorf("put %v, got %v", nets, all)
		}
	}
	if err := s.PutVia(2, nil); err != nil {
		t.Errorf("none, again: %v", err)
	}
}
