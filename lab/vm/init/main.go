//go:build linux

// Command init is the first process of the virtual machine: it makes the host's
// root folder, read-only under a layer of memory, its own, mounts what a Linux
// system has, runs one command and tells the runner how that ended.
//
// It stands in an initramfs, so it must be linked statically.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/xvlan/xvlan/lab/vm/spec"
	"golang.org/x/sys/unix"
)

const (
	newRoot   = "/newroot"
	fileLimit = 1 << 20
	portTime  = 5 * time.Second // for the virtio ports to come up
	endTime   = time.Minute     // for the runner to end the machine
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "init: %v\n", err)
	}
	// The runner ends the machine when it has the result, and QEMU ends itself
	// on this one.
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}

func run() error {
	data, err := os.ReadFile(spec.File)
	if err != nil {
		return err
	}
	var s spec.Spec
	if err := json.Unmarshal(data, &s); err != nil {
		return fmt.Errorf("parse %s: %w", spec.File, err)
	}
	if err := loadModules(); err != nil {
		return err
	}
	if err := switchRoot(); err != nil {
		return err
	}
	if err := mountSystem(); err != nil {
		return err
	}
	if err := setUp(s); err != nil {
		return err
	}
	return runCommand(s)
}

// loadModules loads what is needed to reach the root folder.
func loadModules() error {
	files, err := filepath.Glob(spec.ModulesDir + "/*")
	if err != nil {
		return err
	}
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load %s: %w", file, err)
		}
	}
	return nil
}

// A mount is one call of mount(2), its target made before.
type mount struct {
	source, target, kind string
	flags                uintptr
	data                 string
}

func (m mount) do() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(m.source, m.target, m.kind, m.flags, m.data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", m.kind, m.target, err)
	}
	return nil
}

// switchRoot makes an overlay of the host's root and a tmpfs the root.
func switchRoot() error {
	for _, m := range []mount{
		{spec.RootTag, "/lower", "9p", unix.MS_RDONLY, "trans=virtio,version=9p2000.L,cache=loose,msize=512000"},
		{"tmpfs", "/rw", "tmpfs", 0, "mode=0755"},
	} {
		if err := m.do(); err != nil {
			return err
		}
	}
	for _, dir := range []string{"/rw/upper", "/rw/work"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	overlay := mount{"overlay", newRoot, "overlay", 0, "lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work"}
	if err := overlay.do(); err != nil {
		return err
	}
	if err := os.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	return os.Chdir("/")
}

// mountSystem mounts what a booted system has, and makes mounts propagate as
// there. /tmp stays a part of the overlay: test binaries lie in the host's.
func mountSystem() error {
	const safe = unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV
	for _, m := range []mount{
		{"proc", "/proc", "proc", safe, ""},
		{"sysfs", "/sys", "sysfs", safe, ""},
		{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"},
		{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0620,ptmxmode=0666"},
		{"tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
		{"bpf", "/sys/fs/bpf", "bpf", safe, "mode=0700"},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", safe, ""},
		{"tracefs", "/sys/kernel/tracing", "tracefs", safe, ""},
		{"debugfs", "/sys/kernel/debug", "debugfs", safe, ""},
	} {
		if err := m.do(); err != nil {
			return err
		}
	}
	if err := unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("share mounts: %w", err)
	}
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2",
	} {
		if err := os.Symlink(target, "/dev/"+name); err != nil {
			return err
		}
	}
	return nil
}

// setUp does what a booted system's services would have done.
func setUp(s spec.Spec) error {
	if err := os.MkdirAll("/dev/net", 0o755); err != nil {
		return err
	}
	// Opening these loads their modules.
	for path, minor := range map[string]uint32{"/dev/net/tun": 200, "/dev/vhost-net": 238} {
		err := unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(10, minor)))
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("make %s: %w", path, err)
		}
	}
	if err := os.MkdirAll("/lib/modules", 0o755); err != nil {
		return err
	}
	if err := os.Symlink(s.Modules, filepath.Join("/lib/modules", filepath.Base(s.Modules))); err != nil {
		return err
	}
	limit := unix.Rlimit{Cur: fileLimit, Max: fileLimit}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("set open file limit: %w", err)
	}
	for _, module := range s.Load {
		if out, err := exec.Command("/sbin/modprobe", module).CombinedOutput(); err != nil {
			return fmt.Errorf("load %s: %w: %s", module, err, out)
		}
	}
	return loopbackUp()
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}

// runCommand runs the command to its end and reports it.
func runCommand(s spec.Spec) error {
	result, err := openPort(spec.ResultPort)
	if err != nil {
		return err
	}
	stdout, err := forward(spec.StdoutPort)
	if err != nil {
		return err
	}
	stderr, err := forward(spec.StderrPort)
	if err != nil {
		return err
	}
	code := start(s, stdout.end, stderr.end)
	_ = unix.Kill(-1, unix.SIGKILL) // what outlives the command would hold its output open
	r := spec.Result{Code: code, Stdout: stdout.drain(), Stderr: stderr.drain()}
	if err := json.NewEncoder(result).Encode(r); err != nil {
		return fmt.Errorf("report result: %w", err)
	}
	time.Sleep(endTime) // while the runner reads what is still on its way
	return nil
}

// start runs the command and returns its exit code as a shell would.
func start(s spec.Spec, stdout, stderr *os.File) int {
	name, err := lookPath(s)
	if err != nil {
		fmt.Fprintf(stderr, "vm: %v\n", err)
		return 127
	}
	process, err := os.StartProcess(name, s.Args, &os.ProcAttr{
		Dir: s.Dir, Env: s.Env, Files: []*os.File{nil, stdout, stderr},
	})
	if err != nil {
		fmt.Fprintf(stderr, "vm: start %s: %v\n", name, err)
		return 126
	}
	for { // the first process also buries those whose parents died
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			fmt.Fprintf(stderr, "vm: wait: %v\n", err)
			return 126
		case pid != process.Pid:
		case status.Signaled():
			return 128 + int(status.Signal())
		default:
			return status.ExitStatus()
		}
	}
}

// lookPath finds the command by the PATH and in the folder it is given.
func lookPath(s spec.Spec) (string, error) {
	if err := os.Chdir(s.Dir); err != nil {
		return "", err
	}
	for _, kv := range s.Env {
		if path, ok := strings.CutPrefix(kv, "PATH="); ok {
			if err := os.Setenv("PATH", path); err != nil {
				return "", err
			}
		}
	}
	return exec.LookPath(s.Args[0])
}

// A stream takes what is written to one end to a virtio port.
type stream struct {
	end    *os.File // for the command
	copied chan int64
}

func forward(name string) (*stream, error) {
	port, err := openPort(name)
	if err != nil {
		return nil, err
	}
	source, end, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	s := &stream{end: end, copied: make(chan int64, 1)}
	go func() {
		n, err := io.Copy(port, source)
		if err != nil {
			fmt.Fprintf(os.Stderr, "init: copy %s: %v\n", name, err)
		}
		s.copied <- n
	}()
	return s, nil
}

// drain waits until all has been copied and returns how much.
func (s *stream) drain() int64 {
	s.end.Close()
	return <-s.copied
}

// openPort opens the virtio serial port of a name when the host has told it.
func openPort(name string) (*os.File, error) {
	for deadline := time.Now().Add(portTime); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		files, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err == nil && strings.TrimSpace(string(data)) == name {
				return os.OpenFile("/dev/"+filepath.Base(filepath.Dir(file)), os.O_WRONLY|syscall.O_CLOEXEC, 0)
			}
		}
	}
	return nil, fmt.Errorf("open port %s: not there within %v", name, portTime)
}
