package main

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// commit is xvlan's, set when it is built (-ldflags -X).
var commit = "unknown"

// A machine is what figures come from.
type machine struct {
	Kernel string `json:"kernel"`
	CPU    string `json:"cpu"`
	CPUs   int    `json:"cpus"`
	System string `json:"system,omitempty"` // what its firmware says that it is: QEMU's has its version
	Go     string `json:"go"`
	Commit string `json:"commit"`
	Date   string `json:"date"`
	Load   string `json:"load"` // threads that wanted to run in the minute before: more than some tenths disturb ratios
}

// thisMachine finds out what it runs on.
func thisMachine() (machine, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return machine{}, fmt.Errorf("read kernel version: %w", err)
	}
	cpuinfo, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return machine{}, fmt.Errorf("read CPU model: %w", err)
	}
	model := "unknown"
	for line := range strings.Lines(string(cpuinfo)) {
		if key, value, _ := strings.Cut(line, ":"); strings.TrimSpace(key) == "model name" {
			model = strings.TrimSpace(value)
			break
		}
	}
	var system []string
	for _, key := range []string{"sys_vendor", "product_name", "product_version"} {
		value, err := os.ReadFile("/sys/class/dmi/id/" + key)
		if v := strings.TrimSpace(string(value)); err == nil && v != "" { // not all firmware says
			system = append(system, v)
		}
	}
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return machine{}, fmt.Errorf("read load: %w", err)
	}
	minute, _, _ := strings.Cut(string(load), " ")
	return machine{
		Kernel: unix.ByteSliceToString(uts.Release[:]),
		CPU:    model,
		CPUs:   runtime.NumCPU(),
		System: strings.Join(system, ", "),
		Go:     runtime.Version(),
		Commit: commit,
		Date:   time.Now().UTC().Format(time.DateOnly),
		Load:   minute,
	}, nil
}
