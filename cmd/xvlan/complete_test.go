package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/xvlan/xvlan/lab"
)

// completes asks as a shell does, for what stands behind a line, and returns
// the words.
func (w *world) completes(t *testing.T, line string) string {
	t.Helper()
	args := append([]string{cobra.ShellCompNoDescRequestCmd}, strings.Split(line, " ")...)
	r := w.xvlan(t, args...)
	if r.code != exitOK {
		t.Errorf("%q: %+v", line, r)
	}
	var found []string
	for line := range strings.Lines(r.out) {
		if line = strings.TrimSuffix(line, "\n"); !strings.HasPrefix(line, ":") {
			found = append(found, line)
		} else if line != ":4" && line != ":0" { // no files, or files
			t.Errorf("%q: directive %s", args, line)
		}
	}
	return strings.Join(found, " ")
}

func TestComplete(t *testing.T) {
	w := newWorld(t)
	lab.Veth(t, w.host, "eth1", w.wire, "w1")
	w.host.Run(t, "ip", "tuntap", "add", "tun0", "mode", "tun")
	w.must(t, "link add link eth0 c1 netns "+w.inside.Name()+" type macvlan mode bridge")
	w.must(t, "link add link eth0 c2 type ipvlan mode l2")
	// A name that a terminal would obey is not offered.
	w.inside.Run(t, "ip", "link", "set", "c1", "name", "c\x1b[2J")
	fill := strings.NewReplacer("HOST", w.host.Name(), "IN", w.inside.Name())
	const behindName = "link address addr mtu netns up host via-host delivery leg guard bcrate vlan qinq trunk type"
	for line, want := range map[string]string{
		"": "apply bench capture completion config demo help link man monitor parent probe serve top trace version",

		"link ":                                    "add del set show",
		"link add ":                                "link name dev address addr mtu netns up host via-host delivery leg guard bcrate vlan qinq trunk type",
		"link add link ":                           "c2 eth0 eth1", // c2, here, can be one; lo, tun0 and host legs not
		"link add c3 ":                             behindName,
		"link add dev c3 ":                         behindName,
		"link add name ":                           "",
		"link add c3 link eth0 up ":                "address addr mtu netns host via-host delivery leg guard bcrate vlan qinq trunk type",
		"link add c3 address ":                     "",
		"link add c3 addr 10.0.0.1 ":               behindName, // which may be said again
		"link add c3 delivery ":                    "auto xdp",
		"link add c3 netns xvt ":                   "link address addr mtu up host via-host delivery leg guard bcrate vlan qinq trunk type",
		"link add c3 c4 ":                          "",
		"link add c3 mtu x ":                       "",
		"link add c3 type ":                        "macvlan ipvlan",
		"link add c3 type vlan ":                   "",
		"link add c3 link eth0 type macvlan ":      "mode macaddr nopromisc nodst bcqueuelen bclim",
		"link add c3 link eth0 type macvlan mode ": "vepa bridge private passthru source",
		"link add c3 link eth0 type macvlan mode source macaddr ":                    "add set",
		"link add c3 link eth0 type macvlan mode source macaddr set " + subMAC + " ": "nopromisc nodst bcqueuelen bclim",
		"link add c3 link eth0 type ipvlan ":                                         "mode bridge private vepa dhcp",
		"link add c3 link eth0 type ipvlan mode ":                                    "l3 l2 l3s",
		"link add c3 link eth0 type ipvlan mode l2 ":                                 "bridge private vepa dhcp",
		"link add --datapath ":                                                       "xdp tc kernel",
		"link a ":                                                                    "link name dev address addr mtu netns up host via-host delivery leg guard bcrate vlan qinq trunk type",

		"trace ":                            "eth0",
		"trace eth0 from ":                  "c2 wire host",
		"trace eth0 arp 10.0.0.1 10.0.0.2 ": "from netns hex pcap frame src dst vlan qinq len ip nd proto sport dport",
		"trace eth0 proto ":                 "udp tcp icmp",

		"link del ":                         "c2 dev link netns",
		"link del dev ":                     "c2",
		"link del c2 link ":                 "eth0",
		"link show ":                        "c2 dev link netns",
		"link show link ":                   "eth0",
		"link set ":                         "c2 dev link netns host via-host delivery guard bcrate vlan qinq trunk type",
		"link set c2 ":                      "link netns host via-host delivery guard bcrate vlan qinq trunk type",
		"link set c2 type ":                 "macvlan ipvlan",
		"link set c2 type ipvlan mode ":     "l3 l2 l3s",
		"link set c1 type macvlan macaddr ": "add del set flush",
		"-n IN link del ":                   "dev link netns",
		"link del -n HOST ":                 "c2 dev link netns",

		"parent ":                     "attach detach show upgrade",
		"parent attach ":              "c2 eth0 eth1 unknown capacity",
		"parent attach eth1 unknown ": "pass drop",
		"parent detach ":              "eth0",
		"parent detach eth0 ":         "",
		"parent show ":                "eth0",
		"apply ":                      "",
		"apply -f ":                   "", // files
		"probe ":                      "c2 eth0 eth1",
		"bench ":                      "c2 eth0 eth1",
		"top ":                        "eth0",
		"-n HOST top -n 3 -d 1 ":      "eth0",
		"-n IN top ":                  "",
		"top --state ":                "up down",
		"--log-format ":               "text json",
		"link --log-level ":           "debug info warn error",
	} {
		if got := w.completes(t, fill.Replace(line)); got != want {
			t.Errorf("%q goes on with\n%s\nwant\n%s", line, got, want)
		}
	}
	for _, line := range []string{"-n ", "link add netns ", "link set c2 netns ", "top --netns "} {
		names := strings.Fields(w.completes(t, line))
		if !slices.Contains(names, w.inside.Name()) || !slices.Contains(names, w.host.Name()) {
			t.Errorf("%q goes on with %s", line, names)
		}
	}
	w.must(t, "parent detach eth0")
}

