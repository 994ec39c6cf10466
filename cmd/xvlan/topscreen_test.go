package main

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/lab"
)

// A typist is at the terminal that a command runs on.
type typist struct {
	cmd  *exec.Cmd
	ptmx *os.File
	out  *lab.Output
	done chan struct{} // closed when there is no more output
}

// atTerminal starts xvlan on a terminal of its own.
func (w *world) atTerminal(t *testing.T, rows, cols uint16, env []string, args ...string) *typist {
	t.Helper()
	cmd := command(t, args...)
	cmd.Env = append(cmd.Env, env...)
	return w.startAtTerminal(t, rows, cols, cmd)
}

func (w *world) startAtTerminal(t *testing.T, rows, cols uint16, cmd *exec.Cmd) *typist {
	t.Helper()
	ptmx, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	p := &typist{cmd: cmd, ptmx: ptmx, out: &lab.Output{}, done: make(chan struct{})}
	p.resize(t, rows, cols)
	p.cmd.Env = append([]string{"TERM=xterm", "NO_COLOR="}, p.cmd.Env...)
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = tty, tty, tty
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	start(t, w.do, p.cmd)
	go func() {
		defer close(p.done)
		buf := make([]byte, 4096)
		for {
			n, err := ptmx.Read(buf)
			p.out.Write(buf[:n])
			if err != nil {
				return // EIO tells that the other side is closed
			}
		}
	}()
	t.Cleanup(func() {
		p.cmd.Process.Kill() // it has ended before, if all is well
		ptmx.Close()
		if t.Failed() {
			t.Logf("on the terminal: %q", p.out)
		}
	})
	return p
}

// patiently is lab.Eventually for programs that take their time to start.
func patiently(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within three minutes: %s", what)
		}
	}
}

func (p *typist) resize(t *testing.T, rows, cols uint16) {
	t.Helper()
	if err := pty.Setsize(p.ptmx, &pty.Winsize{Rows: rows, Cols: cols}); err != nil {
		t.Fatal(err)
	}
}

func (p *typist) press(t *testing.T, keys string) {
	t.Helper()
	if _, err := p.ptmx.WriteString(keys); err != nil {
		t.Fatal(err)
	}
}

var escapes = regexp.MustCompile("\x1b\\[[0-9;?]*[A-Za-z]")

// screen is what was drawn last, by lines.
func (p *typist) screen() []string {
	_, last, _ := cutLast(p.out.String(), escHome)
	return strings.Split(escapes.ReplaceAllString(last, ""), "\r\n")
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return "", "", false
}

// names are the first words of the rows that are shown.
func (p *typist) names() string {
	var names []string
	lines := p.screen()
	for _, line := range lines[min(headLines, len(lines)):max(headLines, len(lines)-footLines)] {
		if fields := strings.Fields(line); len(fields) > 0 {
			names = append(names, fields[0])
		}
	}
	return strings.Join(names, " ")
}

// sees waits until the screen has this in its first line and these rows.
func (p *typist) sees(t *testing.T, head, names string) {
	t.Helper()
	patiently(t, "the screen has "+head+" and "+names, func() bool {
		return strings.Contains(p.screen()[0], head) && p.names() == names
	})
}

