package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Pins live in a bpf file system of xvlan's own. /run, unlike /sys, is the
// same inside `ip netns exec`, which mounts a fresh /sys.
const (
	runDir  = "/run/xvlan"
	pinRoot = runDir + "/bpf"
	lockDir = runDir + "/lock"
)

// building marks a parent's folder that is not complete. (The bpf file system
// reserves names with dots.)
const building = "-new"

// carrying marks the folder that takes the place of a parent's whose maps are of
// an older schema; afterwards, until it is removed, it is the older one. What is
// in it can always go, the programs that are attached hold what they need.
const carrying = "-next"

// folder is where a parent's pins are, and the name of its lock: names and
// numbers repeat between namespaces.
type folder struct {
	cookie uint64 // of the network namespace
	key    int    // of the parent: its first ifindex, see folderOf
}

func (f folder) String() string { return fmt.Sprintf("%d-%d", f.cookie, f.key) }

func (f folder) path() string { return filepath.Join(pinRoot, f.String()) }

// parseFolder undoes String; ok is false for any other name.
func parseFolder(name string) (f folder, ok bool) {
	c, i, found := strings.Cut(name, "-")
	cookie, err1 := strconv.ParseUint(c, 10, 64)
	key, err2 := strconv.Atoi(i)
	return folder{cookie, key}, found && err1 == nil && err2 == nil
}

// folders lists the parents of all namespaces, complete ones or not.
func folders() ([]folder, error) {
	if err := hidden(); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(pinRoot)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("read %s: %w: run xvlan as root", pinRoot, ErrPrivilege)
	}
	if err != nil {
		return nil, fmt.Errorf("list parents: %w", err)
	}
	var all []folder
	for _, e := range entries {
		name, _ := strings.CutSuffix(e.Name(), building)
		name, _ = strings.CutSuffix(name, carrying)
		f, ok := parseFolder(name)
		if ok && !slices.Contains(all, f) {
			all = append(all, f)
		}
	}
	return all, nil
}

func (h *Host) folder(key int) folder { return folder{h.cookie, key} }

// mounted tells whether the bpf file system is there.
func mounted() (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(pinRoot, &st); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if errors.Is(err, fs.ErrPermission) {
		return false, fmt.Errorf("look at %s: %w: run xvlan as root", pinRoot, ErrPrivilege)
	} else if err != nil {
		return false, fmt.Errorf("look at %s: %w", pinRoot, err)
	}
	return uint32(st.Type) == unix.BPF_FS_MAGIC, nil
}

// ensureLocks makes the folder of the lock files.
func ensureLocks() error {
	err := os.MkdirAll(lockDir, 0o700)
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("make %s: %w: run xvlan as root", lockDir, ErrPrivilege)
	}
	if err != nil {
		return fmt.Errorf("make %s: %w", lockDir, err)
	}
	return nil
}

// Mount mounts the bpf file system where it is missing, which otherwise comes with
// the first parent that is attached. ErrTransient says that it would not last.
func Mount() error {
	if err := ensureLocks(); err != nil {
		return err
	}
	return ensureFS()
}

// ensureFS mounts the bpf file system where it is missing.
func ensureFS() error {
	if ok, err := mounted(); ok || err != nil {
		return err
	}
	unlock, err := lockFile("mount")
	if err != nil {
		return err
	}
	defer unlock()
	if ok, err := mounted(); ok || err != nil {
		return err
	}
	if err := hidden(); err != nil {
		return err
	}
	if err := os.MkdirAll(pinRoot, 0o700); err != nil {
		return fmt.Errorf("make %s: %w", pinRoot, err)
	}
	err = unix.Mount("bpf", pinRoot, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700")
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("mount %s: %w: it takes CAP_SYS_ADMIN", pinRoot, ErrPrivilege)
	}
	if err != nil {
		return fmt.Errorf("mount bpf file system on %s: %w", pinRoot, err)
	}
	return nil
}

