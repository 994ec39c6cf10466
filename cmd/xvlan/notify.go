package main

import (
	"context"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// What serve tells the service manager that has started it, by sd_notify(3). It
// has nothing to read anew, so it never reloads.

// notify tells the manager; without one nobody is told.
func (w *web) notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		w.log.Warn("cannot tell the service manager", "state", state, "err", err)
	}
}

// status tells what cannot be followed, and first of all that it is ready.
func (w *web) status(ready bool, err error) {
	state := "STATUS=following"
	if err != nil {
		state = "STATUS=cannot follow: " + oneLine(err)
	}
	if ready {
		state = daemon.SdNotifyReady + "\n" + state
	}
	w.notify(state)
}

// live tells, until ctx ends, that serve is alive, as often as the manager wants to
// hear it and for as long as it looks around.
func (w *web) live(ctx context.Context) {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		w.log.Warn("cannot tell the service manager that all is well", "err", err)
	}
	if interval > 0 {
		go w.beat(ctx, interval/2)
	}
}

func (w *web) beat(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if w.health() == nil {
				w.notify(daemon.SdNotifyWatchdog)
			}
		}
	}
}
