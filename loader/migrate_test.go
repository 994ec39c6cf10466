package loader

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/xvlan/xvlan/lab"
	"github.com/xvlan/xvlan/maps"
)

// nextXvlan returns the path of xvlan as a version to come might be, whose maps
// are laid out otherwise: lab/next builds it, unless it lies beside the tests.
var nextXvlan = sync.OnceValues(func() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	beside := filepath.Join(filepath.Dir(self), "xvlan-next")
	if _, err := os.Stat(beside); err == nil {
		return beside, nil
	}
	dir, err := os.MkdirTemp("", "xvlan-next-")
	if err != nil {
		return "", err
	}
	builtNext = dir
	path := filepath.Join(dir, "xvlan")
	if out, err := exec.Command("go", "run", "../lab/next", "-o", path).CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the next version: %w\n%s", err, out)
	}
	return path, nil
})

// builtNext is the folder of what nextXvlan has built, which TestMain removes.
var builtNext string

// next runs the next version's command in the host's namespace.
func (s *site) next(t *testing.T, args ...string) string {
	t.Helper()
	return s.host.ns.Run(t, s.nextPath(t), args...)
}

func (s *site) nextPath(t *testing.T) string {
	t.Helper()
	path, err := nextXvlan()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// A nextLink is what the next version says of a sub-interface.
type nextLink struct {
	Name     string `json:"ifname"`
	ID       maps.ID
	MAC      string `json:"address"`
	Addrs    []struct{ Local, Origin string }
	Verdicts map[string]maps.Counter
}

func (s *site) nextLinks(t *testing.T) (links []nextLink) {
	t.Helper()
	if err := json.Unmarshal([]byte(s.next(t, "-j", "-s", "link", "show")), &links); err != nil {
		t.Fatal(err)
	}
	return links
}

// line says of a sub-interface what has to be the same in both versions.
func (l *nextLink) line() string {
	l.Addrs = slices.DeleteFunc(l.Addrs, func(a struct{ Local, Origin string }) bool {
		return netip.MustParseAddr(a.Local).IsLinkLocalUnicast() // learned sooner or later
	})
	slices.SortFunc(l.Addrs, func(a, b struct{ Local, Origin string }) int {
		return slices.Compare([]string{a.Local}, []string{b.Local})
	})
	return fmt.Sprint(l.Name, " id ", l.ID, " mac ", l.MAC, " addresses ", l.Addrs)
}

// known says of all sub-interfaces what this version knows of them.
func (s *site) known(t *testing.T) (lines []string) {
	t.Helper()
	s.do(t, func(h *Host) error {
		links, err := h.Links()
		for _, l := range links {
			next := nextLink{Name: l.Name, ID: l.ID, MAC: l.MAC.String()}
			for _, a := range l.Addrs {
				next.Addrs = append(next.Addrs, struct{ Local, Origin string }{a.Addr.String(), a.Origin.String()})
			}
			lines = append(lines, next.line())
		}
		return err
	})
	return lines
}

// carries checks that the next version knows what this one did, that everybody
// reaches the wire, and that it can take everything down.
func (s *site) carries(t *testing.T, known []string, addrs []netip.Addr) {
	t.Helper()
	var lines []string
	for _, l := range s.nextLinks(t) {
		lines = append(lines, l.line())
	}
	if !slices.Equal(lines, known) {
		t.Errorf("the next version knows\n%q\nand this one did\n%q", lines, known)
	}
	for _, e := range s.subs {
		for _, a := range addrs {
			e.ping(t, a)
		}
	}
	s.next(t, "link", "add", "link", parentDev, "new0", "type", "macvlan", "mode", "bridge")
	s.next(t, "parent", "detach", parentDev)
	s.checkGone(t)
}

// ip4s and ip6s are what sub-interfaces can reach.
func (s *site) ip4s() (all []netip.Addr) {
	for _, e := range append([]*end{s.wire}, s.subs...) {
		all = append(all, e.ip4.Addr())
	}
	return all
}

func (s *site) ip6s() (all []netip.Addr) {
	for _, e := range append([]*end{s.wire}, s.subs...) {
		all = append(all, e.ip6.Addr())
	}
	return all
}

// A version whose maps are laid out otherwise takes everything over under
// traffic, of which nothing is lost, nor is anything counted twice or not at all.
func TestMigrate(t *testing.T) {
	onRungs(t, withNetkit(ourRungs), func(t *testing.T, r rungCase) {
		s := newSite(t, r, siteOption{noIPv6: true}) // which sends by itself
		s.populateQuiet(t)
		s.setHost(t, s.sub(t, "mac1"), true)
		s.nextPath(t)
		known, e := s.known(t), s.sub(t, "mac1")
		before := s.link(t, e).Stats
		s.underTraffic(t, e, func() {
			if out, want := s.next(t, "parent", "upgrade"), parentDev+": upgraded\n"; out != want {
				t.Errorf("the upgrade says %q, want %q", out, want)
			}
		}, func() (rx, tx uint64) {
			for _, l := range s.nextLinks(t) {
				if l.Name == e.dev && l.MAC == e.mac(t).String() {
					return l.Verdicts["rx"].Packets - before[maps.RX].Packets, l.Verdicts["tx"].Packets - before[maps.TX].Packets
				}
			}
			t.Fatalf("the next version does not know %s", e.dev)
			return 0, 0
		})
		if err := s.try(t, func(h *Host) error { _, err := h.Links(); return err }); !errors.Is(err, maps.ErrSchema) {
			t.Errorf("this version lists what the next one has made: %v", err)
		}
		s.host.ping(t, e.ip4.Addr())
		s.carries(t, known, s.ip4s())
	})
}

// What fails or is interrupted before the last step leaves this version in place,
// and the next attempt comes to an end.
func TestMigrateInterrupted(t *testing.T) {
	lab.NeedTool(t, "strace")
	for _, how := range []string{"error=EIO", "signal=KILL"} {
		t.Run(how, func(t *testing.T) {
			onRungs(t, ourRungs, func(t *testing.T, r rungCase) {
				s := newSite(t, r, siteOption{})
				s.populate(t)
				for _, e := range s.subs { // all addresses are known then
					e.ping(t, s.wire.ip4.Addr())
					e.ping(t, s.wire.ip6.Addr())
				}
				known, before := s.known(t), s.running(t)
				out, err := s.host.ns.Try(t, "strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=renameat2",
					"-e", "inject=renameat2:"+how, s.nextPath(t), "parent", "upgrade")
				if err == nil {
					t.Fatalf("the upgrade succeeded:\n%s", out)
				}
				if now := s.known(t); !slices.Equal(now, known) {
					t.Errorf("this version knows\n%q\nand did\n%q", now, known)
				}
				if after := s.running(t); how == "error=EIO" && !slices.Equal(after, before) {
					t.Errorf("there run\n%q\nbefore\n%q", after, before)
				}
				for _, e := range s.subs {
					s.wire.ping(t, e.ip4.Addr())
				}
				s.next(t, "parent", "upgrade", parentDev)
				s.carries(t, known, slices.Concat(s.ip4s(), s.ip6s()))
			})
		})
	}
}
