// Next builds xvlan as a version to come might be: with maps laid out otherwise,
// so that it can be seen to carry over those of this version.
//
//	go run ./lab/next -o FILE
//
// It takes what `make generate` takes.
package main

import (
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/xvlan/xvlan/bpf"
)

func main() {
	out := flag.String("o", "", "the program's `file`")
	flag.Parse()
	if *out == "" || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := build(*out); err != nil {
		fmt.Fprintln(os.Stderr, "next:", err)
		os.Exit(1)
	}
}

func build(out string) error {
	out, err := filepath.Abs(out)
	if err != nil {
		return fmt.Errorf("find %s: %w", out, err)
	}
	module, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return fmt.Errorf("find sources: %w", err)
	}
	dir, err := os.MkdirTemp("", "xvlan-next-")
	if err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	defer os.RemoveAll(dir)
	if err := copySources(dir, strings.TrimSpace(string(module))); err != nil {
		return fmt.Errorf("copy sources: %w", err)
	}
	for _, c := range changes() {
		if err := c.make(dir); err != nil {
			return err
		}
	}
	for _, args := range [][]string{
		{"go", "generate", "./bpf"},
		{"go", "build", "-o", out, "./cmd/xvlan"},
	} {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "CGO_ENABLED=0")
		if os.Getenv("XVLAN_CFLAGS") == "" {
			machine := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH]
			cmd.Env = append(cmd.Env, "XVLAN_CFLAGS=-idirafter /usr/include/"+machine+"-linux-gnu")
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	return nil
}

// copySources copies what go builds from.
func copySources(to, from string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name != "." && strings.HasPrefix(d.Name(), ".") || name == "bin" {
				return fs.SkipDir
			}
			return os.MkdirAll(filepath.Join(to, name), 0o755)
		}
		if !d.Type().IsRegular() || name == "xvlan" || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, name), content, 0o644)
	})
}

// A change replaces, once in a file, a text.
type change struct{ file, from, to string }

// changes move fields of keys, values and records, and add others and a map. Keys of IPv6
// stay: with them laid out otherwise xvlan_tx takes more stack than Linux 6.1 allows.
func changes() []change {
	const header = "bpf/xvlan.h"
	return []change{
		{header, fmt.Sprintf("#define XVLAN_SCHEMA %d\n", bpf.Schema), fmt.Sprintf("#define XVLAN_SCHEMA %d\n", bpf.Schema+1)},
		{"bpf/bpf.go", fmt.Sprintf("const Schema = %d\n", bpf.Schema), fmt.Sprintf("const Schema = %d\n", bpf.Schema+1)},
		{header, "\tVERDICT_MAX,\n", "\tVERDICT_DROP_NEXT,\n\tVERDICT_MAX,\n"},
		{header, "\t__u32 vlan; /* VLAN_NONE: of a trunk, which knows in which VLANs */\n\t__u8 mac[6];\n\t__u16 pad;\n", "\t__u8 mac[6];\n\t__u16 pad;\n\t__u32 vlan;\n"},
		{header, "\t__be32 addr_be;\n\t__u32 vlan;\n", "\t__u32 vlan;\n\t__be32 addr_be;\n"},
		{"bpf/maps.h", "} by_src SEC(\".maps\");\n", "} by_src SEC(\".maps\");\nstruct {\n\t__uint(type, BPF_MAP_TYPE_ARRAY);\n\t__uint(max_entries, 1);\n\t__type(key, __u32);\n\t__type(value, __u32);\n} next SEC(\".maps\");\n"},
		{"maps/maps.go", "\tports   *ebpf.Map\n", "\tports   *ebpf.Map\n\tnext    *ebpf.Map\n"},
		{"maps/maps.go", "\t\tbpf.XvlanMapPorts:   &s.ports,\n", "\t\tbpf.XvlanMapPorts:   &s.ports,\n\t\tbpf.XvlanMapNext:    &s.next,\n"},
		{header, "struct src_key {\n\t__u32 id; /* of the sub-interface in source mode */\n\t__u8 mac[6];\n\t__u16 pad;\n", "struct src_key {\n\t__u8 mac[6];\n\t__u16 pad;\n\t__u32 id;\n"},
		{header, "struct dest {\n\t__u32 id;\n\t__u32 gen;\n", "struct dest {\n\t__u32 gen;\n\t__u32 id;\n"},
		{header, "struct sub {\n", "struct sub {\n\t__u32 next;\n"},
		{header, "\t__u32 pad3;\n", ""},
		{header, "struct parent {\n\t__u32 schema;\n", "struct parent {\n\t__u32 schema;\n\t__u32 next[7];\n"},
		{header, "struct ring {\n\t__u32 next4;\n\t__u32 next6;\n", "struct ring {\n\t__u8 next;\n\t__u32 next6;\n\t__u32 next4;\n"},
	}
}

func (c change) make(dir string) error {
	path := filepath.Join(dir, c.file)
	content, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read source: %w", err)
	}
	if n := strings.Count(string(content), c.from); n != 1 {
		return fmt.Errorf("%s has %q %d times", c.file, c.from, n)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(content), c.from, c.to, 1)), 0o644); err != nil {
		return fmt.Errorf("write source: %w", err)
	}
	return nil
}
