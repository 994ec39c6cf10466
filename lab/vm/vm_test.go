//go:build linux

package main

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestCompareVersions(t *testing.T) {
	names := []string{
		"linux-image-6.12.99+deb12-amd64", "linux-image-6.12.100+deb12-amd64", "linux-image-6.12.9+deb12-amd64",
	}
	if got, want := slices.MaxFunc(names, compareVersions), names[1]; got != want {
		t.Errorf("newest is %s, want %s", got, want)
	}
	if compareVersions("linux-image-6.1.0-9-amd64", "linux-image-6.1.0-10-amd64") >= 0 {
		t.Error("6.1.0-9 is not before 6.1.0-10")
	}
}

func TestExtractVmlinux(t *testing.T) {
	const elf = "\x7fELF and so on"
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	if _, err := w.Write([]byte(elf)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	image := make([]byte, 2*512+100)
	image[0x1f1] = 1
	copy(image[0x202:], "HdrS")
	binary.LittleEndian.PutUint32(image[0x248:], 100)
	binary.LittleEndian.PutUint32(image[0x24c:], uint32(packed.Len()+4))
	image = append(append(image, packed.Bytes()...), 0, 0, 0, 0, 'e', 'n', 'd')

	dir := t.TempDir()
	vmlinuz, vmlinux := filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "vmlinux")
	for length, wantErr := range map[int]bool{len(image): false, len(image) - 10: true, 100: true} {
		if err := os.WriteFile(vmlinuz, image[:length], 0o644); err != nil {
			t.Fatal(err)
		}
		if err := extractVmlinux(t.Context(), vmlinuz, vmlinux); (err != nil) != wantErr {
			t.Errorf("extract from %d bytes: %v", length, err)
		}
	}
	if got, err := os.ReadFile(vmlinux); err != nil || string(got) != elf {
		t.Errorf("extracted %q, %v", got, err)
	}
}

func TestModuleFiles(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"modules.builtin": "kernel/drivers/virtio/virtio_pci.ko\nkernel/drivers/char/virtio_console.ko\n",
		"modules.dep": "fs/9p/9p.ko.xz: net/9p/9pnet.ko.xz fs/netfs/netfs.ko.xz\n" +
			"net/9p/9pnet_virtio.ko.xz: net/9p/9pnet.ko.xz fs/netfs/netfs.ko.xz\n" +
			"net/9p/9pnet.ko.xz: fs/netfs/netfs.ko.xz\nfs/overlayfs/overlay.ko.xz:\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := moduleFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"fs/netfs/netfs.ko.xz", "net/9p/9pnet.ko.xz", "net/9p/9pnet_virtio.ko.xz",
		"fs/9p/9p.ko.xz", "fs/overlayfs/overlay.ko.xz",
	}
	if !slices.Equal(got, want) {
		t.Errorf("modules are loaded in the order %v, want %v", got, want)
	}
}

func TestWriteArchive(t *testing.T) {
	var out bytes.Buffer
	err := writeArchive(&out, func(a *archive) error {
		a.add("/init", modeFile, []byte("hello"))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	const zero = "00000000"
	header := func(ino, mode, links, size, nameSize string) string {
		return "070701" + ino + mode + zero + zero + links + zero + size + strings.Repeat(zero, 4) + nameSize + zero
	}
	want := header("00000001", "000081ed", "00000001", "00000005", "00000005") + "init\x00" + "\x00" + // to 116
		"hello\x00\x00\x00" +
		header("00000002", zero, "00000001", zero, "0000000b") + "TRAILER!!!\x00" + "\x00\x00\x00"
	if got := out.String(); got != want {
		t.Errorf("archive is\n%q, want\n%q", got, want)
	}
}

// TestRun boots machines, for which it may have to download kernels, so it must
// be asked for.
func TestRun(t *testing.T) {
	if os.Getenv("XVLAN_TEST_VM") == "" {
		t.Skip("boots virtual machines: set XVLAN_TEST_VM=1")
	}
	vm := filepath.Join(t.TempDir(), "vm")
	if out, err := exec.Command("go", "build", "-o", vm, ".").CombinedOutput(); err != nil {
		t.Fatalf("build runner: %v\n%s", err, out)
	}
	for _, test := range []struct {
		name   string
		args   string // a shell command comes last
		sh     string
		code   int
		stdout string
		stderr string // the beginning, or part of what a machine that died has said
	}{
		{"6.1", "-kernel 6.1", "uname -r | cut -c 1-4", 0, "6.1.\n", ""},
		{"6.12", "-kernel 6.12", "uname -r | cut -c 1-5", 0, "6.12.\n", ""},
		{"code and streams", "", "echo out; echo err >&2; exit 7", 7, "out\n", "err\n"},
		{"signal", "", "kill -9 $$", 128 + 9, "", ""},
		{"leftovers", "", "sleep 1000 & echo out", 0, "out\n", ""},
		{"timeout", "-timeout 15s", "echo out; sleep 1000", exitTimeout, "out\n", ""},
		{"panic", "", "echo c > /proc/sysrq-trigger; sleep 1000", exitFailure, "", "; trying once more\n"},
		{"much", "", "head -c 5000000 /dev/zero | tr '\\0' x; echo; exit 3", 3, strings.Repeat("x", 5000000) + "\n", ""},
		{"cards", "-net 2", "cat /sys/class/net/eth[01]/address", 0, "52:54:00:00:00:01\n52:54:00:00:00:02\n", ""},
		{"module", "", "ip link add type netkit && ip link add link nk0 type ipvlan && ls /sys/class/net/ipvlan0/type",
			0, "/sys/class/net/ipvlan0/type\n", ""},
		{"icount", "-icount", "nproc", 0, "1\n", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			args := append(strings.Fields(test.args), "--", "sh", "-c", test.sh)
			cmd := exec.Command(vm, args...)
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			began := time.Now()
			err := cmd.Run()
			t.Logf("took %v", time.Since(began).Round(100*time.Millisecond))
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			if code := cmd.ProcessState.ExitCode(); code != test.code {
				t.Errorf("exit code %d, want %d; %s", code, test.code, &stderr)
			}
			if stdout.String() != test.stdout {
				t.Errorf("output of %d bytes %.100q, want %.100q", stdout.Len(), &stdout, test.stdout)
			}
			if !strings.HasPrefix(stderr.String(), test.stderr) &&
				(test.code != exitFailure || strings.Count(stderr.String(), test.stderr) != 1) {
				t.Errorf("errors %q, want %q", &stderr, test.stderr)
			}
		})
	}
}
