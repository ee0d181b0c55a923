# Virtlet's build. `make` or `make help` tells what there is.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

GO ?= go
PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
DESTDIR ?=
UNITDIR ?= $(PREFIX)/lib/systemd/system

# Time limits of the test runs.
UNIT_TIMEOUT ?= 20m
E2E_TIMEOUT ?= 45m
BENCH_TIMEOUT ?= 60m
# For each of the fuzz targets. There should be 11 at most, so that make test spends less than six minutes on them.
FUZZTIME ?= 30s
# Regular expression over test names, as in go test -run.
RUN ?= .
# More flags for go test, such as -v or -short.
TESTFLAGS ?=

GOLANGCI_LINT := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
BUF := github.com/bufbuild/buf/cmd/buf@v1.75.0
PROTOCOLS := runtime/control

# The version is what Go stamps from git: the tag, or a pseudo-version. Without git, or where git refuses another user's
# checkout, there is no stamp, and the programs call themselves 0.0.0-devel.
STAMP := $(shell git rev-parse HEAD >/dev/null 2>&1 && echo true || echo false)
GOBUILD := CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=$(STAMP) -ldflags "-s -w"

# Needs root: at once for root, by sudo for others. What is built is built as the user all the same.
AS_ROOT := $(CURDIR)/.ci/as-root
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

# End-to-end tests boot VMs; all others are unit tests, though some need root.
E2E := ./e2e ./e2e/image
E2E_PROGRAMS := $(CURDIR)/build/e2e
UNIT = $$($(GO) list ./... | grep -v -x -e '.*/e2e' -e '.*/e2e/image')

.PHONY: help
help: ## Tell what there is to make
	@echo "Targets:"
	@awk -F ':.*## ' '/^[a-z][a-z0-9-]*:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Variables: RUN=REGEXP (e2e, unit, fuzz, bench), FUZZTIME=30s, TESTFLAGS='-v', PREFIX, DESTDIR (install), VIRTLET_CACHE (test images)"

.PHONY: deps
deps: ## Install the Debian packages that tests and the demo need, if any is missing
	@"$(AS_ROOT)" deploy/setup.sh test

.PHONY: build
build: ## Build the programs into bin/
	@mkdir -p bin
	$(GOBUILD) -o bin/ ./cmd/...

.PHONY: demo
demo: deps build ## Watch a virtual machine run as a pod, and go without a trace
	@mkdir -p build
	@$(GO) build -o build/demo ./e2e/demo
	@"$(AS_ROOT)" build/demo

.PHONY: test
test: deps check unit fuzz e2e ## Check the sources, run unit tests, fuzzing and end-to-end tests

.PHONY: check
check: ## Format and vet (the quick part of lint)
	@unformatted=$$("$$($(GO) env GOROOT)/bin/gofmt" -l $$(git ls-files '*.go' 2>/dev/null || find . -name '*.go')); \
	if [ -n "$$unformatted" ]; then echo "not formatted by gofmt:" $$unformatted >&2; exit 1; fi
	$(GO) vet ./...
	$(GO) vet -tags faultpoints ./...

.PHONY: unit
unit: ## Run the unit tests with the race detector; RUN=REGEXP picks tests
	$(GO) test -race -count=1 -timeout $(UNIT_TIMEOUT) -exec '"$(AS_ROOT)"' -run '$(value RUN)' $(TESTFLAGS) $(UNIT)

.PHONY: fuzz
fuzz: ## Fuzz the parsers, each target for FUZZTIME; RUN=REGEXP picks targets
	@GO="$(GO)" .ci/fuzz '$(FUZZTIME)' '$(value RUN)'

.PHONY: e2e
e2e: ## Run the tests that boot VMs; RUN=REGEXP picks tests
	@mkdir -p $(E2E_PROGRAMS)
	CGO_ENABLED=0 $(GO) build -tags faultpoints -trimpath -ldflags "-s -w" -o $(E2E_PROGRAMS)/ ./cmd/...
	@# What the node in a VM gets: the programs as released, and tests of packages.
	@mkdir -p $(E2E_PROGRAMS)/node
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w" -o $(E2E_PROGRAMS)/node/ ./cmd/... ./e2e/node/nodectl
	CGO_ENABLED=0 $(GO) test -c -o $(E2E_PROGRAMS)/node/ ./cgroups ./netns ./sandbox/cage ./sandbox/supervisor
	VIRTLET_E2E_BIN=$(E2E_PROGRAMS) $(GO) test -p 1 -count=1 -timeout $(E2E_TIMEOUT) -exec '"$(AS_ROOT)"' -run '$(value RUN)' $(TESTFLAGS) $(E2E)

.PHONY: bench
bench: deps build ## Measure against bare QEMU and others and write bench/RESULTS.md
	VIRTLET_BENCH=1 $(GO) test -count=1 -timeout $(BENCH_TIMEOUT) -exec '"$(AS_ROOT)"' -run '$(if $(filter .,$(value RUN)),TestBench,$(value RUN))' -v $(TESTFLAGS) ./bench

.PHONY: generate
generate: ## Make the Go code of our own protocol anew, after a change of its .proto
	$(GO) run $(BUF) generate --template $(PROTOCOLS)/buf.gen.yaml --path $(PROTOCOLS)

