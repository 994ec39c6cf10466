package maps

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"reflect"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/xvlan/xvlan/bpf"
)

// Older is the maps of a parent that an older version of xvlan has made. Their
// types are known by what the kernel keeps of them, so that no version has to
// know another's: see convert.
type Older struct {
	Capacity uint32

	maps map[string]*ebpf.Map // those that this version has, too
	now  *btf.Spec            // this version's types
}

// OpenOlder opens the maps pinned in dir. It returns ErrSchema where they are not
// older than this version's, or older than can be read.
func OpenOlder(dir string) (*Older, error) {
	spec, err := bpf.LoadXvlan()
	if err != nil {
		return nil, fmt.Errorf("read programs: %w", err)
	}
	o := &Older{maps: map[string]*ebpf.Map{}, now: spec.Types}
	for name := range new(Set).fields() {
		m, err := ebpf.LoadPinnedMap(filepath.Join(dir, name), nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it is new
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open pinned map %s: %w", name, err), o.Close())
		}
		o.maps[name] = m
	}
	meta, err := oldOne[bpf.XvlanParent](o, bpf.MapMeta, "parent")
	switch {
	case err == nil && !readable(meta.Schema):
		err = fmt.Errorf("%w: they say %d, this xvlan reads %d to %d", ErrSchema, meta.Schema, bpf.OldestSchema, bpf.Schema-1)
	case err == nil:
		o.Capacity = meta.Capacity
		return o, nil
	}
	return nil, errors.Join(err, o.Close())
}

// ReadOlder is ReadParent for maps of an older schema.
func ReadOlder(dir string) (p Parent, err error) {
	o, err := OpenOlder(dir)
	if err != nil {
		return p, err
	}
	defer o.Close()
	meta, err := oldOne[bpf.XvlanParent](o, bpf.MapMeta, "parent")
	if err != nil {
		return p, err
	}
	return parentFromC(&meta), nil
}

// readable tells whether maps of an older schema can be read.
func readable(schema uint32) bool { return schema >= bpf.OldestSchema && schema < bpf.Schema }

