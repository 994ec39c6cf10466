package main

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/xvlan/xvlan/loader"
	"github.com/xvlan/xvlan/maps"
)

// frameWords is a frame as it was described.
type frameWords struct {
	hex    string
	file   string
	number int // in the file, from 1

	src, dst     net.HardwareAddr // nil: to be filled in
	vlan         int              // 0: untagged
	outer        int              // the service tag in front of it; 0: none
	length       int              // of the frame at least
	packet       string           // arp, nd or ip
	from, to     netip.Addr
	proto        string
	sport, dport int
}

// parse takes a word, and what belongs to it, if it is one of a frame's.
func (f *frameWords) parse(w *words, word string) bool {
	switch word {
	case "hex":
		f.hex = w.value(word)
	case "pcap":
		f.file = w.value(word)
	case "frame":
		f.number = w.number(word)
	case "src":
		f.src = w.mac(word)
	case "dst":
		f.dst = w.mac(word)
	case "vlan":
		f.vlan = int(w.integer(word, 1, 4094))
	case "qinq":
		f.outer = int(w.integer(word, 1, 4094))
	case "len":
		f.length = int(w.integer(word, 14, 65535))
	case "arp", "nd", "ip":
		if f.packet != "" {
			w.fail(usagef("%s: the frame is said to be %s already", word, f.packet))
		}
		f.packet, f.from, f.to = word, w.addr(word), w.addr(word)
	case "proto":
		f.proto = w.value(word)
	case "sport":
		f.sport = int(w.integer(word, 0, 65535))
	case "dport":
		f.dport = int(w.integer(word, 0, 65535))
	default:
		return false
	}
	return true
}

// addr reads an address without a length.
func (w *words) addr(keyword string) netip.Addr {
	v := w.value(keyword)
	a, err := netip.ParseAddr(v)
	if err != nil || a.Zone() != "" {
		w.fail(usagef("%s %q: no address; write it as 192.0.2.7 or 2001:db8::7", keyword, v))
	}
	return a.Unmap()
}

// check finds what does not go together.
func (f *frameWords) check() error {
	ways := 0
	for _, said := range []bool{f.hex != "", f.file != "", f.packet != ""} {
		if said {
			ways++
		}
	}
	described := f.src != nil || f.dst != nil || f.vlan != 0 || f.outer != 0 || f.length != 0 || f.proto != "" || f.sport != 0 || f.dport != 0
	switch {
	case ways == 0:
		return usagef("frame: say it, by hex BYTES, pcap FILE, or ip, arp or nd SRC DST")
	case ways > 1 || f.packet == "" && described:
		return usagef("frame: it is given already; leave its description out")
	case f.number != 0 && f.file == "":
		return usagef("frame %d: of which file? say pcap FILE", f.number)
	case f.packet == "":
		return nil
	case f.outer != 0 && f.vlan == 0:
		return usagef("qinq %d: it stands in front of a VLAN's tag; say which: vlan ID", f.outer)
	case f.from.Is4() != f.to.Is4():
		return usagef("%s %s %s: IPv4 and IPv6 do not go together", f.packet, f.from, f.to)
	case f.packet == "arp" && !f.from.Is4():
		return usagef("arp %s: IPv6 has nd in its place", f.from)
	case f.packet == "nd" && f.from.Is4():
		return usagef("nd %s: IPv4 has arp in its place", f.from)
	case f.packet != "ip" && (f.proto != "" || f.sport != 0 || f.dport != 0):
		return usagef("%s: has neither proto nor ports", f.packet)
	case f.proto != "" && !slices.Contains([]string{"udp", "tcp", "icmp"}, f.proto):
		return usagef("proto %q: not known; udp, tcp and icmp are", f.proto)
	}
	return nil
}

// stranger is the MAC of what comes from the wire, where none is said.
var stranger = net.HardwareAddr{0x02, 0, 0, 0, 0, 0x01}

