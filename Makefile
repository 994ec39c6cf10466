# `make help` lists the targets. What a target needs and this machine lacks is
# installed from Debian's packages.
SHELL  := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

PREFIX ?= /usr/local
SUDO   := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

# The object is committed, so the compiler is pinned: check-generated compares bytes.
export XVLAN_CFLAGS := -idirafter /usr/include/$(shell uname -m)-linux-gnu

# A command and the package that has it.
NEED_GO       := go:golang-go
NEED_GENERATE := clang-19:clang-19 llvm-strip-19:llvm-19 /usr/include/bpf/bpf_helpers.h:libbpf-dev
NEED_LINT     := clang-format-19:clang-format-19
NEED_DEMO     := ip:iproute2 ping:iputils-ping
NEED_TEST     := $(NEED_DEMO) ethtool:ethtool strace:strace setpriv:util-linux nsenter:util-linux capsh:libcap2-bin bpftool:bpftool nft:nftables promtool:prometheus \
                 mandoc:mandoc systemd-analyze:systemd fish:fish zsh:zsh /usr/share/bash-completion/bash_completion:bash-completion \
                 $(NEED_GENERATE) dockerd:docker.io /var/lib/dpkg/info/busybox-static.list:busybox-static \
                 /usr/lib/cni/host-local:containernetworking-plugins dnsmasq:dnsmasq-base udhcpc:udhcpc dhclient:isc-dhcp-client dhcpcd:dhcpcd-base kea-dhcp4:kea-dhcp4-server podman:podman runc:runc
NEED_VM       := qemu-system-x86_64:qemu-system-x86 depmod:kmod

# need installs the packages of those commands of $(1) that are missing.
define need
	@packages=""; for p in $(1); do c=$${p%%:*}; \
	  [ -e "$$c" ] || command -v "$$c" >/dev/null || PATH=$$PATH:/usr/sbin:/sbin command -v "$$c" >/dev/null || packages+=" $${p##*:}"; done; \
	if [ -n "$$packages" ]; then echo "installing$$packages"; \
	  $(SUDO) apt-get update -qq && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$packages >/dev/null; fi
endef

.PHONY: help
help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "%-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## build ./xvlan, ./xvlan-docker, ./xvlan-cni and ./xvlan-netavark
	$(call need,$(NEED_GO))
	CGO_ENABLED=0 go build -trimpath -o . ./cmd/...

.PHONY: man
man: build ## write the manual pages into man/
	rm -rf man
	./xvlan man man

.PHONY: install
install: man ## install the commands, manual, completion and units under PREFIX, /usr/local by default
	$(SUDO) install -D -m 0755 -t $(DESTDIR)$(PREFIX)/bin xvlan xvlan-docker
	$(SUDO) install -D -m 0755 -t $(DESTDIR)$(PREFIX)/lib/cni xvlan-cni
	$(SUDO) install -D -m 0755 xvlan-netavark $(DESTDIR)$(PREFIX)/libexec/netavark/xvlan
	$(SUDO) install -d $(DESTDIR)$(PREFIX)/share/man/man8
	$(SUDO) install -m 0644 man/*.8 $(DESTDIR)$(PREFIX)/share/man/man8
	for unit in systemd/*; do sed 's|@bindir@|$(PREFIX)/bin|' $$unit | \
	  $(SUDO) install -D -m 0644 /dev/stdin $(DESTDIR)$(PREFIX)/lib/systemd/system/$${unit##*/}; done
	./xvlan completion bash | $(SUDO) install -D -m 0644 /dev/stdin $(DESTDIR)$(PREFIX)/share/bash-completion/completions/xvlan
	./xvlan completion zsh | $(SUDO) install -D -m 0644 /dev/stdin $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_xvlan
	./xvlan completion fish | $(SUDO) install -D -m 0644 /dev/stdin $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/xvlan.fish

.PHONY: demo
demo: build ## show it at work, in namespaces of its own
	$(call need,$(NEED_DEMO))
	$(SUDO) ./xvlan demo

.PHONY: test
test: ## run the tests, on this machine's kernel, as root
	$(call need,$(NEED_GO) $(NEED_TEST))
	$(SUDO) env "PATH=$$PATH:/usr/sbin:/sbin" "HOME=$$HOME" go test -count=1 -timeout 20m $$(go list ./... | grep -v /referee)

SOAK_TIME   ?= 5m
SOAK_CYCLES ?= 1000

