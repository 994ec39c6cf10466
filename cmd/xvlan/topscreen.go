package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"
	"unicode"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/xvlan/xvlan/loader"
)

// What terminals of all kinds understand, from ECMA-48 and xterm.
const (
	escEnter = "\x1b[?1049h\x1b[?25l" // another screen, without a cursor
	escLeave = "\x1b[?25h\x1b[?1049l"
	escHome  = "\x1b[H"
	escLine  = "\x1b[2K" // clears the line
	sgrTitle = "\x1b[7m"
	sgrDrops = "\x1b[31m"
	sgrNone  = "\x1b[m"
)

// terminal is where top is shown and typed to.
type terminal struct {
	in, out *os.File
	colour  bool
	was     *term.State // before enter
}

// terminal finds the terminal, or says what else to do.
func (a *app) terminal() (*terminal, error) {
	out, ok := a.out.(*os.File)
	if !ok || !term.IsTerminal(int(out.Fd())) || !term.IsTerminal(int(os.Stdin.Fd())) {
		return nil, usagef("batch: this is no terminal to watch on; say --batch")
	}
	if name := os.Getenv("TERM"); name == "" || name == "dumb" {
		return nil, usagef("batch: TERM is %q, a terminal without a cursor to move; say --batch", name)
	}
	return &terminal{in: os.Stdin, out: out, colour: os.Getenv("NO_COLOR") == ""}, nil
}

// enter takes the screen and each key as it is pressed. It may be called again,
// after the process was stopped.
func (t *terminal) enter() error {
	was, err := term.MakeRaw(int(t.in.Fd()))
	if err == nil {
		t.was = cmp.Or(t.was, was)
		_, err = t.out.WriteString(escEnter)
	}
	if err != nil {
		return fmt.Errorf("set up terminal: %w", err)
	}
	return nil
}

// leave gives all back.
func (t *terminal) leave() error {
	_, err := t.out.WriteString(escLeave)
	if err = errors.Join(err, term.Restore(int(t.in.Fd()), t.was)); err != nil {
		return fmt.Errorf("give back terminal: %w", err)
	}
	return nil
}

// keys hands on what is typed, until there is no more. Nothing ends the reading
// of a terminal, so this is for a process that is about to.
func (t *terminal) keys() <-chan string {
	ch := make(chan string)
	go func() {
		defer close(ch)
		buf := make([]byte, 256)
		for {
			n, err := t.in.Read(buf)
			for rest := string(buf[:n]); rest != ""; {
				var key string
				key, rest = cutKey(rest)
				ch <- key
			}
			if err != nil {
				return
			}
		}
	}()
	return ch
}

// cutKey takes one key off what was typed: a character, or the escape sequence
// of a key that has none. An escape at the end is the key of that name.
func cutKey(s string) (key, rest string) {
	if len(s) > 2 && s[0] == 0x1b && (s[1] == '[' || s[1] == 'O') {
		for i := 2; i < len(s); i++ {
			if s[i] >= 0x40 && s[i] <= 0x7e { // the final byte
				return s[:i+1], s[i+1:]
			}
		}
	}
	for i := range s {
		if i > 0 {
			return s[:i], s[i:]
		}
	}
	return s, ""
}

// size is that of the window, or a usual one where nobody knows.
func (t *terminal) size() (width, height int) {
	width, height, err := term.GetSize(int(t.out.Fd()))
	if err != nil || width <= 0 || height <= 0 {
		return 80, 24
	}
	return width, height
}

// draw writes lines, as many as fit and as much of each as fits.
func (t *terminal) draw(lines []screenLine) error {
	width, height := t.size()
	var b strings.Builder
	b.WriteString(escHome)
	for i := range height {
		if i > 0 {
			b.WriteString("\r\n")
		}
		b.WriteString(escLine) // before the text: behind it, it could take the last column
		if i >= len(lines) {
			continue
		}
		text := []rune(lines[i].text)
		text = text[:min(len(text), width)]
		if t.colour && lines[i].sgr != "" {
			b.WriteString(lines[i].sgr + string(text) + sgrNone)
		} else {
			b.WriteString(string(text))
		}
	}
	if _, err := t.out.WriteString(b.String()); err != nil {
		return fmt.Errorf("draw: %w", err)
	}
	return nil
}

type screenLine struct{ text, sgr string }

// screen is what top shows, and the keys change.
type screen struct {
	tty    *terminal
	m      *loader.Meter
	spec   topSpec
	flows  []loader.Flow
	read   time.Time
	first  int    // row shown first
	typing bool   // a name
	said   string // in the last line: what went wrong
}

// act is what a key asks for besides drawing anew.
type act int

const (
	actNone act = iota
	actLook
	actStop
	actQuit
)

