package maps

import (
	"bytes"
	"testing"

	"github.com/cilium/ebpf/btf"
)

// What both versions of a type have is copied, wherever it stands; all numbers
// are written as little-endian machines have them.
func TestConvert(t *testing.T) {
	u8, u16, u32, u64 := &btf.Int{Size: 1}, &btf.Int{Size: 2}, &btf.Int{Size: 4}, &btf.Int{Size: 8}
	enum := &btf.Enum{Size: 4}
	typedef := &btf.Typedef{Name: "__u32", Type: u32}
	array := func(of btf.Type, n uint32) *btf.Array { return &btf.Array{Index: u32, Type: of, Nelems: n} }
	record := func(size uint32, members ...btf.Member) *btf.Struct {
		return &btf.Struct{Name: "s", Size: size, Members: members}
	}
	at := func(name string, offset int, typ btf.Type) btf.Member {
		return btf.Member{Name: name, Type: typ, Offset: btf.Bits(offset * 8)}
	}
	for _, c := range []struct {
		name     string
		to, from btf.Type
		src      []byte
		want     []byte // nil: it is refused
	}{
		{"same", u32, u32, []byte{1, 2, 3, 4}, []byte{1, 2, 3, 4}},
		{"behind a typedef", u32, typedef, []byte{1, 2, 3, 4}, []byte{1, 2, 3, 4}},
		{"an enum from a number", enum, u32, []byte{1, 2, 3, 4}, []byte{1, 2, 3, 4}},
		{"wider", u64, u32, []byte{1, 2, 3, 4}, []byte{1, 2, 3, 4, 0, 0, 0, 0}},
		{"narrower", u16, u32, []byte{1, 2, 0, 0}, []byte{1, 2}},
		{"longer array", array(u8, 4), array(u8, 2), []byte{1, 2}, []byte{1, 2, 0xee, 0xee}},
		{"shorter array", array(u8, 2), array(u8, 4), []byte{1, 2, 3, 4}, []byte{1, 2}},
		{
			"array of wider elements", array(u16, 2), array(u8, 2),
			[]byte{1, 2}, []byte{1, 0, 2, 0},
		},
		{
			"fields that moved, came and went",
			record(8, at("b", 0, u16), at("new", 2, u16), at("a", 4, u32)),
			record(8, at("a", 0, u32), at("gone", 4, u16), at("b", 6, u16)),
			[]byte{1, 2, 3, 4, 5, 6, 7, 8}, []byte{7, 8, 0xee, 0xee, 1, 2, 3, 4},
		},
		{
			"a field within a field",
			record(4, at("in", 0, record(4, at("x", 2, u16)))), record(2, at("in", 0, record(2, at("x", 0, u16)))),
			[]byte{1, 2}, []byte{0xee, 0xee, 1, 2},
		},
		{"a number from a struct", u32, record(4, at("a", 0, u32)), []byte{1, 2, 3, 4}, nil},
		{"a struct from a number", record(4, at("a", 0, u32)), u32, []byte{1, 2, 3, 4}, nil},
		{"an array from a number", array(u8, 4), u32, []byte{1, 2, 3, 4}, nil},
		{"a pointer", &btf.Pointer{Target: u8}, &btf.Pointer{Target: u8}, make([]byte, 8), nil},
		{
			"a bit field", record(4, btf.Member{Name: "a", Type: u32, BitfieldSize: 3}), record(4, at("a", 0, u32)),
			[]byte{1, 2, 3, 4}, nil,
		},
		{"too short", record(4, at("a", 0, u32)), record(8, at("a", 4, u32)), []byte{1, 2, 3, 4}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			size, err := btf.Sizeof(c.to)
			if err != nil {
				t.Fatal(err)
			}
			dst := bytes.Repeat([]byte{0xee}, size)
			err = convert(dst, c.to, c.src, c.from)
			if c.want == nil && err == nil {
				t.Errorf("made % x", dst)
			}
			if c.want != nil && (err != nil || !bytes.Equal(dst, c.want)) {
				t.Errorf("made % x, %v\nwant % x", dst, err, c.want)
			}
		})
	}
}
