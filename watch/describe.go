package watch

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// Describe says in a line what a frame is, as far as its first bytes tell.
func Describe(frame []byte) string {
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.DecodeOptions{Lazy: true, NoCopy: true})
	eth, ok := p.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
	if !ok {
		return "no whole Ethernet header"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s > %s", eth.SrcMAC, eth.DstMAC)
	ethertype := eth.EthernetType
	for _, l := range p.Layers() {
		if tag, ok := l.(*layers.Dot1Q); ok {
			fmt.Fprintf(&b, " vlan %d", tag.VLANIdentifier)
			ethertype = tag.Type
		}
	}
	b.WriteString(": ")
	switch l := p.NetworkLayer().(type) {
	case *layers.IPv4:
		b.WriteString(transport(p, l.SrcIP, l.DstIP, l.Protocol.String()))
		if l.FragOffset != 0 {
			b.WriteString(" fragment")
		}
	case *layers.IPv6:
		b.WriteString(transport(p, l.SrcIP, l.DstIP, l.NextHeader.String()))
	default:
		b.WriteString(noIP(p, ethertype))
	}
	return b.String()
}

func noIP(p gopacket.Packet, ethertype layers.EthernetType) string {
	arp, ok := p.Layer(layers.LayerTypeARP).(*layers.ARP)
	if !ok {
		if ethertype < 0x600 {
			return "no Ethernet II, " + strconv.Itoa(int(ethertype)) + " bytes"
		}
		return fmt.Sprintf("EtherType 0x%04x", uint16(ethertype))
	}
	from, to := net.IP(arp.SourceProtAddress), net.IP(arp.DstProtAddress)
	if arp.Operation == layers.ARPRequest {
		return fmt.Sprintf("ARP who has %s, tell %s", to, from)
	}
	return fmt.Sprintf("ARP %s is at %s", from, net.HardwareAddr(arp.SourceHwAddress))
}

// transport says what an IP packet carries; next is the name of what follows the
// IP header.
func transport(p gopacket.Packet, from, to net.IP, next string) string {
	plain := from.String() + " > " + to.String() + " "
	for _, layer := range p.Layers() {
		switch l := layer.(type) {
		case *layers.TCP:
			return fmt.Sprintf("%s > %s TCP [%s]", port(from, uint16(l.SrcPort)), port(to, uint16(l.DstPort)), tcpFlags(l))
		case *layers.UDP:
			return fmt.Sprintf("%s > %s UDP", port(from, uint16(l.SrcPort)), port(to, uint16(l.DstPort)))
		case *layers.ICMPv4:
			return fmt.Sprintf("%sICMP %s seq %d", plain, l.TypeCode, l.Seq)
		case *layers.ICMPv6NeighborSolicitation:
			return plain + "ND who has " + l.TargetAddress.String()
		case *layers.ICMPv6NeighborAdvertisement:
			return plain + "ND has " + l.TargetAddress.String()
		}
	}
	if l, ok := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6); ok {
		return fmt.Sprintf("%sICMPv6 %s", plain, l.TypeCode)
	}
	return plain + next
}

func port(ip net.IP, port uint16) string {
	a, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(a, port).String()
}

func tcpFlags(l *layers.TCP) string {
	var b strings.Builder
	for _, f := range []struct {
		set  bool
		name byte
	}{{l.SYN, 'S'}, {l.FIN, 'F'}, {l.RST, 'R'}, {l.PSH, 'P'}, {l.URG, 'U'}, {l.ACK, '.'}} {
		if f.set {
			b.WriteByte(f.name)
		}
	}
	return b.String()
}

// Teaches returns the address that the programs learn from a frame when they do:
// of ARP the sender's, of an advertisement the target, else the source.
func Teaches(frame []byte) (netip.Addr, bool) {
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.DecodeOptions{Lazy: true, NoCopy: true})
	var ip []byte
	if l, ok := p.Layer(layers.LayerTypeARP).(*layers.ARP); ok {
		ip = l.SourceProtAddress
	} else if l, ok := p.Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement); ok {
		ip = l.TargetAddress
	} else if l := p.NetworkLayer(); l != nil {
		ip = l.NetworkFlow().Src().Raw()
	}
	return netip.AddrFromSlice(ip)
}
