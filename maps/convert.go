package maps

import (
	"encoding/binary"
	"fmt"

	"github.com/cilium/ebpf/btf"
)

// convert copies what a value of an older type has into one of a newer: structs
// by the names of their fields, arrays by index, integers by value. What the
// older has not stays as it is; what the newer has not, or has too little room
// for, is left out. Bit fields, unions and floats are refused.
func convert(dst []byte, to btf.Type, src []byte, from btf.Type) error {
	to, from = btf.UnderlyingType(to), btf.UnderlyingType(from)
	switch to := to.(type) {
	case *btf.Struct:
		from, ok := from.(*btf.Struct)
		if !ok {
			break
		}
		return convertStruct(dst, to, src, from)
	case *btf.Array:
		from, ok := from.(*btf.Array)
		if !ok {
			break
		}
		return convertArray(dst, to, src, from)
	case *btf.Int, *btf.Enum:
		switch from.(type) {
		case *btf.Int, *btf.Enum:
			return convertInt(dst, src)
		}
	}
	return fmt.Errorf("%v cannot be made from %v", to, from)
}

func convertStruct(dst []byte, to *btf.Struct, src []byte, from *btf.Struct) error {
	older := map[string]btf.Member{}
	for _, m := range from.Members {
		older[m.Name] = m
	}
	for _, m := range to.Members {
		old, ok := older[m.Name]
		if !ok {
			continue
		}
		if m.BitfieldSize != 0 || old.BitfieldSize != 0 {
			return fmt.Errorf("%s.%s: bit fields are not carried over", to.Name, m.Name)
		}
		d, err := element(dst, m.Type, int(m.Offset.Bytes()))
		if err != nil {
			return err
		}
		s, err := element(src, old.Type, int(old.Offset.Bytes()))
		if err != nil {
			return err
		}
		if err := convert(d, m.Type, s, old.Type); err != nil {
			return fmt.Errorf("%s.%s: %w", to.Name, m.Name, err)
		}
	}
	return nil
}

func convertArray(dst []byte, to *btf.Array, src []byte, from *btf.Array) error {
	toSize, err := btf.Sizeof(to.Type)
	if err != nil {
		return err
	}
	fromSize, err := btf.Sizeof(from.Type)
	if err != nil {
		return err
	}
	for i := range int(min(to.Nelems, from.Nelems)) {
		d, err := element(dst, to.Type, i*toSize)
		if err != nil {
			return err
		}
		s, err := element(src, from.Type, i*fromSize)
		if err != nil {
			return err
		}
		if err := convert(d, to.Type, s, from.Type); err != nil {
			return fmt.Errorf("element %d: %w", i, err)
		}
	}
	return nil
}

// element is the bytes of one of a type that stands at an offset.
func element(all []byte, t btf.Type, offset int) ([]byte, error) {
	size, err := btf.Sizeof(t)
	if err != nil {
		return nil, err
	}
	if offset+size > len(all) {
		return nil, fmt.Errorf("%v at %d does not fit into %d bytes", t, offset, len(all))
	}
	return all[offset : offset+size], nil
}

// convertInt copies an integer, none of which is negative.
func convertInt(dst, src []byte) error {
	var wide [8]byte
	if len(dst) > len(wide) || len(src) > len(wide) {
		return fmt.Errorf("integers of %d and %d bytes", len(dst), len(src))
	}
	little := binary.NativeEndian.Uint16([]byte{1, 0}) == 1
	if !little {
		copy(wide[len(wide)-len(src):], src)
		copy(dst, wide[len(wide)-len(dst):])
		return nil
	}
	copy(wide[:], src)
	copy(dst, wide[:])
	return nil
}
