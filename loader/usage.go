package loader

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"

	"github.com/xvlan/xvlan/maps"
)

// Usage is what an attached parent takes of the kernel.
type Usage struct {
	Parent   string
	Maps     []maps.Use
	Programs []ProgramUse
}

// ProgramUse is how often a program has run and for how long, since the kernel
// was told to keep count (sysctl kernel.bpf_stats_enabled). On the rung tc
// xvlan_xdp never runs.
type ProgramUse struct {
	Name string
	Runs uint64
	Time time.Duration
}

// Usage looks at every attached parent of this namespace that is not gone.
func (h *Host) Usage() ([]Usage, error) {
	var all []Usage
	err := h.eachParent(func(f folder, set *maps.Set, rec maps.Parent) error {
		if rec.Index == 0 {
			return nil
		}
		u := Usage{Parent: rec.Name}
		var err error
		if u.Maps, err = set.Use(); err != nil {
			return fmt.Errorf("parent %s: %w", rec.Name, err)
		}
		for _, name := range []string{pinXDPProg, pinRXProg, pinTX, pinHostProg} {
			use, err := programUse(filepath.Join(f.path(), name))
			if err != nil {
				return fmt.Errorf("parent %s: program %s: %w", rec.Name, name, err)
			}
			use.Name = name
			u.Programs = append(u.Programs, use)
		}
		all = append(all, u)
		return nil
	})
	return all, err
}

func programUse(pin string) (use ProgramUse, err error) {
	prog, err := ebpf.LoadPinnedProgram(pin, &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return use, fmt.Errorf("open pin: %w", err)
	}
	defer func() { err = errors.Join(err, prog.Close()) }()
	stats, err := prog.Stats()
	if err != nil {
		return use, fmt.Errorf("read statistics: %w", err)
	}
	return ProgramUse{Runs: stats.RunCount, Time: stats.Runtime}, nil
}
