package maps

import (
	"fmt"
	"io"
	"unsafe"

	"github.com/cilium/ebpf"
)

// A section is a map whose only entry is an array, mapped into memory: reading
// and writing it takes no system call, and leaves the elements beside alone. T
// has no pointers and is laid out as the programs have it, so that elements are
// copied as they are: every command reads all records several times.
type section[T any] struct {
	mem  *ebpf.Memory
	size int // of an element
	len  int
}

func newSection[T any](m *ebpf.Map) (section[T], error) {
	mem, err := m.Memory()
	if err != nil {
		return section[T]{}, fmt.Errorf("map section: %w", err)
	}
	var element T
	size := int(unsafe.Sizeof(element))
	return section[T]{mem, size, int(m.ValueSize()) / size}, nil
}

// bytes are the memory of elements.
func (s section[T]) bytes(elements []T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(elements))), len(elements)*s.size)
}

// read returns n elements from the index on.
func (s section[T]) read(index, n int) ([]T, error) {
	if index+n > s.len { // the mapping ends with a page
		return nil, fmt.Errorf("element %d of %d: %w", index+n-1, s.len, io.EOF)
	}
	elements := make([]T, n)
	if _, err := s.mem.ReadAt(s.bytes(elements), int64(index*s.size)); err != nil {
		return nil, fmt.Errorf("element %d: %w", index, err)
	}
	return elements, nil
}

func (s section[T]) write(index int, element T) error {
	if index >= s.len {
		return fmt.Errorf("element %d of %d: %w", index, s.len, io.EOF)
	}
	if _, err := s.mem.WriteAt(s.bytes([]T{element}), int64(index*s.size)); err != nil {
		return fmt.Errorf("element %d: %w", index, err)
	}
	return nil
}