// build makes the frame; links are those that MACs are filled in by.
func (f *frameWords) build(links []loader.Link, parent string, from *loader.Selector) ([]byte, error) {
	switch {
	case f.hex != "":
		clean := strings.NewReplacer(":", "", " ", "", "\n", "", "0x", "").Replace(f.hex)
		frame, err := hex.DecodeString(clean)
		if err != nil {
			return nil, usagef("hex: %v", err)
		}
		return frame, nil
	case f.file != "":
		return readFrame(f.file, max(f.number, 1))
	}
	src, dst, vlan := f.src, f.dst, maps.NewVLAN(uint16(f.vlan), uint16(f.outer))
	if src == nil {
		src = stranger
	}
	for _, l := range links {
		if from == nil || l.Parent != parent || l.Name != from.Name || from.Netns != "" && l.Netns != from.Netns {
			continue
		}
		if f.src == nil {
			src = l.MAC
		}
		if vlan == 0 {
			vlan = l.VLAN.Untagged()
		}
	}
	if dst == nil {
		if dst = f.destination(links, parent, vlan); dst == nil {
			return nil, usagef("dst: no sub-interface is known to have %s; say the MAC", f.to)
		}
	}
	return f.assemble(src, dst)
}

// destination is the MAC that a frame to its address would be sent to in a VLAN, nil if
// that cannot be told. Who is in none may be meant with a tag, too.
func (f *frameWords) destination(links []loader.Link, parent string, vlan maps.VLAN) net.HardwareAddr {
	a := f.to.AsSlice()
	switch {
	case f.packet == "arp", f.to == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return layers.EthernetBroadcast
	case f.packet == "nd": // the solicited-node group, RFC 4861
		return net.HardwareAddr{0x33, 0x33, 0xff, a[13], a[14], a[15]}
	case f.to.IsMulticast() && f.to.Is4(): // RFC 1112
		return net.HardwareAddr{0x01, 0, 0x5e, a[1] & 0x7f, a[2], a[3]}
	case f.to.IsMulticast(): // RFC 2464
		return net.HardwareAddr{0x33, 0x33, a[12], a[13], a[14], a[15]}
	}
	for _, in := range []maps.VLAN{vlan, 0} {
		for _, l := range links {
			if l.Parent == parent && l.VLAN.Untagged() == in && slices.ContainsFunc(l.Addrs, func(x loader.LinkAddr) bool { return x.Addr == f.to }) {
				return l.WireMAC
			}
		}
	}
	return nil
}

// assemble puts the layers together.
func (f *frameWords) assemble(src, dst net.HardwareAddr) ([]byte, error) {
	kind := layers.EthernetTypeIPv4
	if f.packet == "arp" {
		kind = layers.EthernetTypeARP
	} else if !f.from.Is4() {
		kind = layers.EthernetTypeIPv6
	}
	eth := &layers.Ethernet{SrcMAC: src, DstMAC: dst, EthernetType: kind}
	stack := []gopacket.SerializableLayer{eth}
	if f.outer != 0 {
		eth.EthernetType = layers.EthernetTypeQinQ
		stack = append(stack, &layers.Dot1Q{VLANIdentifier: uint16(f.outer), Type: layers.EthernetTypeDot1Q})
	} else if f.vlan != 0 {
		eth.EthernetType = layers.EthernetTypeDot1Q
	}
	if f.vlan != 0 {
		stack = append(stack, &layers.Dot1Q{VLANIdentifier: uint16(f.vlan), Type: kind})
	}
	switch f.packet {
	case "arp":
		stack = append(stack, &layers.ARP{
			AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4,
			Operation: layers.ARPRequest, SourceHwAddress: src, SourceProtAddress: f.from.AsSlice(),
			DstHwAddress: make([]byte, 6), DstProtAddress: f.to.AsSlice(),
		})
	case "nd":
		ip := f.ipv6(layers.IPProtocolICMPv6)
		group := f.to.As16()
		ip.HopLimit, ip.DstIP = 255, append(net.ParseIP("ff02::1:ff00:0")[:13:13], group[13:]...)
		icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeNeighborSolicitation, 0)}
		if err := icmp.SetNetworkLayerForChecksum(ip); err != nil {
			return nil, fmt.Errorf("build frame: %w", err)
		}
		stack = append(stack, ip, icmp, &layers.ICMPv6NeighborSolicitation{
			TargetAddress: f.to.AsSlice(),
			Options:       layers.ICMPv6Options{{Type: layers.ICMPv6OptSourceAddress, Data: src}},
		})
	default:
		more, err := f.transport()
		if err != nil {
			return nil, err
		}
		stack = append(stack, more...)
	}
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, stack...); err != nil {
		return nil, fmt.Errorf("build frame: %w", err)
	}
	frame := buf.Bytes()
	return append(frame, make([]byte, max(60, f.length)-min(len(frame), max(60, f.length)))...), nil
}