// hidden refuses to go on where the bpf file system is not to be seen though it
// may be there: what was pinned would seem not to exist, and what is pinned
// would not last.
func hidden() error {
	if ok, err := mounted(); ok || err != nil {
		return err
	}
	if private, err := privateMounts(); err != nil || !private {
		return err
	}
	return fmt.Errorf("mount %s: %w: this is a mount namespace of its own, as `ip netns exec` makes; "+
		"type `xvlan -n NETNS ...` instead, or once, outside: mkdir -p %[1]s && mount -t bpf bpf %[1]s",
		pinRoot, ErrTransient)
}

// privateMounts tells whether this process sees other mounts than the system's
// first process, or the first of its own ancestors that it may look at: a mount
// made here would end with the namespace.
func privateMounts() (bool, error) {
	self, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return false, fmt.Errorf("read mount namespace: %w", err)
	}
	if first, err := os.Readlink("/proc/1/ns/mnt"); err == nil {
		return self != first, nil
	}
	first := self
	for pid := os.Getppid(); pid > 1; pid = parentOf(pid) {
		if mnt, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid)); err == nil {
			first = mnt
		}
	}
	return self != first, nil // without ancestors this is a container, which is as lasting as it is
}

// parentOf returns a process's parent, 0 where it cannot be told.
func parentOf(pid int) int {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	var (
		state  string
		parent int
	)
	name := strings.LastIndexByte(string(stat), ')') // may hold anything
	if _, err := fmt.Sscan(string(stat[name+1:]), &state, &parent); err != nil {
		return 0
	}
	return parent
}

// lockFile takes the named lock, waiting for it.
func lockFile(name string) (unlock func(), err error) { return flock(name, unix.LOCK_EX) }

// flock takes a lock. Its file goes when it is given back, so that none are
// left of parents and namespaces that are gone.
func flock(name string, how int) (unlock func(), err error) {
	f, err := openLock(name, how)
	if err != nil {
		return nil, err
	}
	return func() {
		os.Remove(f.Name()) // what is left is taken for a lock and removed later
		f.Close()
	}, nil
}

// openLock takes a lock, and opens its file. Who has waited for it while the file
// was removed notices that his is no longer the one of that name, and begins anew.
func openLock(name string, how int) (*os.File, error) {
	path := filepath.Join(lockDir, name)
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return nil, fmt.Errorf("open lock: %w", err)
		}
		for err = unix.EINTR; errors.Is(err, unix.EINTR); {
			err = unix.Flock(int(f.Fd()), how)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("take lock %s: %w", name, err), f.Close())
		}
		same, err := sameFile(f, path)
		if same {
			return f, nil
		}
		f.Close()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("take lock %s: %w", name, err)
		}
	}
}

// sweepLocks removes the files of locks that killed commands have left of
// parents that are no more, and that a killed Serve has left.
func sweepLocks() error {
	entries, err := os.ReadDir(lockDir)
	if err != nil {
		return nil // there are none, or they are not ours to see
	}
	for _, e := range entries {
		if e.Name() == graceLock {
			if err := sweepGrace(); err != nil {
				return err
			}
			continue
		}
		f, ok := parseFolder(e.Name())
		if !ok {
			f, ok = parseWatchLock(e.Name())
		}
		if !strings.HasPrefix(e.Name(), serveLock) && (!ok || f.exists()) {
			continue
		}
		unlock, err := flock(e.Name(), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			continue // the parent is being attached, or was being watched; or it is served
		}
		if err != nil {
			return err
		}
		unlock()
	}
	return nil
}

// exists tells whether there is anything of a parent, complete or not.
func (f folder) exists() bool {
	for _, ending := range []string{"", building, carrying} {
		if _, err := os.Stat(f.path() + ending); err == nil {
			return true
		}
	}
	return false
}

// removePins deletes a folder on the bpf file system, which has one level.
func removePins(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list pins: %w", err)
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, unpin(filepath.Join(dir, e.Name())))
	}
	if err := os.Remove(dir); err != nil {
		errs = append(errs, fmt.Errorf("remove pins: %w", err))
	}
	return errors.Join(errs...)
}

// unpin removes one pin; one that is not there is no error.
func unpin(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unpin: %w", err)
	}
	return nil
}
