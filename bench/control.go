package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/xvlan/xvlan/loader"
	"github.com/xvlan/xvlan/maps"
)

const (
	some  = 100  // sub-interfaces that are made and removed one by one
	crowd = 1000 // sub-interfaces that a goal is set for

	// fewTurns is how often it is done with more than one: that takes seconds,
	// and its removal most of them.
	fewTurns = 3
)

// A yard is a parent without sub-interfaces, in a namespace of its own, and
// another namespace that they are to be made in.
type yard struct{ *side }

func newYard(name string) (*yard, error) {
	y := &yard{&side{kind: bareTC}}
	prefix := fmt.Sprintf("xvb%d-%s", os.Getpid(), name)
	err := y.build(plan{}, prefix)
	if err == nil {
		var box *space
		if box, err = newSpace(prefix + "-box"); err == nil {
			y.boxes = append(y.boxes, box)
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("build the %s side: %w", name, err), y.close())
	}
	return y, nil
}

// A maker makes so many sub-interfaces and removes them again, in one way.
type maker struct {
	*yard
	make, remove func(n int) error
	clear        func() error // removes all of them at once
}

// makers are ways to make sub-interfaces, each on a yard of its own.
func makers(name string, ways ...func(y *yard) maker) (all []maker, err error) {
	for i, way := range ways {
		y, err := newYard(fmt.Sprintf("%s%d", name, i))
		if err != nil {
			return nil, errors.Join(err, closeMakers(all))
		}
		all = append(all, way(y))
	}
	return all, nil
}

func closeMakers(all []maker) error {
	var errs []error
	for _, m := range all {
		if err := m.detach(); !errors.Is(err, loader.ErrNotFound) { // as a turn that was broken off has left it
			errs = append(errs, err)
		}
		errs = append(errs, m.close())
	}
	return errors.Join(errs...)
}

