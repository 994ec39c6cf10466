package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/term"

	"github.com/xvlan/xvlan/loader"
)

// Exit codes: as with iproute2 a wrong word is told from a failure.
const (
	exitOK    = 0
	exitFail  = 1
	exitUsage = 2
)

// errUsage marks what the words typed were wrong by themselves.
var errUsage = errors.New("usage")

// usagef is an error in the words typed.
func usagef(format string, args ...any) error {
	return fmt.Errorf("%w: %w", fmt.Errorf(format, args...), errUsage)
}

// exitCode is what a command ends with that has said err. One that has not
// begun did not understand its words.
func (a *app) exitCode(err error) int {
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errUsage) || !a.started:
		return exitUsage
	}
	return exitFail
}

// reasons are what a script may want to act on, as JSON names it.
var reasons = []error{errUsage, loader.ErrNotFound, loader.ErrExists, loader.ErrInvalid, loader.ErrBusy,
	loader.ErrPrivilege, loader.ErrUnsupported, loader.ErrTransient}

// fail says why a command has failed, in one line.
func (a *app) fail(err error, args []string) {
	if !a.started && slices.Contains(logFormatOf(args), "json") {
		a.logFormat = "json" // the flags may not have been read
	}
	if a.logFormat != "json" {
		fmt.Fprintf(a.err, "xvlan: %s\n", printable(oneLine(err)))
		return
	}
	reason := ""
	if i := slices.IndexFunc(reasons, func(r error) bool { return errors.Is(err, r) }); i >= 0 {
		reason = reasons[i].Error()
	} else if !a.started {
		reason = errUsage.Error()
	}
	a.logger().Error("failed", "err", oneLine(err), "reason", reason, "exit", a.exitCode(err))
}

// logFormatOf finds what --log-format was given where that was not understood.
func logFormatOf(args []string) (said []string) {
	for i, arg := range args {
		if v, ok := strings.CutPrefix(arg, "--log-format="); ok {
			said = append(said, v)
		} else if arg == "--log-format" && i+1 < len(args) {
			said = append(said, args[i+1])
		}
	}
	return said
}

// oneLine folds joined errors, which come a line each.
func oneLine(err error) string {
	var parts []string
	for line := range strings.Lines(err.Error()) {
		if line = strings.TrimSuffix(strings.TrimSpace(line), ": usage"); line != "" {
			parts = append(parts, line)
		}
	}
	return strings.Join(parts, "; ")
}

// logger logs to standard error: as JSON if that was asked for, else for people
// on a terminal, and with the time elsewhere.
func (a *app) logger() *slog.Logger {
	opts := &slog.HandlerOptions{Level: a.level()}
	switch {
	case a.logFormat == "json":
		return slog.New(slog.NewJSONHandler(a.err, opts))
	case isTerminal(a.err):
		return slog.New(newTerminalHandler(a.err, opts.Level))
	}
	return slog.New(slog.NewTextHandler(a.err, opts))
}

var logLevels = map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}

func (a *app) level() slog.Level {
	if level, ok := logLevels[a.logLevel]; ok {
		return level
	}
	if a.verbose {
		return slog.LevelDebug
	}
	return slog.LevelWarn
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// terminalHandler writes what a person wants to read, in the form of a
// command's errors: "xvlan: warning: what happened: parent=eth0".
type terminalHandler struct {
	out   io.Writer
	mu    *sync.Mutex
	attrs slog.Handler // writes attributes, and nothing else, into buf
	buf   *bytes.Buffer
}

func newTerminalHandler(out io.Writer, level slog.Leveler) *terminalHandler {
	buf := &bytes.Buffer{}
	bare := func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && slices.Contains([]string{slog.TimeKey, slog.LevelKey, slog.MessageKey}, a.Key) {
			return slog.Attr{}
		}
		return a
	}
	return &terminalHandler{out, &sync.Mutex{}, slog.NewTextHandler(buf, &slog.HandlerOptions{Level: level, ReplaceAttr: bare}), buf}
}

func (h *terminalHandler) Enabled(ctx context.Context, l slog.Level) bool {
	return h.attrs.Enabled(ctx, l)
}

func (h *terminalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &terminalHandler{h.out, h.mu, h.attrs.WithAttrs(attrs), h.buf}
}

func (h *terminalHandler) WithGroup(name string) slog.Handler {
	return &terminalHandler{h.out, h.mu, h.attrs.WithGroup(name), h.buf}
}

func (h *terminalHandler) Handle(ctx context.Context, r slog.Record) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.buf.Reset()
	if err := h.attrs.Handle(ctx, r); err != nil {
		return err
	}
	line := "xvlan: "
	switch r.Level {
	case slog.LevelWarn:
		line += "warning: "
	case slog.LevelError:
		line += "error: "
	}
	line += r.Message
	if attrs := strings.TrimSpace(h.buf.String()); attrs != "" {
		line += ": " + attrs
	}
	_, err := io.WriteString(h.out, line+"\n")
	return err
}

// choice is a flag that takes one of a few words.
type choice struct {
	value *string
	of    []string
}

func (c choice) String() string {
	if c.value == nil {
		return ""
	}
	return *c.value
}

func (c choice) Type() string { return strings.Join(c.of, "|") }

func (c choice) Set(v string) error {
	if !slices.Contains(c.of, v) {
		return fmt.Errorf("not known; these are: %s", strings.Join(c.of, ", "))
	}
	*c.value = v
	return nil
}