func (f *frameWords) ipv6(next layers.IPProtocol) *layers.IPv6 {
	return &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: next, SrcIP: f.from.AsSlice(), DstIP: f.to.AsSlice()}
}

// transport is the IP header and what follows.
func (f *frameWords) transport() ([]gopacket.SerializableLayer, error) {
	proto := map[string]layers.IPProtocol{
		"": layers.IPProtocolUDP, "udp": layers.IPProtocolUDP, "tcp": layers.IPProtocolTCP, "icmp": layers.IPProtocolICMPv4,
	}[f.proto]
	var (
		ip interface {
			gopacket.NetworkLayer
			gopacket.SerializableLayer
		}
		echo gopacket.SerializableLayer = &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeEchoRequest, 0)}
	)
	if f.from.Is4() {
		ip = &layers.IPv4{Version: 4, TTL: 64, Protocol: proto, SrcIP: f.from.AsSlice(), DstIP: f.to.AsSlice()}
	} else {
		icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeEchoRequest, 0)}
		if f.proto == "icmp" {
			proto = layers.IPProtocolICMPv6
		}
		ip, echo = f.ipv6(proto), icmp
		if err := icmp.SetNetworkLayerForChecksum(ip); err != nil {
			return nil, fmt.Errorf("build frame: %w", err)
		}
	}
	switch f.proto {
	case "icmp":
		return []gopacket.SerializableLayer{ip, echo, gopacket.Payload(make([]byte, 8))}, nil
	case "tcp":
		tcp := &layers.TCP{SrcPort: layers.TCPPort(f.sport), DstPort: layers.TCPPort(f.dport), SYN: true, Window: 64240}
		return []gopacket.SerializableLayer{ip, tcp}, tcp.SetNetworkLayerForChecksum(ip)
	}
	udp := &layers.UDP{SrcPort: layers.UDPPort(f.sport), DstPort: layers.UDPPort(f.dport)}
	return []gopacket.SerializableLayer{ip, udp, gopacket.Payload(make([]byte, 8))}, udp.SetNetworkLayerForChecksum(ip)
}

// readFrame reads a frame, counted from 1, of a pcap or pcapng file.
func readFrame(name string, number int) ([]byte, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("pcap: %w", err)
	}
	defer file.Close()
	magic := make([]byte, 4)
	if _, err := io.ReadFull(file, magic); err != nil {
		return nil, fmt.Errorf("pcap %s: read its first bytes: %w", name, err)
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("pcap %s: %w", name, err)
	}
	const pcapng = 0x0a0d0d0a // a section header block
	var source interface {
		gopacket.PacketDataSource
		LinkType() layers.LinkType
	}
	if binary.LittleEndian.Uint32(magic) == pcapng {
		source, err = pcapgo.NewNgReader(file, pcapgo.DefaultNgReaderOptions)
	} else {
		source, err = pcapgo.NewReader(file)
	}
	if err != nil {
		return nil, fmt.Errorf("pcap %s: %w", name, err)
	}
	if source.LinkType() != layers.LinkTypeEthernet {
		return nil, fmt.Errorf("pcap %s: it holds %s, not Ethernet; capture on the parent or a sub-interface", name, source.LinkType())
	}
	for n := 1; ; n++ {
		frame, info, err := source.ReadPacketData()
		if errors.Is(err, io.EOF) {
			return nil, usagef("frame %d: %s has %d", number, name, n-1)
		}
		if err != nil {
			return nil, fmt.Errorf("pcap %s: read frame %d: %w", name, n, err)
		}
		if n < number {
			continue
		}
		if info.CaptureLength < info.Length {
			return nil, fmt.Errorf("pcap %s: of frame %d only %d of %d bytes were captured", name, n, info.CaptureLength, info.Length)
		}
		return frame, nil
	}
}
