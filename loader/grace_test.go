package loader

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/xvlan/xvlan/lab"
)

func expedited(t testing.TB) string {
	t.Helper()
	value, err := os.ReadFile(rcuExpedited)
	if err != nil {
		t.Error(err) // not Fatal: also from goroutines
	}
	return strings.TrimSpace(string(value))
}

func setExpedited(t testing.TB, value string) {
	t.Helper()
	if err := os.WriteFile(rcuExpedited, []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

// Grace periods are expedited while changes are made, by however many at once, and not
// afterwards. Others' commands may be at it, too, some of them with another folder of
// locks, so all of it is seen in the end, not at the first look.
func TestHurried(t *testing.T) {
	lab.NeedRoot(t)
	found := expedited(t)
	t.Cleanup(func() { setExpedited(t, found) })
	if err := ensureLocks(); err != nil {
		t.Fatal(err)
	}
	setExpedited(t, "0")
	lab.Eventually(t, "it is set during all changes", func() bool { return manyHurried(t) })
	lab.Eventually(t, "it is put back", func() bool { return expedited(t) == "0" })

	lab.Eventually(t, "what somebody else has set stays", func() bool {
		setExpedited(t, "1")
		if err := hurried(func() error { return nil }); err != nil {
			t.Fatal(err)
		}
		return expedited(t) == "1"
	})

	// What a killed command has left.
	path := filepath.Join(lockDir, graceLock)
	if err := os.WriteFile(path, []byte("1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h := openHost(t, lab.NewNetns(t, "host"), rungCase{})
	lab.Eventually(t, "what a killed command has left is put back", func() bool {
		if err := h.Sweep(); err != nil {
			t.Fatal(err)
		}
		_, err := os.Stat(path)
		return expedited(t) == "0" && errors.Is(err, fs.ErrNotExist)
	})
}

// manyHurried tells whether all of many changes at once were made with it set.
func manyHurried(t *testing.T) bool {
	t.Helper()
	failed := errors.New("of the change")
	var (
		all   sync.WaitGroup
		unset atomic.Int32
	)
	for n := range 8 {
		all.Go(func() {
			for range 50 {
				err := hurried(func() error {
					for range 3 { // long enough for others to come and go
						if expedited(t) != "1" {
							unset.Add(1)
						}
						time.Sleep(50 * time.Microsecond)
					}
					if n == 0 {
						return failed
					}
					return nil
				})
				if n == 0 && !errors.Is(err, failed) || n != 0 && err != nil {
					t.Errorf("the change ended with %v", err)
				}
			}
		})
	}
	all.Wait()
	return unset.Load() == 0
}