.PHONY: soak
soak: ## let all that can happen happen at once for SOAK_TIME, 5m by default, and add and delete SOAK_CYCLES times, 1000, as root
	$(call need,$(NEED_GO) $(NEED_TEST))
	$(SUDO) env "PATH=$$PATH:/usr/sbin:/sbin" "HOME=$$HOME" go test -count=1 -timeout 0 -v -run '^Test(Soak|Cycles)$$' \
	  ./cmd/xvlan -soak $(SOAK_TIME) -cycles $(SOAK_CYCLES) $(if $(SOAK_SEED),-seed $(SOAK_SEED))

# Packages and fuzzers. An interesting input is made smaller by ten tries at most:
# left to itself that takes most of the time.
FUZZERS   := bpf/FuzzPrograms cmd/xvlan/FuzzConfig cmd/xvlan/FuzzWords cmd/xvlan/FuzzCapture
FUZZ_TIME ?= 60s

.PHONY: fuzz
fuzz: ## look for what upsets programs and parsers, as root; each for FUZZ_TIME, 60s by default
	$(call need,$(NEED_GO) $(NEED_TEST))
	for f in $(FUZZERS); do \
	  $(SUDO) env "PATH=$$PATH:/usr/sbin:/sbin" "HOME=$$HOME" \
	    go test -run '^$$' -fuzz "^$${f##*/}\$$" -fuzztime $(FUZZ_TIME) -fuzzminimizetime 10x ./$${f%/*}; done

.PHONY: referee
referee: ## compare every outcome with the kernel's own drivers, on this kernel, as root; takes minutes
	$(call need,$(NEED_GO) $(NEED_TEST))
	$(SUDO) env "PATH=$$PATH:/usr/sbin:/sbin" "HOME=$$HOME" go test -count=1 -timeout 60m -v ./referee

# Two kernels side by side, each in a machine of one CPU with two network cards,
# and the referee in a third when one of them is done. 6.12 has tcx, and 6.1 only
# filters, whose turn is left to it; native XDP is tried on the cards. Tests that
# stop commands at many of their system calls stop them at fewer (-short).
VM_PACKAGES := lab bpf loader cmd/xvlan cmd/xvlan-docker cni
VM_RUNS     := 6.12 6.1 referee
VM_TIME     := 90m

# All of it takes an hour and more. With VM_QUICK=yes, as CI has it, of
# the packages whose tests take minutes those are run that hang on the kernel:
# each program's path and where it hands frames to, attaching, detaching and putting
# back, traffic of every kind and mode, what is followed, containers on the kernel's
# ipvlan, and four modes before the referee.
define VM_QUICK_TESTS
bpf ^Test(.*Arrives|FloodRefused|Place|Meet|Down|DHCPOut|Lease|Guard|GuardBudget|HostReceives|TxHostAccess|TxVia|RxVia|Groups|Modes|Routed|Rx|Tx|TxMTU|TxNetkit|Turn|XDP.*|Port.*|VLAN.*|Members|AddrSlots|GSOTx|Watchers)$$
loader ^Test(Restore|Unicast|Groups|BulkCounts|Queue|Down.*|Moves|Follow|Parents|AddrOrigins|AddrClaims|CarrierFollows|ParentDeleted.*|RoutedUnicast|RoutedChange|RoutedFlags|Announced|Inactive|PortProgram|Migrate|NetkitUnattended|HostAccess|ViaHost|GuardAttacks|VLANTrunk|VLANOffloads|CardVLANs)$$
xvlan ^Test(AddAll|Leg|SetNetns|DeletedByOthers|Probe|ForeignXDP|PrivateMounts|JSONLikeIP|Systemd|ParentGone)$$
xvlan-docker ^Test(VLANParent|NoParent)$$
cni ^TestModes$$/^kernel-l
referee ^TestReferee$$/^(macvlan_bridge_with_bridge|macvlan_source_with_source|ipvlan_l2_bridge_with_l2_bridge|ipvlan_l3_bridge_with_l3_bridge)$$
endef
# Rung xdp differs on 6.12 in nothing that these try, and takes a third of their time.
VM_QUICK_SKIP = ^Test(Restore|Migrate|BulkCounts|Moves|ParentDeleted.*|RoutedChange|ViaHost|VLANTrunk)$$/^xdp$$
export QUICK = $(if $(VM_QUICK),$(VM_QUICK_TESTS))

.PHONY: test-vm
test-vm: ## run the tests on Linux 6.12 and 6.1, and the referee on 6.12, in virtual machines
	$(call need,$(NEED_GO) $(NEED_TEST) $(NEED_VM))
	CGO_ENABLED=0 go build -o bin/vm ./lab/vm
	go run ./lab/next -o bin/xvlan-next
	for p in $(VM_PACKAGES) referee; do go test -c -o bin/$$(basename $$p).test ./$$p; done
	$(MAKE) --no-print-directory -k -j2 $(VM_RUNS:%=test-vm-%)

test-vm-%:
	@PATH=$$PATH:/usr/sbin:/sbin TEST_FLAGS="$(VM_FLAGS)" bin/vm -kernel $(VM_KERNEL) -net 2 -timeout $(VM_TIME) \
	  -- lab/vm/tests.sh $(CURDIR)/bin $(VM_PACKAGES) 2>&1 | sed -u 's/^/$*: /'

test-vm-%:       VM_KERNEL = $*
test-vm-%:       VM_FLAGS = -test.short
test-vm-6.12:    VM_FLAGS = -test.short -test.skip=/^clsact$(if $(VM_QUICK),|$(VM_QUICK_SKIP))
test-vm-referee: VM_KERNEL = 6.12
test-vm-referee: VM_PACKAGES = referee

# The commit that a report is of; the report itself does not make it another.
REPORT := bench/report bench/baseline.json
COMMIT := $(shell git describe --always --abbrev=12 2>/dev/null || echo unknown)$(shell \
            git diff --quiet HEAD -- . $(REPORT:%=':!%') 2>/dev/null || echo -dirty)

.PHONY: bench-tools
bench-tools:
	$(call need,$(NEED_GO))
	CGO_ENABLED=0 go build -ldflags "-X main.commit=$(COMMIT)" -o bin/bench ./bench

WRITE_REPORT := bin/bench -report bench/report -baseline bench/baseline.json

.PHONY: bench
bench: bench-tools ## measure against the kernel's macvlan, interleaved, and write bench/report
	$(call need,/usr/lib/cni/macvlan:containernetworking-plugins)
	$(SUDO) bin/bench -json bin/ratios.json
	$(WRITE_REPORT) -from bin/ratios.json

.PHONY: bench-report
bench-report: bench-tools ## write bench/report anew from what was measured
	$(WRITE_REPORT) -from bench/report/ratios.json

.PHONY: count-tools
count-tools: bench-tools
	$(call need,$(NEED_VM))
	CGO_ENABLED=0 go build -o bin/vm ./lab/vm

COUNT := PATH=$$PATH:/usr/sbin:/sbin bin/vm -kernel 6.12 -icount -timeout 120m -- bin/bench -count

.PHONY: bench-count
bench-count: count-tools ## count the instructions a frame takes, in a virtual machine, into bench/baseline.json and bench/report
	$(COUNT) -json - > bin/count.json
	mv bin/count.json bench/baseline.json
	$(WRITE_REPORT) -from bench/report/ratios.json

.PHONY: check-count
check-count: count-tools ## fail where a frame takes over 2 % more instructions than bench/baseline.json says
	$(COUNT) -short -baseline bench/baseline.json

PODMAN ?= podman
IMAGE  ?= xvlan

.PHONY: image
image: build ## build the container image IMAGE, xvlan by default, of the programs compiled here
	$(call need,podman:podman)
	$(PODMAN) build --target prebuilt -t $(IMAGE) -f Containerfile .

.PHONY: generate
generate: ## compile the BPF programs and make their Go names
	$(call need,$(NEED_GO) $(NEED_GENERATE))
	go generate ./bpf

.PHONY: check-generated
check-generated: generate ## fail if the committed BPF objects are not what the sources give
	git diff --exit-code --stat -- bpf/*_bpfel.go bpf/*_bpfel.o

.PHONY: lint
lint: ## formatting, vet, staticcheck
	$(call need,$(NEED_GO) $(NEED_LINT))
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$unformatted" ] || { echo "gofmt would change: $$unformatted"; exit 1; }
	clang-format-19 --dry-run -Werror bpf/*.c bpf/*.h
	go vet ./...
	go tool staticcheck ./...

.PHONY: clean
clean: ## remove what was built
	rm -rf xvlan xvlan-docker xvlan-cni xvlan-netavark bin man