// topScreen shows a table until it is told to end.
func (a *app) topScreen(ctx context.Context, m *loader.Meter, spec topSpec, tty *terminal, flows []loader.Flow) (err error) {
	if err := tty.enter(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tty.leave()) }()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGWINCH, unix.SIGCONT)
	defer signal.Stop(signals)
	s := &screen{tty: tty, m: m, spec: spec, flows: flows, read: time.Now()}
	keys, next := tty.keys(), time.NewTimer(min(firstTopLook, time.Duration(spec.delay)))
	defer next.Stop()
	for looks := 0; ; {
		if err := tty.draw(s.lines()); err != nil {
			return err
		}
		do := actNone
		select {
		case <-ctx.Done():
			return nil
		case sig := <-signals:
			if sig == unix.SIGCONT {
				err = tty.enter()
			}
		case <-next.C:
			if do = actLook; spec.count > 0 && looks == spec.count {
				return nil
			}
			looks++
			next.Reset(time.Duration(spec.delay))
		case key, ok := <-keys:
			if do = s.press(key); !ok {
				do = actQuit
			}
		}
		switch do {
		case actQuit:
			return nil
		case actLook:
			err = s.look()
		case actStop: // SIGCONT tells when it goes on
			err = errors.Join(tty.leave(), unix.Kill(unix.Getpid(), unix.SIGSTOP))
		}
		if err != nil {
			return err
		}
	}
}

// look reads the counters; what cannot be read now may be the next time.
func (s *screen) look() error {
	flows, err := s.m.Read()
	if errors.Is(err, loader.ErrAstray) {
		return err
	}
	if s.said = ""; err != nil {
		s.said = oneLine(err)
		return nil
	}
	s.flows, s.read = flows, time.Now()
	return nil
}

// press does what a key says.
func (s *screen) press(key string) act {
	if s.typing && key != "\x03" {
		s.typed(key)
		return actNone
	}
	switch key {
	case "q", "Q", "\x03":
		return actQuit
	case " ":
		return actLook
	case "\x1a":
		return actStop
	case "/":
		s.typing, s.spec.name = true, ""
	case "<", "\x1b[D", "\x1bOD":
		s.sortBy(-1)
	case ">", "\x1b[C", "\x1bOC":
		s.sortBy(1)
	case "r", "R":
		s.spec.turned = !s.spec.turned
	case "p":
		s.nextParent()
	case "u":
		s.spec.state = map[string]string{"": "up", "up": "down"}[s.spec.state]
	case "j", "\x1b[B", "\x1bOB":
		s.first++
	case "k", "\x1b[A", "\x1bOA":
		s.first--
	case "\x1b[6~":
		s.first += s.page()
	case "\x1b[5~":
		s.first -= s.page()
	case "g", "\x1b[H", "\x1bOH", "\x1b[1~":
		s.first = 0
	case "G", "\x1b[F", "\x1bOF", "\x1b[4~":
		s.first = len(s.flows)
	}
	return actNone
}

// typed takes a key of the name that is asked for.
func (s *screen) typed(key string) {
	name := []rune(s.spec.name)
	switch {
	case key == "\r" || key == "\n":
		s.typing = false
	case key == "\x1b":
		s.typing, s.spec.name = false, ""
	case key == "\x7f" || key == "\b":
		s.spec.name = string(name[:max(0, len(name)-1)])
	case len([]rune(key)) == 1 && unicode.IsPrint([]rune(key)[0]):
		s.spec.name += key
	}
}

// sortBy goes to the next column, or the one before.
func (s *screen) sortBy(step int) {
	keys := topKeys()
	s.spec.sort = keys[(slices.Index(keys, s.spec.sort)+step+len(keys))%len(keys)]
}

// nextParent goes through the parents, and to all of them behind the last.
func (s *screen) nextParent() {
	var names []string
	for _, f := range s.flows {
		names = append(names, f.Parent)
	}
	slices.Sort(names)
	names = append([]string{""}, slices.Compact(names)...)
	s.spec.parent = names[(slices.Index(names, s.spec.parent)+1)%len(names)]
}

// Lines above the rows, and below.
const headLines, footLines = 3, 1

// page is how many rows fit.
func (s *screen) page() int {
	_, height := s.tty.size()
	return max(1, height-headLines-footLines)
}

// lines are what is to be seen.
func (s *screen) lines() []screenLine {
	v := newTopView(s.spec, s.flows, s.read)
	page := s.page()
	s.first = max(0, min(s.first, len(v.rows)-page))
	last := min(len(v.rows), s.first+page)
	head := v.head()
	titles, rows := v.table(s.first, last)
	lines := []screenLine{{text: head[0]}, {text: head[1]}, {titles, sgrTitle}}
	for i, row := range rows {
		line := screenLine{text: row}
		if v.rows[s.first+i].rates.drops() > 0 {
			line.sgr = sgrDrops
		}
		lines = append(lines, line)
	}
	for len(lines) < headLines+page {
		lines = append(lines, screenLine{})
	}
	foot := "q quit  < > sort  r reverse  / name  p parent  u state  space now"
	switch {
	case s.typing:
		foot = "name: " + s.spec.name + "_"
	case s.said != "":
		foot = printable(s.said)
	}
	return append(lines, screenLine{text: foot})
}
