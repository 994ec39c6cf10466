// Package measure finds out what sub-interfaces cost on this machine, in network
// namespaces and with maps of its own, so that nothing else is touched or
// disturbed but by the CPU time that it takes. The namespaces have no names, and
// go at the latest with the process.
package measure

import (
	"context"
	"errors"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// How often everything is measured: in each round several times, of which the
// least counts, as disturbances only ever add to a cost.
const (
	minRounds = 7
	maxRounds = 9
	turns     = 3

	minTurn = 200 * time.Microsecond
)

// Spread is the median of the rounds, and how far they spread.
type Spread struct {
	Median float64 `json:"median"`
	Least  float64 `json:"least"`
	Most   float64 `json:"most"`
}

// Budget bounds a measurement, with all that it takes to prepare it.
type Budget struct {
	Time     time.Duration
	Progress func(part float64) // is told how much is done, 0 to 1
}

// A probe measures one thing for about so long and returns what it costs.
type probe func(time.Duration) (float64, error)

// interleave lets the probes take turns, so that all see the same disturbances.
// It keeps to what is left of the time, but for a minimum of rounds of short turns.
func interleave(ctx context.Context, end time.Time, progress func(float64), probes []probe) ([]Spread, error) {
	const sweeps = maxRounds * turns
	rounds := make([][]float64, len(probes))
	for sweep := range sweeps {
		round, turn := sweep/turns, sweep%turns
		if round >= minRounds && turn == 0 && time.Now().After(end) {
			break
		}
		slot := max(time.Until(end)/time.Duration((sweeps-sweep)*len(probes)), minTurn)
		for i := range probes {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			i = (i + sweep) % len(probes) // not always after the same one
			cost, err := probes[i](slot)
			if err != nil {
				return nil, err
			}
			if turn == 0 {
				rounds[i] = append(rounds[i], cost)
			}
			rounds[i][round] = min(rounds[i][round], cost)
		}
		progress(float64(sweep+1) / sweeps)
	}
	spreads := make([]Spread, len(probes))
	for i, values := range rounds {
		slices.Sort(values)
		spreads[i] = Spread{values[len(values)/2], values[0], values[len(values)-1]}
	}
	progress(1)
	return spreads, nil
}

// cpuTime is what the calling thread, which must be locked, runs for while fn does.
func cpuTime(fn func() error) (time.Duration, error) {
	var before, after unix.Timespec
	err0 := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &before)
	err1 := fn()
	err2 := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &after)
	return time.Duration(after.Nano() - before.Nano()), errors.Join(err0, err1, err2)
}