.PHONY: generated
generated: ## Look whether what generate makes is what is committed (a part of lint)
	@rm -rf build/_generated
	@$(GO) run $(BUF) generate --template $(PROTOCOLS)/buf.gen.yaml --path $(PROTOCOLS) -o build/_generated
	@for made in $$(cd build/_generated && find . -name '*.go'); do \
		diff -u "$$made" "build/_generated/$$made" || { echo "$$made is not what its .proto says: make generate" >&2; exit 1; }; done

.PHONY: lint
lint: check generated ## Run golangci-lint (built at first use, which takes minutes)
	$(GO) run $(GOLANGCI_LINT) run ./...

.PHONY: install
install: build ## Install programs, systemd units, example configuration and manifests below PREFIX
	$(INSTALLER) install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(UNITDIR) $(DESTDIR)$(SYSCONFDIR)/virtlet/images.d $(EXAMPLES)/images.d
	$(INSTALLER) install -m 0755 bin/* $(DESTDIR)$(PREFIX)/bin/
	@for unit in virtlet criproxy; do \
		sed 's|@BINDIR@|$(PREFIX)/bin|' deploy/$$unit.service | $(INSTALLER) install -m 0644 /dev/stdin $(DESTDIR)$(UNITDIR)/$$unit.service || exit 1; done
	$(INSTALLER) install -m 0644 deploy/virtlet.yaml deploy/criproxy.yaml deploy/runtimeclass.yaml deploy/image-server.* deploy/examples/* deploy/cni/* $(EXAMPLES)
	$(INSTALLER) install -m 0644 deploy/images.d/* $(EXAMPLES)/images.d
	$(INSTALLER) install -d $(APPARMOR)/tunables/virtlet.d
	$(INSTALLER) install -m 0644 deploy/apparmor/virtlet $(APPARMOR)/virtlet
	$(INSTALLER) install -m 0644 deploy/apparmor/tunables/virtlet $(APPARMOR)/tunables/virtlet
	@# The operator's own configuration stays.
	@for conf in virtlet criproxy; do [ -e $(DESTDIR)$(SYSCONFDIR)/virtlet/$$conf.yaml ] || \
		$(INSTALLER) install -m 0644 deploy/$$conf.yaml $(DESTDIR)$(SYSCONFDIR)/virtlet/$$conf.yaml || exit 1; done
	@$(RELOAD)
	@if $(HAS_APPARMOR); then $(SUDO) $(APPARMOR_PARSER) -r $(APPARMOR)/virtlet; fi
	@echo "Installed. What this host lacks: $(PREFIX)/bin/virtlet check. Examples, a CNI configuration among them: $(PREFIX)/share/virtlet"

.PHONY: uninstall
uninstall: ## Remove what install put there; configuration and state stay
	@if [ -z "$(DESTDIR)" ] && systemctl is-active --quiet virtlet 2>/dev/null; then \
		echo "virtlet is running. Remove the VMs' pods, then: systemctl disable --now virtlet" >&2; exit 1; fi
	@# A profile that is unloaded lets go of the VMs that still run.
	@if $(HAS_APPARMOR) && [ -e $(APPARMOR)/virtlet ]; then \
		if $(SUDO) sh -c 'ls -d /run/virtlet/vms/*' >/dev/null 2>&1; then echo "VMs run: their AppArmor profile stays loaded until the next boot" >&2; \
		else $(SUDO) $(APPARMOR_PARSER) -R $(APPARMOR)/virtlet; fi; fi
	$(INSTALLER) rm -f $(APPARMOR)/virtlet $(APPARMOR)/tunables/virtlet
	@# The site's own rules stay.
	@$(INSTALLER) rmdir --ignore-fail-on-non-empty $(APPARMOR)/tunables/virtlet.d 2>/dev/null || true
	$(INSTALLER) rm -f $(addprefix $(DESTDIR)$(PREFIX)/bin/,$(PROGRAMS)) $(addprefix $(DESTDIR)$(UNITDIR)/,virtlet.service criproxy.service)
	$(INSTALLER) rm -rf $(EXAMPLES)
	@$(RELOAD)

.PHONY: clean
clean: ## Remove what was built (the cache of test images stays)
	rm -rf bin build

PROGRAMS = $(patsubst cmd/%/main.go,%,$(wildcard cmd/*/main.go))

# A package is staged into DESTDIR without rights.
INSTALLER = $(if $(DESTDIR),,$(SUDO))
APPARMOR = $(DESTDIR)$(SYSCONFDIR)/apparmor.d
# By its path: an ordinary user's PATH has no sbin.
APPARMOR_PARSER = /sbin/apparmor_parser
HAS_APPARMOR = [ -z "$(DESTDIR)" ] && [ -x $(APPARMOR_PARSER) ] && grep -qs Y /sys/module/apparmor/parameters/enabled
EXAMPLES = $(DESTDIR)$(PREFIX)/share/virtlet
RELOAD = if [ -z "$(DESTDIR)" ] && [ -d /run/systemd/system ]; then $(SUDO) systemctl daemon-reload; fi
