package main

import (
	"context"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/loader"
)

func (a *app) serveCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "serve",
		Short: "Follow what is done to parents and sub-interfaces, until told to end",
		Long: `Stays in the foreground and does at once what every other command does once:
sub-interfaces follow their parent's MTU, link state and MAC, the datapath
follows MACs, addresses and namespaces of sub-interfaces and the addresses of
the host, and what others have deleted is tidied up. No packet needs it to run.
It ends on SIGTERM and SIGINT.`,
		Example: `  xvlan serve
  xvlan -n ns1 serve`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
			defer stop()
			return a.with(func(h *loader.Host) error { return h.Serve(ctx) })
		},
	}
}
