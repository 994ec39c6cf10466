// Command xvlan-docker is Docker's network driver xvlan: see package docker.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"

	"github.com/docker/go-connections/sockets"
	"github.com/docker/go-plugins-helpers/network"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/docker"
)

func main() {
	if err := command().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "xvlan-docker:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var socket, state, format string
	cmd := &cobra.Command{
		Use:   "xvlan-docker",
		Short: "Docker's network driver xvlan",
		Long: `Lets Docker make networks of sub-interfaces, as its macvlan and ipvlan drivers do:

  docker network create -d xvlan -o parent=eth0.10 --subnet 192.0.2.0/24 net10
  docker run --network net10 --ip 192.0.2.7 ...

Docker finds the driver by its socket. It may be stopped and started at any time;
networks and traffic stay, and Docker waits for it only to make or remove what is
on such a network.`,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var handler slog.Handler
			switch format {
			case "text":
				handler = slog.NewTextHandler(os.Stderr, nil)
			case "json":
				handler = slog.NewJSONHandler(os.Stderr, nil)
			default:
				return fmt.Errorf("--log-format %s: not known; text and json are", format)
			}
			return serve(cmd.Context(), slog.New(handler), socket, state)
		},
		Version: version(),
	}
	cmd.Flags().StringVar(&socket, "socket", "/run/docker/plugins/xvlan.sock", "where Docker finds the driver, by the name of this file")
	cmd.Flags().StringVar(&state, "state", "/var/lib/xvlan/docker", "folder of what Docker has said of its networks")
	cmd.Flags().StringVar(&format, "log-format", "text", "of the log on standard error: text or json")
	return cmd
}

func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

// serve answers until it is told to end.
func serve(ctx context.Context, log *slog.Logger, socket, state string) error {
	ctx, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM)
	defer stop()
	driver, err := docker.New(log, state)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return fmt.Errorf("make folder of the socket: %w", err)
	}
	listener, err := sockets.NewUnixSocket(socket, 0) // in the place of one that was left
	if err != nil {
		return fmt.Errorf("listen on %s: %w", socket, err)
	}
	context.AfterFunc(ctx, func() { listener.Close() })
	log.Info("ready", "socket", socket)
	err = network.NewHandler(driver).Serve(listener)
	if ctx.Err() != nil && errors.Is(err, net.ErrClosed) {
		return nil
	}
	return fmt.Errorf("serve %s: %w", socket, err)
}
