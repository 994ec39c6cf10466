package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// manSection is that of commands for who administers a system, as ip's.
const manSection = 8

func (a *app) manCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "man DIRECTORY",
		Short: "Write the manual pages into a folder",
		Long: `Writes a page for each command, by names as xvlan-link-add.8, into a folder that
is made if it is not there.`,
		Example: `  xvlan man /usr/local/share/man/man8`,
		Args:    exactly("DIRECTORY"),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveFilterDirs
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return fmt.Errorf("make folder: %w", err)
			}
			return writePages(cmd.Root(), args[0])
		},
	}
}

// writePages writes a command's page and those of the commands below it.
func writePages(cmd *cobra.Command, dir string) error {
	if err := os.WriteFile(filepath.Join(dir, pageName(cmd)), []byte(page(cmd)), 0o644); err != nil {
		return fmt.Errorf("write page of %s: %w", cmd.CommandPath(), err)
	}
	for _, sub := range subCommands(cmd) {
		if err := writePages(sub, dir); err != nil {
			return err
		}
	}
	return nil
}

// subCommands are those that have a page.
func subCommands(cmd *cobra.Command) (all []*cobra.Command) {
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() && !sub.IsAdditionalHelpTopicCommand() && sub.Name() != "help" {
			all = append(all, sub)
		}
	}
	return all
}

func pageTitle(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

func pageName(cmd *cobra.Command) string { return fmt.Sprintf("%s.%d", pageTitle(cmd), manSection) }

// roff gathers a page in the macros of man(7). Cobra's generator of pages goes by
// way of Markdown, which folds the lines of a grammar, and would take two modules.
type roff struct{ strings.Builder }

// escape keeps a text's backslashes, hyphens and leading dots as they are.
func escape(s string) string {
	s = strings.NewReplacer(`\`, `\e`, `-`, `\-`).Replace(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	return s
}

func (r *roff) line(format string, args ...any) { fmt.Fprintf(r, format+"\n", args...) }

func (r *roff) section(title string) { r.line(`.SH "%s"`, title) }

// text writes paragraphs, which blank lines are between. One that is indented
// keeps its lines.
func (r *roff) text(s string) {
	for i, paragraph := range strings.Split(strings.Trim(s, "\n"), "\n\n") {
		if i > 0 {
			r.line(".PP")
		}
		if strings.HasPrefix(paragraph, "  ") {
			r.lines(paragraph)
			continue
		}
		for line := range strings.Lines(paragraph) {
			r.line("%s", escape(strings.TrimSpace(line)))
		}
	}
}

// lines writes a text line by line.
func (r *roff) lines(s string) {
	r.line(".nf")
	for line := range strings.Lines(s) {
		r.line("%s", escape(strings.TrimRight(line, "\n")))
	}
	r.line(".fi")
}

func (r *roff) flags(title string, flags *pflag.FlagSet) {
	if !flags.HasAvailableFlags() {
		return
	}
	r.section(title)
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		value, usage := pflag.UnquoteUsage(f)
		name := `\fB` + escape("--"+f.Name) + `\fR`
		if f.Shorthand != "" {
			name = `\fB` + escape("-"+f.Shorthand) + `\fR, ` + name
		}
		if value != "" {
			name += ` \fI` + escape(value) + `\fR`
		}
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "[]" {
			usage += fmt.Sprintf(" (default %s)", f.DefValue)
		}
		r.line(".TP\n%s\n%s", name, escape(usage))
	})
}

// page is a command's manual page.
func page(cmd *cobra.Command) string {
	r := &roff{}
	r.line(`.TH "%s" "%d" "%s" "xvlan %s" "xvlan"`, escape(strings.ToUpper(pageTitle(cmd))), manSection, built().Format(time.DateOnly), escape(version()))
	r.section("NAME")
	r.line(`%s \- %s`, escape(pageTitle(cmd)), escape(cmd.Short))
	r.section("SYNOPSIS")
	use := cmd.Use
	if cmd.HasParent() {
		use = cmd.Parent().CommandPath() + " " + use
	} else {
		use += " [OPTION]... COMMAND"
	}
	r.lines(use)
	r.section("DESCRIPTION")
	if cmd.Long != "" {
		r.text(cmd.Long)
	} else {
		r.line("%s.", escape(cmd.Short))
	}
	subs := subCommands(cmd)
	if len(subs) > 0 {
		r.section("COMMANDS")
		for _, sub := range subs {
			r.line(".TP\n\\fB%s\\fR(%d)\n%s", escape(pageTitle(sub)), manSection, escape(sub.Short))
		}
	}
	if len(cmd.Aliases) > 0 {
		r.section("ALIASES")
		r.line("%s", escape(strings.Join(cmd.Aliases, ", ")))
	}
	r.flags("OPTIONS", cmd.LocalFlags())
	r.flags("OPTIONS OF ALL COMMANDS", cmd.InheritedFlags())
	if cmd.Example != "" {
		r.section("EXAMPLES")
		r.lines(cmd.Example)
	}
	if cmd.HasParent() { // whose root's description has it
		r.section("EXIT STATUS")
		r.text(exitText)
	} else {
		r.section("FILES")
		r.line(".TP\n%s\n%s", "/run/xvlan/bpf", "programs and maps of all parents, which are all that there is to keep")
		r.line(".TP\n%s\n%s", "/run/xvlan/lock", "locks of the parents that commands are at work on")
	}
	r.section("SEE ALSO")
	see := []string{`\fBip\-link\fR(8)`}
	for up := cmd.Parent(); up != nil; up = up.Parent() {
		see = append(see, fmt.Sprintf(`\fB%s\fR(%d)`, escape(pageTitle(up)), manSection))
	}
	r.line("%s", strings.Join(see, ", "))
	return r.String()
}

// built is the day of the sources, or where that is not known this one.
func built() time.Time {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if t, err := time.Parse(time.RFC3339, s.Value); s.Key == "vcs.time" && err == nil {
				return t
			}
		}
	}
	return time.Now()
}
