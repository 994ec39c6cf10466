package maps

import (
	"fmt"
	"net/netip"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/bpf"
)

// buckets are the slots of addresses of one family. The programs make copies of
// the hash map's entries there; whoever changes an entry has to void them.
type buckets struct {
	m   *ebpf.Map
	mem []byte // mapped with the first change: of 4 MiB the kernel enters every page
}

// bucketSize is that of both families' buckets, which begin with their version.
const bucketSize = uint32(unsafe.Sizeof(bpf.XvlanIp4Bucket{}))

func (b *buckets) close() error {
	if b.mem == nil {
		return nil
	}
	return unix.Munmap(b.mem)
}

// version maps the slots into memory by itself, since the programs change them,
// too: that takes atomic operations.
func (b *buckets) version(a netip.Addr) (*atomic.Uint32, error) {
	if b.mem == nil {
		mem, err := unix.Mmap(b.m.FD(), 0, int(b.m.ValueSize()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return nil, fmt.Errorf("map slots of addresses: %w", err)
		}
		b.mem = mem
	}
	i := bpf.AddrBucket(a, uint32(len(b.mem))/bucketSize)
	return (*atomic.Uint32)(unsafe.Pointer(&b.mem[i*bucketSize])), nil
}

// changing makes a change to the entry of an address. Meanwhile the version is
// odd, and the hash map asked for all that falls into the bucket; if this process
// is killed, until the next change of such an entry. See addr.h.
func (b *buckets) changing(a netip.Addr, change func() error) error {
	version, err := b.version(a)
	if err != nil {
		return err
	}
	if v := version.Load(); v&1 == 0 && v < bpf.VersionMax {
		version.Add(1)
	}
	err = change()
	if version.Load()&1 != 0 {
		version.Add(1)
	}
	return err
}
