package bpf

// The BPF object is compiled for little-endian machines, the only ones tested.
//
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Wextra -Werror -mcpu=v3 $XVLAN_CFLAGS" -type verdict -type sub_state -type sub_kind -type sub_mode -type sub_class -type sub_place -type sub_flag -type guard_flag -type dest_flag -type policy -type found -type rung -type mac_key -type ip4_key -type ip6_key -type dest -type src_key -type sub -type guard -type parent -type counter -type sub_stats -type carried -type ring -type ip4_bucket -type ip6_bucket -type watcher -type sighting Xvlan xvlan.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -no-global-types -cflags "-O2 -g -Wall -Wextra -Werror -mcpu=v3 -DTRACE $XVLAN_CFLAGS" -type step_kind -type step -type steps Trace xvlan.c
