package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// cniPlugins is where Debian's containernetworking-plugins has the reference
// plugins.
const cniPlugins = "/usr/lib/cni"

// cni is about what a container waits for: the plugin's ADD and DEL, with host-local
// to give addresses, where one other sub-interface is there and where many are.
func (b *bench) cni(ctx context.Context) (rows []*row, err error) {
	for _, name := range []string{"macvlan", "host-local"} {
		if _, err := os.Stat(filepath.Join(cniPlugins, name)); err != nil {
			return nil, fmt.Errorf("find reference plugin: %w: apt-get install containernetworking-plugins", err)
		}
	}
	dir, err := os.MkdirTemp("", "xvlan-bench-")
	if err != nil {
		return nil, fmt.Errorf("make folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	binary := filepath.Join(dir, "xvlan-cni")
	if err := build(binary); err != nil {
		return nil, err
	}
	counts := []int{1}
	if b.large {
		counts = append(counts, crowd)
	}
	for _, n := range counts {
		more, err := b.attachments(ctx, dir, binary, n)
		if err != nil {
			return nil, err
		}
		rows = append(rows, more...)
	}
	return rows, nil
}

// attachments compares the two plugins beside n sub-interfaces.
func (b *bench) attachments(ctx context.Context, dir, binary string, n int) (rows []*row, err error) {
	all, err := makers("cni", macvlanBatch, xvlanLoader)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closeMakers(all)) }()
	var probes []probe
	for i, plugin := range []string{filepath.Join(cniPlugins, "macvlan"), binary} {
		m := all[i]
		if err := m.make(n); err != nil {
			return nil, err
		}
		pod, err := newSpace(m.box().name + "-pod")
		if err != nil {
			return nil, err
		}
		m.boxes = append(m.boxes, pod)
		a := attachment{host: m.host, pod: pod, plugin: plugin}
		if err := a.configure(filepath.Join(dir, fmt.Sprintf("ipam-%d-%d", n, i))); err != nil {
			return nil, err
		}
		probes = append(probes, a.probe)
	}
	took, err := b.interleave(ctx, probes...)
	if err != nil {
		return nil, err
	}
	beside := ""
	if n > 1 {
		beside = fmt.Sprintf(", %d sub-interfaces there", n)
	}
	mv, xv := took[0], took[1]
	for i, what := range []string{"CNI ADD", "CNI DEL"} {
		rows = append(rows,
			compare(what+beside, "ms", mv[2*i], xv[2*i]).lessIsBetter().goal(1),
			compare(what+", CPU time"+beside, "ms", mv[2*i+1], xv[2*i+1]).lessIsBetter())
	}
	return rows, nil
}

// An attachment is a container's to a network of one of the plugins.
type attachment struct {
	host, pod    *space
	plugin, conf string
}

func (a *attachment) configure(ipam string) error {
	type object map[string]any
	conf, err := json.Marshal(object{
		"cniVersion": "1.0.0", "name": "bench", "type": filepath.Base(a.plugin), "master": parentDev, "mode": "bridge",
		"ipam": object{"type": "host-local", "dataDir": ipam, "ranges": [][]object{{{"subnet": "10.58.0.0/16"}}}},
	})
	a.conf = string(conf)
	return err
}

// probe attaches the container and detaches it. Its figures are milliseconds, and
// those of CPU time, of each of the two.
func (a *attachment) probe() (figures []float64, err error) {
	for _, verb := range []string{"ADD", "DEL"} {
		cmd := exec.Command(a.plugin)
		cmd.Env = append(os.Environ(), "CNI_COMMAND="+verb, "CNI_CONTAINERID=bench", "CNI_NETNS=/run/netns/"+a.pod.name, "CNI_IFNAME=eth0", "CNI_PATH="+cniPlugins)
		cmd.Stdin = strings.NewReader(a.conf)
		took, err := milliseconds(func() error {
			return a.host.do(func() error {
				out, err := cmd.CombinedOutput()
				if err != nil {
					return fmt.Errorf("%s of %s: %w: %s", verb, a.plugin, err, bytes.TrimSpace(out))
				}
				return nil
			})
		})
		if err != nil {
			return nil, err
		}
		cpu := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
		figures = append(figures, took, float64(cpu.Microseconds())/1000)
	}
	return figures, nil
}
