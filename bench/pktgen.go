package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// A train is what pktgen sends: 60-byte UDP, each destination in turn.
type train struct {
	dst   net.HardwareAddr // the first of macs
	macs  int
	addr  netip.Addr // the first of addrs
	addrs int
	vlan  uint16 // of its tag, 0 for none
}

// pktgen is where the kernel's packet generator is controlled from in the
// calling thread's network namespace.
const pktgen = "/proc/thread-self/net/pktgen"

// result is what pktgen writes when it is done, in microseconds and packets.
var result = regexp.MustCompile(`Result: OK: (\d+)\([^)]*\) usec, (\d+) `)

// generate lets pktgen send n frames out of a device and returns what one took
// until its receiver, in nanoseconds of the machine's clock.
func (s *space) generate(dev string, t train, n int) (ns float64, err error) {
	err = s.do(func() error {
		thread := filepath.Join(pktgen, "kpktgend_0")
		if err := say(thread, "rem_device_all", "add_device "+dev); err != nil {
			return err
		}
		tag := "vlan_id " + strconv.Itoa(int(t.vlan))
		if t.vlan == 0 {
			tag = "vlan_id 65535" // which says none
		}
		last := t.addr.As4()
		low := int(last[2])<<8 | int(last[3]) + max(t.addrs, 1) - 1
		last[2], last[3] = byte(low>>8), byte(low)
		if err := say(filepath.Join(pktgen, dev),
			"count "+strconv.Itoa(n), "pkt_size 60", "delay 0", "clone_skb 0",
			// A shared frame would have to be copied by those that keep it.
			"flag !SHARED", tag,
			"dst_mac "+t.dst.String(), "dst_mac_count "+strconv.Itoa(t.macs),
			"dst_min "+t.addr.String(), "dst_max "+netip.AddrFrom4(last).String(),
			"udp_dst_min 9", "udp_dst_max 9", "udp_src_min 9", "udp_src_max 9",
		); err != nil {
			return err
		}
		if err := say(filepath.Join(pktgen, "pgctrl"), "start"); err != nil { // and waits for the end
			return err
		}
		out, err := os.ReadFile(filepath.Join(pktgen, dev))
		if err != nil {
			return fmt.Errorf("read pktgen's result: %w", err)
		}
		m := result.FindStringSubmatch(string(out))
		if m == nil || m[2] != strconv.Itoa(n) {
			return fmt.Errorf("pktgen did not send %d frames out of %s:\n%s", n, dev, out)
		}
		usec, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			return fmt.Errorf("read pktgen's result: %w", err)
		}
		ns = usec * 1e3 / float64(n)
		return say(thread, "rem_device_all")
	})
	return ns, err
}

// say writes commands to one of pktgen's files.
func say(path string, commands ...string) error {
	for _, c := range commands {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return fmt.Errorf("open pktgen: %w: is its module there? (modprobe pktgen)", err)
		}
		_, err = f.WriteString(c + "\n")
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return fmt.Errorf("tell pktgen %q: %w", strings.TrimSpace(c), err)
		}
	}
	return nil
}
