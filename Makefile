# `make help` lists the targets.
SHELL       := /bin/bash
CLANG       := clang-19
export XVLAN_CFLAGS := -idirafter /usr/include/$(shell uname -m)-linux-gnu

.PHONY: generate
generate: ## compile the BPF programs and their Go names
	go generate ./bpf
