package main

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// A probe measures one contender for a moment: some hundredths of a second. It
// returns the same number of figures each time, all of them costs: less is
// better.
type probe func() ([]float64, error)

// minTurns is how many turns a probe has in a round at the least, however slow
// the machine is just now.
const minTurns = 3

// series are one figure of one contender, a value a round.
type series []float64

// interleave lets the probes take turns: in each round each of them has many,
// among each other's, so that all see the same disturbances. Disturbances only
// ever add to a cost, so a round's value is the lower quartile of its turns.
// The result is indexed by probe, then by figure.
func (b *bench) interleave(ctx context.Context, probes ...probe) ([][]series, error) {
	all := make([][]series, len(probes))
	for range b.rounds {
		round := make([][]series, len(probes))
		end := time.Now().Add(b.time * time.Duration(len(probes)))
		for t := 0; t < minTurns || time.Now().Before(end); t++ {
			for i := range probes {
				if err := ctx.Err(); err != nil {
					return nil, err
				}
				i = (i + t) % len(probes) // not always after the same one
				figures, err := probes[i]()
				if err != nil {
					return nil, err
				}
				round[i] = add(round[i], figures)
			}
		}
		for i, turns := range round {
			quartiles := make([]float64, len(turns))
			for n, s := range turns {
				quartiles[n] = s.quantile(0.25)
			}
			all[i] = add(all[i], quartiles)
		}
	}
	return all, nil
}

func add(to []series, figures []float64) []series {
	if to == nil {
		to = make([]series, len(figures))
	}
	for n, f := range figures {
		to[n] = append(to[n], f)
	}
	return to
}

func (s series) quantile(q float64) float64 {
	sorted := slices.Sorted(slices.Values(s))
	return sorted[int(q*float64(len(sorted)-1)+0.5)]
}

// per divides round by round.
func (s series) per(t series) series {
	r := make(series, len(s))
	for i := range s {
		r[i] = s[i] / t[i]
	}
	return r
}

// inverse turns what one costs into how many there are of it, in this unit.
func (s series) inverse(unit float64) series {
	r := make(series, len(s))
	for i := range s {
		r[i] = unit / s[i]
	}
	return r
}

// takeOff takes a baseline off two series, round by round. Rounds in which
// disturbances left nothing of one of them are left out.
func takeOff(base, s, t series) (series, series, error) {
	var a, b series
	for i := range base {
		if s[i] > base[i] && t[i] > base[i] {
			a, b = append(a, s[i]-base[i]), append(b, t[i]-base[i])
		}
	}
	if len(a) <= len(base)/2 {
		return nil, nil, fmt.Errorf("too noisy: in %d of %d rounds a baseline cost more than what holds it; run again, with a higher -time",
			len(base)-len(a), len(base))
	}
	return a, b, nil
}
