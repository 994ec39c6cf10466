package loader

import (
	"errors"
	"reflect"
	"testing"

	"github.com/xvlan/xvlan/maps"
)

// The words of runtimes are understood, and others refused with those that are known.
func TestSpecWords(t *testing.T) {
	for _, c := range []struct {
		kind                 maps.Kind
		mode, flag, datapath string
		want                 LinkSpec
		wrong                bool
	}{
		{want: LinkSpec{Kind: maps.Macvlan, Mode: maps.Bridge}},
		{mode: "source", want: LinkSpec{Kind: maps.Macvlan, Mode: maps.Source}},
		{mode: "l3s", want: LinkSpec{Kind: maps.Ipvlan, Mode: maps.L3S}},
		{kind: maps.Ipvlan, want: LinkSpec{Kind: maps.Ipvlan, Mode: maps.L2}},
		{mode: "l2", flag: "vepa", datapath: "tc", want: LinkSpec{Kind: maps.Ipvlan, Mode: maps.L2, Flag: maps.ClassVEPA, Datapath: TC}},
		{kind: maps.Ipvlan, mode: "bridge", wrong: true},
		{kind: maps.Macvlan, mode: "l2", wrong: true},
		{mode: "Bridge", wrong: true},
		{flag: "bridge", wrong: true},
		{mode: "l2", flag: "source", wrong: true},
		{mode: "passthru", flag: "nopromisc", want: LinkSpec{Kind: maps.Macvlan, Mode: maps.Passthru, NoPromisc: true}},
		{mode: "source", flag: "nodst", want: LinkSpec{Kind: maps.Macvlan, Mode: maps.Source, Source: SourceSpec{NoDst: true}}},
		{mode: "source", flag: "nopromisc", wrong: true},
		{datapath: "auto", wrong: true},
	} {
		spec := LinkSpec{Kind: c.kind}
		err := errors.Join(spec.SetMode(c.mode), spec.SetFlag(c.flag), spec.SetDatapath(c.datapath))
		if c.wrong != (err != nil) || err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v", c, err)
		}
		if err == nil && !reflect.DeepEqual(spec, c.want) {
			t.Errorf("%+v: got %+v", c, spec)
		}
	}
}
