package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Attaching to tcx and detaching wait for a grace period of RCU, which ends when each
// CPU has had a tick or a switch: some 12 ms with HZ=250. An expedited one interrupts
// those CPUs that are in the kernel, and takes 0.2 ms. Deleting any device takes such
// ones as it is. The setting is all of the machine's, and so is made for the time of
// the one call alone. Who has none of it sets /sys/kernel/rcu_normal, as a kernel with
// PREEMPT_RT does by itself: then it has no effect.
// Source: Documentation/admin-guide/kernel-parameters.txt, rcupdate.rcu_expedited.
const rcuExpedited = "/sys/kernel/rcu_expedited"

// graceLock is shared by those who have the setting made. Its file has something in it
// from before it is made until the last one has put it back, so that what a killed
// command has left is known from what somebody else has set.
const graceLock = "grace"

// hurried makes a change of devices that waits for grace periods, with these
// expedited. Where the setting cannot be made, as in a container, or somebody has made
// it for good, the change is made as it is.
func hurried(change func() error) error {
	f, err := openLock(graceLock, unix.LOCK_SH)
	if err != nil {
		return change()
	}
	hurry(f)
	return errors.Join(change(), calm(f))
}

// hurry has grace periods expedited until calm.
func hurry(f *os.File) {
	if st, err := f.Stat(); err != nil || st.Size() == 0 {
		now, err := os.ReadFile(rcuExpedited)
		if err != nil || strings.TrimSpace(string(now)) != "0" {
			return
		}
		if _, err := f.WriteString("1\n"); err != nil {
			return
		}
	}
	_ = os.WriteFile(rcuExpedited, []byte("1"), 0) // if not, it takes longer
}

// calm gives the lock back, and puts the setting back where nobody else has it.
func calm(f *os.File) error {
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil // somebody else is at it, who will
	}
	st, err := f.Stat()
	if err == nil && st.Size() > 0 {
		err = os.WriteFile(rcuExpedited, []byte("0"), 0)
		if errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS) {
			err = nil // nor was it set
		}
	}
	if err != nil {
		return fmt.Errorf("put back %s: %w", rcuExpedited, err)
	}
	os.Remove(f.Name()) // what is left is swept later
	return nil
}

// sweepGrace puts the setting back that a killed command has left.
func sweepGrace() error {
	f, err := openLock(graceLock, unix.LOCK_SH)
	if err != nil {
		return err
	}
	return calm(f)
}