func (p *typist) termios(t *testing.T) *unix.Termios {
	t.Helper()
	state, err := unix.IoctlGetTermios(int(p.ptmx.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return state
}

// ends waits for the command, which has to leave the terminal as it was.
func (p *typist) ends(t *testing.T, was *unix.Termios) {
	t.Helper()
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("it ended by %v", err)
	}
	if now := p.termios(t); now.Lflag != was.Lflag || now.Iflag != was.Iflag || now.Oflag != was.Oflag {
		t.Errorf("the terminal is left as %+v, was %+v", now, was)
	}
	patiently(t, "the screen is given back", func() bool { return strings.HasSuffix(p.out.String(), escLeave) })
}

// screenWorld has m1, which is up, i1 and z1.
func screenWorld(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	lab.Veth(t, w.host, "eth1", w.wire, "w1")
	t.Cleanup(func() {
		w.must(t, "parent detach eth0")
		w.must(t, "parent detach eth1")
	})
	w.must(t, "link add link eth0 m1 address "+subMAC+" up netns "+w.inside.Name()+" type macvlan mode bridge")
	w.must(t, "link add link eth0 i1 type ipvlan mode l2")
	w.must(t, "link add link eth1 z1 type ipvlan mode l2")
	lab.Eventually(t, "m1 is up", func() bool { return w.inside.Link(t, "m1").Attrs().OperState.String() == "up" })
	w.inside.Run(t, "ip", "link", "set", "m1", "mtu", "3000")
	return w
}

func TestTopScreen(t *testing.T) {
	w := screenWorld(t)
	p := w.atTerminal(t, 24, 120, nil, "top", "-o", "name", "-d", "0.2")
	was := p.termios(t)
	p.sees(t, "3 of 3 sub-interfaces, by name", "i1 m1 z1")
	if foot := p.screen()[23]; !strings.HasPrefix(foot, "q quit") {
		t.Errorf("the last line says %q", foot)
	}
	for _, step := range []struct{ keys, head, names string }{
		{"r", "by name, reverse", "z1 m1 i1"},
		{"r", "by name", "i1 m1 z1"},
		{"p", "2 of 3 sub-interfaces, parent eth0, by name", "i1 m1"},
		{"p", "parent eth1", "z1"},
		{"p", "3 of 3 sub-interfaces, by", "i1 m1 z1"},
		{"u", ", up,", "m1"},
		{"u", ", down,", "i1 z1"},
		{"u", "3 of 3 sub-interfaces, by", "i1 m1 z1"},
		{"/m", "name m,", "m1"},
		{"?\x7f\x7fz1\r", "name z1,", "z1"},
		{"/qq", "name qq,", ""},
		{"\x7f\x7f[iz]*\r", "name [iz]*,", "i1 z1"},
		{"/\x1b", "3 of 3 sub-interfaces, by", "i1 m1 z1"},
		{">", "by parent", "i1 m1 z1"},
		{"<\x1b[D", "by netns", "i1 z1 m1"},
		{"\x1b[C>", "by parent", "i1 m1 z1"},
		{"x\x1b[15~ ", "by parent", "i1 m1 z1"}, // nothing, and a look
	} {
		p.press(t, step.keys)
		p.sees(t, step.head, step.names)
	}
	// What m1 gets, and what is dropped of what it sends, is seen when it comes.
	untilShown := func(what, pattern string, again func()) {
		t.Helper()
		row := regexp.MustCompile(pattern)
		patiently(t, what, func() bool {
			again()
			return row.MatchString(p.out.String())
		})
	}
	untilShown("m1 has received", `m1 +eth0 +[1-9]\S* +[1-9]`, func() { send(t, w.wire, "w0", frame(t, subMAC, wireMAC, 100)) })
	untilShown("m1's drops stand out", `\x1b\[31mm1 `, func() { send(t, w.inside, "m1", frame(t, wireMAC, subMAC, 2000)) })
	p.press(t, "q")
	p.ends(t, was)
}

// The screen fits into windows of all sizes, and goes through what does not.
func TestTopResize(t *testing.T) {
	w := screenWorld(t)
	p := w.atTerminal(t, 0, 0, []string{"NO_COLOR=1"}, "top", "-o", "name", "-d", "600") // 0: nobody has told
	was := p.termios(t)
	p.sees(t, "by name", "i1 m1 z1")
	fits := func(rows, cols uint16) {
		t.Helper()
		p.resize(t, rows, cols)
		patiently(t, "it fits", func() bool {
			lines := p.screen()
			for _, line := range lines {
				if utf8.RuneCountInString(line) > int(cols) {
					return false
				}
			}
			return len(lines) == int(rows)
		})
	}
	fits(5, 200)
	for _, step := range []struct{ keys, name string }{
		{"", "i1"}, {"j", "m1"}, {"\x1b[B", "z1"}, {"\x1b[6~", "z1"}, {"k", "m1"}, {"G", "z1"}, {"g", "i1"}, {"\x1b[F", "z1"}, {"\x1b[5~", "m1"}, {"\x1b[H", "i1"},
	} {
		p.press(t, step.keys)
		p.sees(t, "by name", step.name)
	}
	fits(1, 1)
	fits(3, 7)
	fits(2, 300)
	fits(60, 11)
	fits(24, 80)
	p.sees(t, "by name", "i1 m1 z1")
	if regexp.MustCompile(`\x1b\[[0-9;]*m`).MatchString(p.out.String()) {
		t.Error("it is coloured though NO_COLOR is set")
	}
	p.press(t, "\x03")
	p.ends(t, was)
}

// Stopped it leaves the terminal to the shell, and takes it again.
func TestTopStopped(t *testing.T) {
	w := screenWorld(t)
	p := w.atTerminal(t, 24, 80, nil, "top", "-d", "0.2", "--name", "m1")
	was := p.termios(t)
	p.sees(t, "name m1", "m1")
	if !strings.Contains(p.out.String(), sgrTitle) {
		t.Error("its titles do not stand out")
	}
	for range 2 {
		p.press(t, "\x1a")
		var status unix.WaitStatus
		if _, err := unix.Wait4(p.cmd.Process.Pid, &status, unix.WUNTRACED, nil); err != nil || !status.Stopped() {
			t.Fatalf("it is not stopped: %v, %v", status, err)
		}
		if now := p.termios(t); now.Lflag != was.Lflag {
			t.Errorf("the shell gets the terminal as %+v, was %+v", now, was)
		}
		drawn := len(p.out.String())
		if err := p.cmd.Process.Signal(unix.SIGCONT); err != nil {
			t.Fatal(err)
		}
		patiently(t, "it has the terminal again", func() bool { return strings.Contains(p.out.String()[drawn:], escEnter) })
	}
	if err := p.cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.ends(t, was)
	// By itself after so many looks.
	p = w.atTerminal(t, 24, 80, nil, "top", "-d", "0.1", "-n", "3")
	if err := p.cmd.Wait(); err != nil {
		t.Error(err)
	}
	<-p.done
	if n := strings.Count(p.out.String(), escHome); n < 4 { // the first without rates
		t.Errorf("drawn %d times\n%s", n, p.out)
	}
}

func TestTopDumb(t *testing.T) {
	w := newWorld(t)
	p := w.atTerminal(t, 24, 80, []string{"TERM=dumb"}, "top")
	if err := p.cmd.Wait(); p.cmd.ProcessState.ExitCode() != exitUsage {
		t.Errorf("it ended by %v", err)
	}
	<-p.done
	if out := p.out.String(); !strings.Contains(out, "--batch") || strings.Contains(out, "\x1b") {
		t.Errorf("on a dumb terminal: %q", out)
	}
}
