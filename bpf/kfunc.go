package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
)

// rdonlyCast is the kernel function that the programs use where there is one,
// from Linux 6.2.
const rdonlyCast = "bpf_rdonly_cast"

// dropMissing takes rdonlyCast out of the programs where the kernel has none.
// The library would do so with any weak symbol, but only after it has looked
// through the types of every kernel module, anew for each place that names it:
// thousands of system calls. The function is no module's.
func dropMissing(spec *ebpf.CollectionSpec) error {
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return fmt.Errorf("read the kernel's types: %w", err)
	}
	var fn *btf.Func
	err = kernel.TypeByName(rdonlyCast, &fn)
	if err == nil {
		return nil
	}
	if !errors.Is(err, btf.ErrNotFound) {
		return fmt.Errorf("look %s up: %w", rdonlyCast, err)
	}
	for _, prog := range spec.Programs {
		for i := range prog.Instructions {
			ins := &prog.Instructions[i]
			switch {
			case ins.Reference() != rdonlyCast:
			case ins.IsKfuncCall(): // dead: it comes behind a test of the address
				*ins = asm.Mov.Imm(asm.R0, 0)
			default: // its address: none
				*ins = asm.LoadImm(ins.Dst, 0, asm.DWord)
			}
		}
	}
	return nil
}
