//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A kernel is an unpacked one.
type kernel struct {
	vmlinux string // an ELF file, as PVH wants it
	modules string // .../lib/modules/<release>
}

// getKernel returns the kernel of a series from the cache, and brings it there
// first if need be.
func getKernel(ctx context.Context, series string) (kernel, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return kernel{}, err
	}
	cache = filepath.Join(cache, "xvlan-vm")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return kernel{}, err
	}
	unlock, err := lock(filepath.Join(cache, "lock"))
	if err != nil {
		return kernel{}, err
	}
	defer unlock()
	dir := filepath.Join(cache, series)
	if k, err := openKernel(dir); err == nil {
		return k, nil
	}
	tmp, err := os.MkdirTemp(cache, "new-")
	if err != nil {
		return kernel{}, err
	}
	defer os.RemoveAll(tmp)
	if err := unpackKernel(ctx, series, tmp); err != nil {
		return kernel{}, err
	}
	if err := os.RemoveAll(dir); err != nil {
		return kernel{}, err
	}
	if err := os.Rename(tmp, dir); err != nil {
		return kernel{}, err
	}
	return openKernel(dir)
}

// openKernel finds a kernel where unpackKernel has put it.
func openKernel(dir string) (kernel, error) {
	k := kernel{vmlinux: filepath.Join(dir, "vmlinux")}
	if _, err := os.Stat(k.vmlinux); err != nil {
		return kernel{}, err
	}
	modules, err := one(filepath.Join(dir, "lib/modules/*"))
	k.modules = modules
	return k, err
}

// unpackKernel downloads the newest package of a series and leaves vmlinux and
// the modules in dir.
func unpackKernel(ctx context.Context, series, dir string) error {
	pkg, err := findPackage(ctx, series)
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "vm: getting %s\n", pkg)
	if err := command(ctx, dir, "apt-get", "-q", "download", pkg); err != nil {
		return err
	}
	deb, err := one(filepath.Join(dir, "*.deb"))
	if err != nil {
		return err
	}
	if err := command(ctx, dir, "dpkg", "-x", deb, dir); err != nil {
		return err
	}
	vmlinuz, err := one(filepath.Join(dir, "boot/vmlinuz-*"))
	if err != nil {
		return err
	}
	release := strings.TrimPrefix(filepath.Base(vmlinuz), "vmlinuz-")
	depmod, err := needTool(ctx, "depmod", "kmod")
	if err != nil {
		return err
	}
	if err := command(ctx, dir, depmod, "-b", dir, release); err != nil {
		return err
	}
	// vmlinux comes last: a folder that has it is complete.
	if err := extractVmlinux(ctx, vmlinuz, filepath.Join(dir, "vmlinux")); err != nil {
		return fmt.Errorf("extract vmlinux: %w", err)
	}
	return errors.Join(os.Remove(deb), os.RemoveAll(filepath.Join(dir, "boot")), os.RemoveAll(filepath.Join(dir, "usr/share")))
}

// findPackage asks apt for the newest kernel package of a series.
func findPackage(ctx context.Context, series string) (string, error) {
	pattern := regexp.MustCompile(`(?m)^linux-image-` + regexp.QuoteMeta(series) + `\.\d[\d.]*(-\d+|\+deb\d+)-amd64$`)
	for _, update := range []bool{false, true} {
		if update {
			if err := command(ctx, "", "apt-get", "-q", "update"); err != nil {
				return "", err
			}
		}
		out, err := exec.CommandContext(ctx, "apt-cache", "pkgnames", "linux-image-"+series+".").Output()
		if err != nil {
			return "", fmt.Errorf("list packages: %w", err)
		}
		names := pattern.FindAllString(string(out), -1)
		if len(names) > 0 {
			return slices.MaxFunc(names, compareVersions), nil
		}
	}
	return "", fmt.Errorf("find package linux-image-%s.*-amd64: apt knows none", series)
}

var number = regexp.MustCompile(`\d+`)

// compareVersions compares two names by the numbers in them, in their order.
func compareVersions(a, b string) int {
	numbers := func(s string) (ns []int) {
		for _, digits := range number.FindAllString(s, -1) {
			n, _ := strconv.Atoi(digits) // digits only; a huge one is the highest
			ns = append(ns, n)
		}
		return ns
	}
	return slices.Compare(numbers(a), numbers(b))
}

// extractVmlinux takes the compressed ELF file out of a bzImage, which says in
// its set-up header where that is.
func extractVmlinux(ctx context.Context, vmlinuz, vmlinux string) error {
	const (
		setupSects    = 0x1f1
		headerMagic   = 0x202
		payloadOffset = 0x248
		payloadLength = 0x24c
		sector        = 512
		sizeAtEnd     = 4 // the payload ends with its unpacked size
	)
	image, err := os.ReadFile(vmlinuz)
	if err != nil {
		return err
	}
	if len(image) < payloadLength+4 || !bytes.Equal(image[headerMagic:][:4], []byte("HdrS")) {
		return fmt.Errorf("parse %s: not a bzImage", vmlinuz)
	}
	start := (uint64(image[setupSects])+1)*sector + uint64(binary.LittleEndian.Uint32(image[payloadOffset:]))
	end := start + uint64(binary.LittleEndian.Uint32(image[payloadLength:])) - sizeAtEnd
	if start > end || end > uint64(len(image)) {
		return fmt.Errorf("parse %s: payload is out of the file", vmlinuz)
	}
	elf, err := decompress(ctx, image[start:end])
	if err != nil {
		return err
	}
	return os.WriteFile(vmlinux, elf, 0o644)
}

// decompress unpacks what one of the kernel's usual methods has packed, told by
// its first bytes. Anything else is returned as it is.
func decompress(ctx context.Context, data []byte) ([]byte, error) {
	for _, method := range []struct{ magic, tool, pkg string }{
		{"\xfd7zXZ\x00", "xz", "xz-utils"},
		{"\x28\xb5\x2f\xfd", "zstd", "zstd"},
		{"\x1f\x8b", "gzip", "gzip"},
	} {
		if !bytes.HasPrefix(data, []byte(method.magic)) {
			continue
		}
		tool, err := needTool(ctx, method.tool, method.pkg)
		if err != nil {
			return nil, err
		}
		cmd := exec.CommandContext(ctx, tool, "-dc")
		cmd.Stdin = bytes.NewReader(data)
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("run %s: %w", method.tool, err)
		}
		return out, nil
	}
	return data, nil
}

// needTool returns the path of a program, which is installed if it is missing.
func needTool(ctx context.Context, name, pkg string) (string, error) {
	look := func() (string, error) {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
		return exec.LookPath("/usr/sbin/" + name) // not on everyone's PATH
	}
	if path, err := look(); err == nil {
		return path, nil
	}
	fmt.Fprintf(os.Stderr, "vm: installing %s for %s\n", pkg, name)
	if err := command(ctx, "", "apt-get", "-q", "update"); err != nil {
		return "", err
	}
	if err := command(ctx, "", "apt-get", "-q", "install", "-y", "--no-install-recommends", pkg); err != nil {
		return "", err
	}
	return look()
}

// command runs a program; what it writes becomes part of the error.
func command(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run %s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return nil
}

// one returns the only file that a pattern matches.
func one(pattern string) (string, error) {
	files, err := filepath.Glob(pattern)
	if err != nil {
		return "", err
	}
	if len(files) != 1 {
		return "", fmt.Errorf("find %s: %d files", pattern, len(files))
	}
	return files[0], nil
}

// lock takes a lock that other runners wait for, until it is given back or the
// process ends.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}
