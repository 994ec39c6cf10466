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
	mem []byte
}

// bucketSize is that of both families' buckets, which begin with their version.
const bucketSize = uint32(unsafe.Sizeof(bpf.XvlanIp4Bucket{}))

// newBuckets maps them into memory by itself, since the programs change them,
// too: that takes atomic operations.
func newBuckets(m *ebpf.Map) (buckets, error) {
	mem, err := unix.Mmap(m.FD(), 0, int(m.ValueSize()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return buckets{}, fmt.Errorf("map slots of addresses: %w", err)
	}
	return buckets{mem}, nil
}

func (b buckets) close() error {
	if b.mem == nil {
		return nil
	}
	return unix.Munmap(b.mem)
}

func (b buckets) version(a netip.Addr) *atomic.Uint32 {
	i := bpf.AddrBucket(a, uint32(len(b.mem))/bucketSize)
	return (*atomic.Uint32)(unsafe.Pointer(&b.mem[i*bucketSize]))
}

// changing makes a change to the entry of an address. Meanwhile the version is
// odd, and the hash map asked for all that falls into the bucket; if this process
// is killed, until the next change of such an entry. See addr.h.
func (b buckets) changing(a netip.Addr, change func() error) error {
	version := b.version(a)
	if v := version.Load(); v&1 == 0 && v < bpf.VersionMax {
		version.Add(1)
	}
	err := change()
	if version.Load()&1 != 0 {
		version.Add(1)
	}
	return err
}
