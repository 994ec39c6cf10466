package maps

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/cilium/ebpf"
)

// A section is a map whose only entry is an array, mapped into memory: reading
// and writing it takes no system call, and leaves the elements beside alone.
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
	size := binary.Size(element)
	return section[T]{mem, size, int(m.ValueSize()) / size}, nil
}

// read returns n elements from the index on.
func (s section[T]) read(index, n int) ([]T, error) {
	if index+n > s.len { // the mapping ends with a page
		return nil, fmt.Errorf("element %d of %d: %w", index+n-1, s.len, io.EOF)
	}
	elements := make([]T, n)
	r := io.NewSectionReader(s.mem, int64(index*s.size), int64(n*s.size))
	if err := binary.Read(r, binary.NativeEndian, elements); err != nil {
		return nil, fmt.Errorf("element %d: %w", index, err)
	}
	return elements, nil
}

func (s section[T]) write(index int, element T) error {
	if index >= s.len {
		return fmt.Errorf("element %d of %d: %w", index, s.len, io.EOF)
	}
	raw, err := binary.Append(nil, binary.NativeEndian, element)
	if err != nil {
		return fmt.Errorf("element %d: %w", index, err)
	}
	if _, err := s.mem.WriteAt(raw, int64(index*s.size)); err != nil {
		return fmt.Errorf("element %d: %w", index, err)
	}
	return nil
}