// Close closes the maps; they live on.
func (o *Older) Close() error {
	var errs []error
	for _, m := range o.maps {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

// reader makes this version's T from the bytes of what an older one has in a map.
// typ is the type's name in C, and of a type without one, "": it has stayed.
type reader[T any] struct {
	from, to btf.Type
	size     int // of an older one's
}

func newReader[T any](o *Older, name, typ string) (r reader[T], err error) {
	if typ == "" {
		return reader[T]{size: int(unsafe.Sizeof(*new(T)))}, nil
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("read type %s of map %s: %w", typ, name, err)
		}
	}()
	info, err := o.maps[name].Info()
	if err != nil {
		return r, err
	}
	id, _ := info.BTFID()
	handle, err := btf.NewHandleFromID(id)
	if err != nil {
		return r, err
	}
	defer handle.Close()
	older, err := handle.Spec(nil)
	if err != nil {
		return r, err
	}
	if r.from, err = older.AnyTypeByName(typ); err != nil {
		return r, err
	}
	if r.to, err = o.now.AnyTypeByName(typ); err != nil {
		return r, err
	}
	r.size, err = btf.Sizeof(r.from)
	return r, err
}

func (r reader[T]) read(raw []byte) (v T, err error) {
	bytes := unsafe.Slice((*byte)(unsafe.Pointer(&v)), unsafe.Sizeof(v))
	if len(raw) < r.size {
		return v, fmt.Errorf("%d bytes for %v", len(raw), r.from)
	}
	if r.from == nil {
		copy(bytes, raw)
		return v, nil
	}
	return v, convert(bytes, r.to, raw[:r.size], r.from)
}

// oldElements reads all elements of a section; none where the older version lacks it.
func oldElements[T any](o *Older, name, typ string) ([]T, error) {
	m, ok := o.maps[name]
	if !ok {
		return nil, nil
	}
	r, err := newReader[T](o, name, typ)
	if err != nil {
		return nil, err
	}
	raw, err := m.LookupBytes(uint32(0))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	all := make([]T, len(raw)/r.size)
	for i := range all {
		if all[i], err = r.read(raw[i*r.size:]); err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
	}
	return all, nil
}

// oldOne reads the only element of a section.
func oldOne[T any](o *Older, name, typ string) (v T, err error) {
	all, err := oldElements[T](o, name, typ)
	if err == nil && len(all) == 0 {
		err = fmt.Errorf("read %s: %w", name, fs.ErrNotExist)
	}
	if err != nil {
		return v, err
	}
	return all[0], nil
}

// oldEntries reads a map, of which the older version's programs may change entries
// meanwhile; a map per CPU has a value for each of these.
func oldEntries[K comparable, V any](o *Older, name, keyType, valueType string) (map[K][]V, error) {
	m, ok := o.maps[name]
	if !ok {
		return nil, nil
	}
	key, err := newReader[K](o, name, keyType)
	if err != nil {
		return nil, err
	}
	value, err := newReader[V](o, name, valueType)
	if err != nil {
		return nil, err
	}
	all := map[K][]V{}
	err = walkRaw(m, func(rawKey []byte, rawValues [][]byte) error {
		k, err := key.read(rawKey)
		if err != nil {
			return err
		}
		values := make([]V, len(rawValues))
		for i, raw := range rawValues {
			if values[i], err = value.read(raw); err != nil {
				return err
			}
		}
		all[k] = values
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return all, nil
}

// walkRaw is walk for a map whose types are not Go's. The bytes are fn's until it
// returns.
func walkRaw(m *ebpf.Map, fn func(key []byte, values [][]byte) error) error {
	const batch = 1024
	cpus := 1
	if m.Type() == ebpf.PerCPUArray {
		cpus = ebpf.MustPossibleCPU()
	}
	slice := func(size uint32, n int) reflect.Value {
		return reflect.MakeSlice(reflect.SliceOf(reflect.ArrayOf(int(size), reflect.TypeFor[byte]())), n, n)
	}
	keys, values := slice(m.KeySize(), batch), slice(m.ValueSize(), batch*cpus)
	var cursor ebpf.MapBatchCursor
	for {
		n, end := m.BatchLookup(&cursor, keys.Interface(), values.Interface(), nil)
		if end != nil && !errors.Is(end, ebpf.ErrKeyNotExist) {
			return end
		}
		for i := range n {
			raw := make([][]byte, cpus)
			for cpu := range raw {
				raw[cpu] = values.Index(i*cpus + cpu).Bytes()
			}
			if err := fn(keys.Index(i).Bytes(), raw); err != nil {
				return err
			}
		}
		if end != nil {
			return nil
		}
	}
}

// addrKey is an address under a VLAN.
type addrKey struct {
	addr netip.Addr
	vlan VLAN
}

// addrs returns all addresses.
func (o *Older) addrs() (map[addrKey]Dest, error) {
	ip4, err := oldEntries[bpf.XvlanIp4Key, bpf.XvlanDest](o, bpf.XvlanMapByIp4, "ip4_key", "dest")
	if err != nil {
		return nil, err
	}
	ip6, err := oldEntries[bpf.XvlanIp6Key, bpf.XvlanDest](o, bpf.XvlanMapByIp6, "ip6_key", "dest")
	if err != nil {
		return nil, err
	}
	all := map[addrKey]Dest{}
	for k, d := range ip4 {
		all[addrKey{ip4Addr(k), VLAN(k.Vlan)}] = destFromC(d[0])
	}
	for k, d := range ip6 {
		all[addrKey{netip.AddrFrom16(k.Addr), VLAN(k.Vlan)}] = destFromC(d[0])
	}
	return all, nil
}
