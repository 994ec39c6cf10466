package spoof

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
)

func testScene() Scene {
	party := func(n byte) Party {
		return Party{MAC{2, 5: n}, netip.AddrFrom4([4]byte{192, 0, 2, n}), netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: n})}
	}
	return Scene{
		Me: party(1), Sibling: party(2), Host: party(3), Wire: party(4), Local: netip.MustParseAddr("fe80::1"),
		Free4: party(9).IP4, Free6: party(9).IP6, Broadcast4: party(255).IP4, Stranger: party(9).MAC,
	}
}

// What the documentation says is tried is what is.
func TestDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/source-guard.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(page), "\n| what is sent | dropped as |\n|---|---|\n")
	table, _, _ = strings.Cut(table, "\n\n")
	var want []string
	for _, m := range testScene().Lies() {
		want = append(want, fmt.Sprintf("| %s | `%s` |", m.Name, m.Why))
	}
	if strings.TrimSpace(table) != strings.Join(want, "\n") {
		t.Errorf("the table of docs/source-guard.md is to be\n%s", strings.Join(want, "\n"))
	}
}