// with runs fn with a loader of the parent's namespace.
func (y *yard) with(fn func(h *loader.Host) error) error {
	return y.host.do(func() error {
		h, err := loader.Open(slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		defer h.Close()
		return fn(h)
	})
}

// detach removes all that xvlan has made.
func (y *yard) detach() error {
	return y.with(func(h *loader.Host) error { return h.Detach(parentDev) })
}

func (y *yard) box() *space { return y.boxes[0] }

// run runs a command in a namespace, with this on its standard input.
func (s *space) run(input, name string, args ...string) error {
	return s.do(func() error {
		cmd := exec.Command(name, args...)
		cmd.Stdin = strings.NewReader(input)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("run %s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
		}
		return nil
	})
}

// lines makes a line of each number from 1 to n.
func lines(n int, line func(i int) string) string {
	var b strings.Builder
	for i := 1; i <= n; i++ {
		b.WriteString(line(i) + "\n")
	}
	return b.String()
}

// group is what the kernel's devices are made in, to be deleted together.
const group = "5057"

func (y *yard) addWords(i int) string {
	return fmt.Sprintf("link add link %s name %s netns %s type macvlan mode bridge", parentDev, subName(i), y.box().name)
}

func grouped(words string) string {
	return strings.Replace(words, " type ", " group "+group+" type ", 1)
}

func delWords(i int) string { return "link del " + subName(i) }

func (s *space) batch(n int, line func(i int) string) error {
	return s.run(lines(n, line), "ip", "-batch", "-")
}

func (s *space) clear() error { return s.run("", "ip", "link", "del", "group", group) }

// macvlanBatch is one `ip` for all.
func macvlanBatch(y *yard) maker {
	return maker{y,
		func(n int) error { return y.host.batch(n, func(i int) string { return grouped(y.addWords(i)) }) },
		func(n int) error { return y.box().batch(n, delWords) },
		y.box().clear}
}

// vethBatch is the same with pairs that nothing is done with.
func vethBatch(y *yard) maker {
	add := func(i int) string {
		return grouped(fmt.Sprintf("link add %s type veth peer name %s netns %s", portName(i), subName(i), y.box().name))
	}
	return maker{y,
		func(n int) error { return y.host.batch(n, add) },
		func(n int) error { return y.host.batch(n, func(i int) string { return "link del " + portName(i) }) },
		y.host.clear}
}

// xvlanLoader is the loader in this process, which attaches the parent, too.
func xvlanLoader(y *yard) maker {
	add := func(h *loader.Host, n int) error {
		if n > loader.DefaultCapacity {
			if err := h.Attach(parentDev, loader.AttachSpec{Capacity: uint32(n)}); err != nil {
				return err
			}
		}
		spec := loader.LinkSpec{Parent: parentDev, Kind: maps.Macvlan, Mode: maps.Bridge, Netns: y.box().name}
		for i := 1; i <= n; i++ {
			spec.Name = subName(i)
			if err := h.Add(spec); err != nil {
				return err
			}
		}
		return nil
	}
	del := func(h *loader.Host, n int) error {
		for i := 1; i <= n; i++ {
			if err := h.Del(loader.Selector{Name: subName(i), Netns: y.box().name}); err != nil {
				return err
			}
		}
		return nil
	}
	return maker{y,
		func(n int) error { return y.with(func(h *loader.Host) error { return add(h, n) }) },
		func(n int) error { return y.with(func(h *loader.Host) error { return del(h, n) }) },
		y.detach}
}

// macvlanCommands is an `ip` for each.
func macvlanCommands(y *yard) maker {
	return maker{y, y.host.commands("ip", y.addWords), y.box().commands("ip", delWords), nil}
}

// xvlanCommands is an `xvlan` for each.
func xvlanCommands(binary string) func(y *yard) maker {
	return func(y *yard) maker {
		del := func(i int) string { return delWords(i) + " netns " + y.box().name }
		return maker{y, y.host.commands(binary, y.addWords), y.host.commands(binary, del), nil}
	}
}

// commands runs a command for each number.
func (s *space) commands(name string, words func(i int) string) func(n int) error {
	return func(n int) error {
		for i := 1; i <= n; i++ {
			if err := s.run("", name, strings.Fields(words(i))...); err != nil {
				return err
			}
		}
		return nil
	}
}

// milliseconds that fn takes.
func milliseconds(fn func() error) (float64, error) {
	start := time.Now()
	err := fn()
	return float64(time.Since(start)) / 1e6, err
}

// clock is a probe of how long it takes to make n sub-interfaces and to remove
// one after the other.
func (m maker) clock(n int) probe {
	return func() ([]float64, error) {
		made, err := milliseconds(func() error { return m.make(n) })
		if err != nil {
			return nil, err
		}
		removed, err := milliseconds(func() error { return m.remove(n) })
		return []float64{made, removed}, err
	}
}

// turns is interleave for n sub-interfaces: a round is one turn.
func (b *bench) turns(ctx context.Context, n int, probes ...probe) ([][]series, error) {
	rounds := b.rounds
	if n > 1 {
		rounds = min(rounds, fewTurns)
	}
	all := make([][]series, len(probes))
	for range rounds {
		for i, p := range probes {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			figures, err := p()
			if err != nil {
				return nil, err
			}
			all[i] = add(all[i], figures)
		}
	}
	return all, nil
}

// control is about how long the control plane takes, and what it holds.
func (b *bench) control(ctx context.Context) (rows []*row, err error) {
	dir, err := os.MkdirTemp("", "xvlan-bench-")
	if err != nil {
		return nil, fmt.Errorf("make folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	binary := filepath.Join(dir, "xvlan")
	if err := build(binary); err != nil {
		return nil, err
	}
	steps := []func() ([]*row, error){
		func() ([]*row, error) { return size(binary) },
		func() ([]*row, error) { return b.atOnce(ctx, 1) },
		func() ([]*row, error) { return b.atOnce(ctx, some) },
		func() ([]*row, error) { return b.byCommand(ctx, binary) },
		func() ([]*row, error) { return b.holding(ctx, binary, crowd) },
	}
	if b.large {
		steps = append(steps, func() ([]*row, error) { return b.holding(ctx, binary, 10*crowd) })
	}
	for _, step := range steps {
		more, err := step()
		if err != nil {
			return nil, err
		}
		rows = append(rows, more...)
	}
	return rows, nil
}

// atOnce compares making and removing n sub-interfaces in one process.
func (b *bench) atOnce(ctx context.Context, n int) (rows []*row, err error) {
	all, err := makers("once", macvlanBatch, xvlanLoader, vethBatch)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closeMakers(all)) }()
	took, err := b.turns(ctx, n, all[0].clock(n), all[1].clock(n), all[2].clock(n))
	if err != nil {
		return nil, err
	}
	mv, xv, veth := took[0], took[1], took[2]
	for i, what := range []string{"making", "removing"} {
		what = fmt.Sprintf("%s %d in one process", what, n)
		rows = append(rows, compare(what, "ms", mv[i], xv[i]).lessIsBetter(),
			compare(what+", against veth pairs alone", "ms", veth[i], xv[i]).lessIsBetter())
	}
	return rows, nil
}

// byCommand compares as many commands as there are sub-interfaces. The first
// also attaches the parent, the last one detaches it.
func (b *bench) byCommand(ctx context.Context, binary string) (rows []*row, err error) {
	all, err := makers("command", macvlanCommands, xvlanCommands(binary))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closeMakers(all)) }()
	for _, n := range []int{1, some} {
		took, err := b.turns(ctx, n, all[0].clock(n), all[1].clock(n))
		if err != nil {
			return nil, err
		}
		for i, what := range []string{"making", "removing"} {
			rows = append(rows, compare(fmt.Sprintf("%s %d, a command each", what, n), "ms", took[0][i], took[1][i]).lessIsBetter())
		}
	}
	return rows, nil
}

// build makes a command as it is installed, the one of the file's name.
func build(binary string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-o", binary, "github.com/xvlan/xvlan/cmd/"+filepath.Base(binary))
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w: %s", filepath.Base(binary), err, bytes.TrimSpace(out))
	}
	return nil
}

// size compares the commands' files. What ip is linked with besides is not counted.
func size(binary string) ([]*row, error) {
	ip, err := exec.LookPath("ip")
	if err != nil {
		return nil, fmt.Errorf("find ip: %w", err)
	}
	var sizes []series
	for _, path := range []string{ip, binary} {
		info, err := os.Stat(path)
		if err != nil {
			return nil, fmt.Errorf("look at command: %w", err)
		}
		sizes = append(sizes, series{float64(info.Size()) / (1 << 20)})
	}
	return []*row{compare("the command's file, against ip's", "MiB", sizes[0], sizes[1]).lessIsBetter()}, nil
}
