// Package thread runs code on OS threads of its own.
package thread

import "runtime"

// Run runs fn on an OS thread that ends with it, so that fn may change the
// thread's namespace and affinity, and returns what fn returns.
func Run(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		done <- fn()
	}()
	return <-done
}