// Each keyword that is offered is one that the words are read with, and each
// that the help names is offered.
func TestCompleteKeywords(t *testing.T) {
	helps := map[string]string{}
	link, _, err := (&app{}).root().Find([]string{"link"})
	if err != nil {
		t.Fatal(err)
	}
	for _, sub := range link.Commands() {
		helps[sub.Name()] = sub.Use
	}
	for what, offered := range keywords {
		verb, kind, _ := strings.Cut(what, " ")
		for _, word := range offered {
			args := []string{word}
			if kind != "" {
				args = []string{"c1", "link", "eth0", "type", kind, word}
			}
			w := &words{left: args}
			switch verb {
			case "add":
				_, _ = parseAdd(w)
			case "attach":
				_, _, _ = parseAttach(w)
			case "trace":
				_, _ = parseTraceWords(w)
			case "set":
				if kind != "" {
					w.left = args[5:]
					_, _ = w.parseType(kind)
					break
				}
				fallthrough
			default:
				_, _ = parseSelector(w, &target{})
			}
			if w.asked != word && word != "up" && w.err != nil {
				t.Errorf("%s: %s is not known: %v", what, word, w.err)
			}
			if help := helps[verb]; help != "" && !strings.Contains(help, word) && word != "link" {
				t.Errorf("%s: %s is offered, and not in the help", what, word)
			}
		}
	}
	for verb, help := range helps {
		all := keywords[verb]
		all = append(append(slices.Clone(all), keywords[verb+" macvlan"]...), keywords[verb+" ipvlan"]...)
		for _, word := range strings.FieldsFunc(help, func(r rune) bool { return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyz-", r) }) {
			known := slices.Contains(all, word) || slices.Contains([]string{"xvlan", "link", "auto", "xdp", "veth", "netkit", "macvlan", "ipvlan", "add", "del", "set", "flush", "on", "off", "router", "dhcp", "given", verb}, word)
			for _, modes := range ipModes {
				for _, m := range modes {
					known = known || m.name == word
				}
			}
			if !known && len(word) > 1 {
				t.Errorf("link %s: %s is in the help, and not offered", verb, word)
			}
		}
	}
}

// In each shell a line that is completed word by word makes a sub-interface.
func TestShells(t *testing.T) {
	dir := t.TempDir()
	exe, err := os.Executable()
	if err == nil {
		err = os.Symlink(exe, filepath.Join(dir, "xvlan"))
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, shell := range []struct{ name, flags, setup string }{
		{"bash", "--norc --noprofile -i", "source /usr/share/bash-completion/bash_completion; xvlan completion bash > s; source ./s"},
		{"zsh", "-f -i", "autoload -U compinit; compinit -u -D; xvlan completion zsh > s; source ./s"},
		{"fish", "--no-config -i", "xvlan completion fish > s; source ./s"},
	} {
		t.Run(shell.name, func(t *testing.T) {
			lab.NeedTool(t, shell.name)
			w := newWorld(t)
			cmd := wrapped(append([]string{shell.name}, strings.Fields(shell.flags)...)...)
			cmd.Env = append(cmd.Env, "PATH="+dir+":"+os.Getenv("PATH"), "HOME="+dir, "HISTFILE=")
			cmd.Dir = dir
			p := w.startAtTerminal(t, 24, 200, cmd)
			p.press(t, shell.setup+"; echo rea''dy\r")
			patiently(t, "the shell is ready", func() bool { return strings.Contains(p.out.String(), "ready\r\n") })
			for _, step := range []struct{ typed, whole string }{
				{"xvlan lin", "link "}, {"ad", "add "}, {"link et", "eth0 "}, {"name c1 typ", "type "}, {"macv", "macvlan "}, {"mod", "mode "}, {"br", "bridge "},
			} {
				before := len(p.out.String())
				p.press(t, step.typed+"\t")
				rest := step.whole[len(step.typed[strings.LastIndex(step.typed, " ")+1:]):]
				patiently(t, step.typed+" is completed to "+step.whole, func() bool {
					return strings.Contains(escapes.ReplaceAllString(p.out.String()[before:], ""), rest)
				})
			}
			p.press(t, "\r")
			patiently(t, "c1 is made", func() bool { return len(w.links(t)) == 1 })
			if l := w.links(t)[0]; l.Name != "c1" || l.Parent != "eth0" || l.Info.Kind != "macvlan" || l.Info.Data.Mode != "bridge" {
				t.Errorf("made %+v", l)
			}
			w.must(t, "link del c1")
			p.cmd.Process.Signal(unix.SIGHUP)
			p.cmd.Process.Kill()
			p.cmd.Wait()
		})
	}
}
