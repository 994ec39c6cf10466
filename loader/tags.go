package loader

import (
	"errors"
	"fmt"
	"slices"

	"github.com/safchain/ethtool"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/maps"
)

// A network card may filter VLANs, by the IDs that VLAN devices have asked it for. For
// those of sub-interfaces nobody can ask, so the filter is turned off while there are
// any; where it cannot be, the card receives them, too, while it is promiscuous.

// Features by the kernel's names.
const (
	featureCTag = "rx-vlan-filter"
	featureSTag = "rx-vlan-stag-filter"
)

// handOn are the kinds of devices whose filter is that of others below, which
// promiscuity is handed on to.
var handOn = []string{"bond", "team", "macvlan", "macvtap"}

// tagFilters ties the features to what is noted of them.
func (p *parent) tagFilters() map[string]*bool {
	return map[string]*bool{featureCTag: &p.rec.HadCTag, featureSTag: &p.rec.HadSTag}
}

// openTags has the parent receive frames of all VLANs while any is claimed.
func (p *parent) openTags() error {
	if p.link == nil {
		return nil
	}
	if p.rec.VLANs == 0 {
		return p.closeTags()
	}
	tool, err := ethtool.NewEthtool()
	if err != nil {
		return fmt.Errorf("open ethtool: %w", err)
	}
	defer tool.Close()
	if !slices.Contains(handOn, p.link.Type()) {
		if err := p.stopFilters(tool); err != nil {
			return err
		}
	}
	features, err := tool.FeaturesWithState(p.link.Attrs().Name)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read features of %s: %w", p.rec.Name, err)
	}
	if !features[featureCTag].Active && !features[featureSTag].Active {
		return nil
	}
	return p.openPromisc()
}

// stopFilters turns the filters off that are on and can be.
func (p *parent) stopFilters(tool *ethtool.Ethtool) error {
	features, err := tool.FeaturesWithState(p.link.Attrs().Name)
	if err != nil {
		return nil // openTags finds the same
	}
	for name, had := range p.tagFilters() {
		if f := features[name]; !f.Active || f.NeverChanged || !f.Available {
			continue
		}
		*had = true
		if err := p.save(); err != nil {
			return err
		}
		if err := setFeature(p.link.Attrs().Name, name, false); err != nil {
			return err
		}
	}
	return nil
}

// openPromisc makes the parent promiscuous for VLANs, unless others have.
func (p *parent) openPromisc() error {
	is := p.link.Attrs().RawFlags&unix.IFF_PROMISC != 0
	ours, err := p.promiscBeside(maps.Sub{})
	if err != nil || is && !ours || is && p.rec.SetPromisc {
		return err
	}
	p.rec.SetPromisc = true
	if err := p.save(); err != nil || is {
		return err
	}
	if err := p.h.nl.SetPromiscOn(p.link); err != nil {
		return fmt.Errorf("make %s promiscuous: %w", p.rec.Name, err)
	}
	return nil
}

// closeTags undoes openTags.
func (p *parent) closeTags() error {
	if p.rec.SetPromisc {
		p.rec.SetPromisc = false
		if err := p.endPromisc(maps.Sub{}); err != nil {
			return err
		}
		if err := p.save(); err != nil {
			return err
		}
	}
	for name, had := range p.tagFilters() {
		if !*had {
			continue
		}
		if err := setFeature(p.link.Attrs().Name, name, true); err != nil && !errors.Is(err, unix.ENODEV) {
			return err
		}
		*had = false
		if err := p.save(); err != nil {
			return err
		}
	}
	return nil
}
