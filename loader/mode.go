package loader

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink/nl"

	"github.com/xvlan/xvlan/maps"
)

// ModeChange is what can be changed about a sub-interface that is there.
type ModeChange struct {
	Mode   maps.Mode   // 0: stays
	Flag   maps.Class  // of an ipvlan; 0: stays
	Source *SourceEdit // nil: stays
	Queue  Queue       // of a macvlan
	DHCP   *bool       // of an ipvlan; nil: stays
}

// SourceEdit changes the list of a macvlan in source mode.
type SourceEdit struct {
	Flush bool               // empties it first
	Add   []net.HardwareAddr // then these are added
	Del   []net.HardwareAddr // and these taken off
}

// SetMode changes a sub-interface's mode, flag or sources, traffic flowing. As
// with the kernel's drivers, passthru can neither be entered nor left, and
// leaving source mode empties the list.
func (h *Host) SetMode(sel Selector, c ModeChange) error {
	return h.change(sel,
		func(k kernelLink) error { return h.setKernelMode(k, c) },
		func(p *parent, l Link, sub maps.Sub) error { return p.setMode(l, sub, c) })
}

// check refuses a change that the sub-interface's kind or mode does not take.
func (c *ModeChange) check(kind maps.Kind, mode maps.Mode) error {
	if c.Mode != 0 && c.Mode != mode && (c.Mode == maps.Passthru || mode == maps.Passthru) {
		return fmt.Errorf("mode %s: %w: passthru can neither be entered nor left; delete the device and make it anew", c.Mode, ErrUnsupported)
	}
	if c.Mode != 0 {
		mode = c.Mode
	}
	if mode.IsIpvlan() != (kind == maps.Ipvlan) || c.Flag != 0 && kind != maps.Ipvlan {
		return fmt.Errorf("type: %w: this is %s", ErrInvalid, kind)
	}
	if err := checkDHCP(c.DHCP, mode); err != nil {
		return err
	}
	if err := c.Queue.checkKind(kind); err != nil || c.Source == nil {
		return err
	}
	if mode != maps.Source {
		return fmt.Errorf("macaddr: %w: only mode source has a list, this is mode %s", ErrInvalid, mode)
	}
	for _, mac := range c.Source.Add {
		if err := checkMAC(mac); err != nil {
			return fmt.Errorf("macaddr: %w", err)
		}
	}
	return nil
}

func (p *parent) setMode(l Link, sub maps.Sub, c ModeChange) error {
	if err := c.check(sub.Kind, sub.Mode); err != nil {
		return err
	}
	if c.Mode != 0 && sub.Place == maps.Port {
		if err := canPort(c.Mode); err != nil {
			return err
		}
	}
	leaves := sub.Mode == maps.Source && c.Mode != 0 && c.Mode != maps.Source
	if c.Mode != 0 {
		sub.Mode = c.Mode
	}
	flag := c.Flag
	if flag == 0 {
		flag = sub.Class
	}
	sub.Class = classOf(sub.Mode, flag)
	if c.DHCP != nil {
		sub.NoDHCP = !*c.DHCP
	}
	if sub.Kind == maps.Ipvlan {
		sub.Place = placeOf(sub, l.Netns != "")
	}
	if err := l.VLAN.suits(sub.Mode, false, maps.Guard{}); err != nil {
		return fmt.Errorf("%w; turn it off before: vlan off trunk off", err)
	}
	if sub.Host {
		if err := canHost("host on", sub.Mode, sub.Class); err != nil {
			return fmt.Errorf("%w; turn it off before: host off", err)
		}
	}
	if sub.Via {
		if err := canHost("via-host", sub.Mode, sub.Class); err != nil {
			return fmt.Errorf("%w; turn it off before: via-host off", err)
		}
	}
	if c.Source != nil { // first, as it may be refused for want of room
		if err := p.editSources(l.ID, c.Source); err != nil {
			return err
		}
	}
	if c.Mode != 0 && sub.Kind == maps.Ipvlan {
		if err := p.relink(l, sub); err != nil {
			return err
		}
	}
	if err := p.maps.PutSub(l.ID, sub); err != nil {
		return err
	}
	if leaves {
		if err := p.flushSources(l.ID); err != nil {
			return err
		}
	}
	return p.reindex(sub)
}

// editSources changes a list, or leaves it as it is where there is no room.
func (p *parent) editSources(id maps.ID, edit *SourceEdit) error {
	lists, err := p.maps.Sources()
	if err != nil {
		return err
	}
	before := lists[id]
	change := func() error {
		if edit.Flush {
			if err := p.flushSources(id); err != nil {
				return err
			}
		}
		for _, mac := range edit.Add {
			if err := p.maps.PutSource(id, mac); err != nil {
				return err
			}
		}
		for _, mac := range edit.Del {
			if err := p.maps.DeleteSource(id, mac); err != nil {
				return err
			}
		}
		return nil
	}
	if err = change(); err == nil {
		return nil
	}
	errs := []error{err, p.flushSources(id)}
	for _, mac := range before {
		errs = append(errs, p.maps.PutSource(id, mac))
	}
	return errors.Join(errs...)
}

// flushSources empties a list.
func (p *parent) flushSources(id maps.ID) error {
	lists, err := p.maps.Sources()
	if err != nil {
		return err
	}
	for _, mac := range lists[id] {
		if err := p.maps.DeleteSource(id, mac); err != nil {
			return err
		}
	}
	return nil
}

// setKernelMode is setMode for the kernel rung.
func (h *Host) setKernelMode(k kernelLink, c ModeChange) error {
	l, err := h.fromKernel(k)
	if err != nil {
		return err
	}
	if err := c.check(l.Kind, l.Mode); err != nil {
		return err
	}
	if c.DHCP != nil && *c.DHCP {
		return errKernelDHCP
	}
	s, err := k.open()
	if err != nil {
		return err
	}
	defer s.close()
	if c.Mode != 0 && l.Kind == maps.Macvlan {
		if err := setData(s, k.link, nl.IFLA_MACVLAN_MODE, nl.Uint32Attr(rawModes[c.Mode])); err != nil {
			return fmt.Errorf("change mode of %s: %w", l.Name, err)
		}
	}
	if c.Mode != 0 && l.Kind == maps.Ipvlan {
		if err := setData(s, k.link, nl.IFLA_IPVLAN_MODE, nl.Uint16Attr(uint16(ipvlanModes[c.Mode]))); err != nil {
			return fmt.Errorf("change mode of %s: %w", l.Name, err)
		}
	}
	if c.Flag != 0 {
		if err := setData(s, k.link, nl.IFLA_IPVLAN_FLAG, nl.Uint16Attr(uint16(kernelFlags[c.Flag]))); err != nil {
			return fmt.Errorf("change flag of %s: %w", l.Name, err)
		}
	}
	if err := c.Queue.set(s, k.link); err != nil || c.Source == nil {
		return err
	}
	var errs []error
	if c.Source.Flush {
		errs = append(errs, s.nl.MacvlanMACAddrFlush(k.link))
	}
	for _, mac := range c.Source.Add {
		errs = append(errs, s.nl.MacvlanMACAddrAdd(k.link, mac))
	}
	for _, mac := range c.Source.Del {
		errs = append(errs, s.nl.MacvlanMACAddrDel(k.link, mac))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("change macaddr list of %s: %w", l.Name, err)
	}
	return nil
}
