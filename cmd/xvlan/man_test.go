package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/xvlan/xvlan/lab"
)

// Each command has a page that mandoc finds nothing wrong with and that shows
// what its help does, and there are no others.
func TestMan(t *testing.T) {
	lab.NeedTool(t, "mandoc")
	dir := filepath.Join(t.TempDir(), "share", "man8")
	if code := run([]string{"man", dir}, &lab.Output{}, os.Stderr); code != exitOK {
		t.Fatalf("exit status %d", code)
	}
	root := (&app{}).root()
	root.InitDefaultCompletionCmd("link") // as when a command is run
	want := 0
	var check func(*cobra.Command)
	check = func(cmd *cobra.Command) {
		if cmd.Hidden || cmd.Name() == "help" {
			return
		}
		want++
		file := filepath.Join(dir, strings.ReplaceAll(cmd.CommandPath(), " ", "-")+".8")
		if out, err := exec.Command("mandoc", "-T", "lint", "-W", "warning", file).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("mandoc -T lint: %v\n%s", err, out)
		}
		checkPage(t, cmd, file)
		for _, sub := range cmd.Commands() {
			check(sub)
		}
	}
	check(root)
	pages, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(pages) != want || want < 20 {
		t.Errorf("%d pages of %d commands", len(pages), want)
	}
}

// checkPage looks for a command's words in its page as it is read.
func checkPage(t *testing.T, cmd *cobra.Command, file string) {
	t.Helper()
	out, err := exec.Command("mandoc", "-T", "ascii", "-O", "width=1000", file).Output()
	if err != nil {
		t.Errorf("mandoc: %v", err)
	}
	words := func(s string) string { return strings.Join(strings.Fields(s), " ") }
	read := words(regexp.MustCompile(".\b").ReplaceAllString(string(out), "")) // overstruck letters
	parts := []string{"NAME", "SYNOPSIS", "DESCRIPTION", "SEE ALSO", cmd.Short, cmd.Use, cmd.Long, cmd.Example, exitText}
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			_, usage := pflag.UnquoteUsage(f)
			parts = append(parts, "--"+f.Name, usage)
		}
	})
	for _, sub := range cmd.Commands() {
		if !sub.Hidden && sub.Name() != "help" {
			parts = append(parts, strings.ReplaceAll(sub.CommandPath(), " ", "-")+"(8) "+sub.Short)
		}
	}
	for _, part := range parts {
		if !strings.Contains(read, words(part)) {
			t.Errorf("%s does not say %q:\n%s", filepath.Base(file), words(part), read)
		}
	}
}

// A folder that cannot be made is refused.
func TestManRefused(t *testing.T) {
	var out, said lab.Output
	if code := run([]string{"man", "/proc/nowhere"}, &out, &said); code != exitFail || !strings.Contains(said.String(), "make folder") {
		t.Errorf("exit status %d, says %s", code, &said)
	}
	if code := run([]string{"man"}, &out, &said); code != exitUsage {
		t.Errorf("without a folder: exit status %d", code)
	}
}

// What roff would take for its own is read as it was written.
func TestManEscape(t *testing.T) {
	for _, s := range []string{".PP is no macro", "'tis", `a\fBb`, "--name", "plain"} {
		r := &roff{}
		r.line(`.TH "X" "8" "2026-01-02"`)
		r.section("NAME")
		r.text(s)
		cmd := exec.Command("mandoc", "-T", "ascii")
		cmd.Stdin = strings.NewReader(r.String())
		out, err := cmd.Output()
		if err != nil || !strings.Contains(regexp.MustCompile(".\b").ReplaceAllString(string(out), ""), s+"\n") {
			t.Errorf("%q is read as %v\n%s", s, err, out)
		}
	}
}
