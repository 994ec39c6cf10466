package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os/signal"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/internal/thread"
	"github.com/xvlan/xvlan/loader"
	"github.com/xvlan/xvlan/metrics"
)

// listenAddress is where metrics are to be had unless told otherwise: nobody
// but this host sees them.
const listenAddress = "127.0.0.1:10973"

func (a *app) serveCmd() *cobra.Command {
	address := listenAddress
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Follow what is done to parents and sub-interfaces, and show metrics, until told to end",
		Long: `Stays in the foreground and does at once what every other command does once:
sub-interfaces follow their parent's MTU, link state and MAC, the datapath
follows MACs, addresses and namespaces of sub-interfaces and the addresses of
the host, a parent that was deleted and made anew is attached to again, and what
others have deleted is tidied up. No packet needs it to run.
It ends on SIGTERM and SIGINT. To systemd it tells that it is ready, when it has
looked around once, what it cannot follow, and that it is alive (WatchdogSec=).

By HTTP it answers /metrics, for Prometheus, /healthz, which fails when it has
not looked around for minutes, and /readyz, which fails while something cannot
be followed.`,
		Example: `  xvlan serve
  xvlan -n ns1 serve --listen 127.0.0.1:10974`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return a.serve(address) },
	}
	cmd.Flags().StringVar(&address, "listen", address, "where to answer by HTTP, in the namespace it is started in; empty for nowhere")
	return cmd
}

func (a *app) serve(address string) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	a.logger().Info("serving", "version", version())
	defer a.logger().Info("ended")
	web := &web{app: a, log: a.logger()}
	end := func() error { return nil }
	if address != "" {
		var err error
		if end, err = web.start(address); err != nil {
			return err
		}
	}
	web.live(ctx)
	err := a.with(func(h *loader.Host) error { return h.Serve(ctx, web.looked) })
	web.notify(daemon.SdNotifyStopping)
	return errors.Join(err, end())
}

// web is what serve answers by HTTP, and tells a service manager.
type web struct {
	app   *app
	log   *slog.Logger
	last  atomic.Pointer[time.Time] // when it was looked around
	inept atomic.Pointer[error]     // what could not be followed then
}

// start listens and answers until end is called.
func (w *web) start(address string) (end func() error, err error) {
	ln, err := net.Listen("tcp", address)
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, fmt.Errorf("listen %s: %w: another xvlan serve may be there; choose another with --listen ADDRESS:PORT, or none with --listen ''", address, err)
	}
	if err != nil {
		return nil, usagef("listen %s: write it as 127.0.0.1:10973: %v", address, err)
	}
	registry := prometheus.NewRegistry()
	for _, c := range []prometheus.Collector{
		metrics.New(w.read, version(), w.log),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	} {
		if err := registry.Register(c); err != nil {
			return nil, errors.Join(fmt.Errorf("register metrics: %w", err), ln.Close())
		}
	}
	mux := http.NewServeMux()
	complaints := slog.NewLogLogger(w.log.Handler(), slog.LevelWarn)
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		MaxRequestsInFlight: 4,
		ErrorLog:            complaints,
		ErrorHandling:       promhttp.ContinueOnError, // one odd series is not to hide the others
	}))
	mux.HandleFunc("GET /healthz", func(rw http.ResponseWriter, _ *http.Request) { answer(rw, w.health()) })
	mux.HandleFunc("GET /readyz", func(rw http.ResponseWriter, _ *http.Request) { answer(rw, w.ready()) })
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, ErrorLog: complaints}
	done := make(chan error, 1)
	go func() { done <- server.Serve(ln) }()
	w.app.metricsOn(fmt.Sprintf("http://%s/metrics", ln.Addr()))
	return func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		err := server.Shutdown(ctx)
		if served := <-done; !errors.Is(served, http.ErrServerClosed) {
			err = errors.Join(err, served)
		}
		if err != nil {
			return fmt.Errorf("answer http: %w", err)
		}
		return nil
	}, nil
}

// metricsOn says where metrics are, at whatever level is logged: the port may
// have been left to the kernel.
func (a *app) metricsOn(url string) {
	if a.logFormat == "json" {
		slog.New(slog.NewJSONHandler(a.out, nil)).Info("metrics", "url", url)
		return
	}
	fmt.Fprintf(a.out, "metrics on %s\n", url)
}

func answer(rw http.ResponseWriter, err error) {
	if err != nil {
		http.Error(rw, err.Error(), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(rw, "ok")
}

// looked hears of each look around.
func (w *web) looked(err error) {
	now := time.Now()
	was := w.inept.Swap(&err)
	first := w.last.Swap(&now) == nil
	if first || (err == nil) != (*was == nil) {
		w.status(first, err)
	}
}

func (w *web) health() error {
	last := w.last.Load()
	if last == nil {
		return errors.New("has not looked around yet")
	}
	if since := time.Since(*last); since > 3*loader.RepairTime {
		return fmt.Errorf("has not looked around for %v", since.Round(time.Second))
	}
	return nil
}

func (w *web) ready() error {
	if err := w.health(); err != nil {
		return err
	}
	return *w.inept.Load()
}

// read takes a snapshot on a thread of its own, which may be in another network
// namespace than all others and ends with it.
func (w *web) read() (s *metrics.Snapshot, err error) {
	err = thread.Run(func() error {
		return w.app.with(func(h *loader.Host) (err error) {
			s = &metrics.Snapshot{}
			if s.Parents, err = h.Parents(); err != nil {
				return err
			}
			if s.Links, err = h.Links(); err != nil {
				return err
			}
			s.Usage, err = h.Usage()
			return err
		})
	})
	return s, err
}
