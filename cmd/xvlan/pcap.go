package main

import (
	"fmt"
	"io"
	"runtime"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/xvlan/xvlan/loader"
	"github.com/xvlan/xvlan/maps"
	"github.com/xvlan/xvlan/watch"
)

// meanings say what a verdict means, in the comment of a frame.
var meanings = map[maps.Verdict]string{
	maps.Pass:          "left to the host, or to what else is on the parent",
	maps.RX:            "handed to the sub-interface",
	maps.TX:            "sent by the sub-interface or the host",
	maps.DropUnknown:   "for nobody, and unknown is drop",
	maps.DropFanout:    "the kernel refused this copy",
	maps.DropMalformed: "headers that cannot be followed",
	maps.DropMTU:       "longer than the parent's MTU",
	maps.DropReturned:  "a switch returned it to one who is private, or has had it",
	maps.DropMode:      "its mode does not carry it, or keeps it from siblings",
	maps.DropRoute:     "the parent's namespace has no route for it",
	maps.DropInactive:  "sent by a leg that has no sub-interface any more",
	maps.DropSourceMAC: "sent from a MAC that is not its own",
	maps.DropSourceIP:  "sent from an address that is not its own",
	maps.DropARP:       "ARP that is not in its own name",
	maps.DropND:        "neighbour discovery that is not in its own name",
	maps.DropRouter:    "only a router says that",
	maps.DropDHCP:      "only a DHCP server says that, or it asks for others",
	maps.DropTag:       "it has a tag",
	maps.DropEtherType: "neither IPv4 nor IPv6 nor ARP",
	maps.DropRate:      "more broadcasts, ARP and neighbour discovery than its budget",
}

// pcap writes frames as pcapng.
type pcap struct {
	snap int
	w    *pcapgo.NgWriter
	ids  map[string]int // of interfaces, by name
	n    uint64
}

// newPcap begins with the interface of what is captured.
func newPcap(to io.Writer, snap int, target loader.Sighting) (*pcap, error) {
	p := &pcap{snap: snap, ids: map[string]int{place(&target): 0}}
	var err error
	p.w, err = pcapgo.NewNgWriterInterface(to, p.describe(&target), pcapgo.NgWriterOptions{SectionInfo: pcapgo.NgSectionInfo{
		Hardware: runtime.GOARCH, OS: runtime.GOOS, Application: "xvlan " + version(),
	}})
	if err != nil {
		return nil, fmt.Errorf("write: %w", err)
	}
	return p, p.flush()
}

func (p *pcap) describe(s *loader.Sighting) pcapgo.NgInterface {
	what := "parent " + s.ParentName
	if s.ID != 0 {
		what = fmt.Sprintf("sub-interface %s, id %d, on %s", s.Name, s.ID, s.ParentName)
	}
	return pcapgo.NgInterface{
		Name: place(s), Description: what, OS: runtime.GOOS,
		LinkType: layers.LinkTypeEthernet, SnapLength: uint32(p.snap), TimestampResolution: 9,
	}
}

// iface returns the interface of a parent or a sub-interface, which is described
// when its first frame comes.
func (p *pcap) iface(s *loader.Sighting) (int, error) {
	id, ok := p.ids[place(s)]
	if ok {
		return id, nil
	}
	id, err := p.w.AddInterface(p.describe(s))
	if err != nil {
		return 0, fmt.Errorf("write interface %s: %w", place(s), err)
	}
	p.ids[place(s)] = id
	return id, nil
}

func (p *pcap) put(s *loader.Sighting) error {
	id, err := p.iface(s)
	if err != nil {
		return err
	}
	direction := pcapgo.NgEpbFlagDirectionInbound
	if way(s.Verdict) == "out" {
		direction = pcapgo.NgEpbFlagDirectionOutbound
	}
	err = p.w.WritePacketWithOptions(
		gopacket.CaptureInfo{Timestamp: s.Time, CaptureLength: len(s.Frame), Length: s.Len, InterfaceIndex: id},
		s.Frame, pcapgo.NgPacketOptions{
			Comments: []string{s.Verdict.String() + ": " + meanings[s.Verdict]},
			Flags:    &pcapgo.NgEpbFlags{Direction: direction},
		})
	if err != nil {
		return fmt.Errorf("write frame: %w", err)
	}
	p.n++
	return nil
}

func (p *pcap) flush() error {
	if err := p.w.Flush(); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}

// end writes the counts, at the interface that came first.
func (p *pcap) end(t watch.Tally) error {
	err := p.w.WriteInterfaceStats(0, pcapgo.NgInterfaceStatistics{
		LastUpdate: time.Now(), PacketsReceived: p.n + t.Lost, PacketsDropped: t.Lost,
	})
	if err != nil {
		return fmt.Errorf("write counts: %w", err)
	}
	return p.flush()
}
