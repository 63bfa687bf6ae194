# OmniVision: see README.md. `make up` and `make test` are all that most people need.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
GO ?= go
GOTEST ?= $(GO) test
BIN := bin/omnivision
CACHE ?= /var/cache/omnivision
# Go is fetched by version where the machine's is older than a module asks for.
export GOTOOLCHAIN ?= auto
# go-nvml binds also what NVIDIA deprecated, a hundred lines of warnings that are not ours.
export CGO_CFLAGS ?= -O2 -g -Wno-deprecated-declarations

VERSION := $(shell git describe --tags --dirty --always 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X github.com/omnivision/omnivision/internal/version.Version=$(VERSION)

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

.PHONY: up
up: build ## bring the whole fleet up on this machine
	$(BIN) up --cache $(CACHE)

.PHONY: down
down: build ## end the fleet and leave nothing behind
	$(BIN) down --cache $(CACHE)

# Without cgo and with the engines' toolchain, so that program, tests, linters and
# engines (localfleet/engine/seed.go) share one compilation of what they have in common.
# DWARF is not made: the linker would drop it, and it is a quarter of the compiler's time.
SAMEENV := CGO_ENABLED=0 GOFLAGS="-trimpath -gcflags=all=-dwarf=false"

# A compiler that does not collect garbage before it has used 2 GiB is a fifth quicker.
COMPILER := $(shell awk '/MemAvailable/ && $$2 > 12e6 {print "GOGC=off GOMEMLIMIT=2GiB"}' /proc/meminfo)

.PHONY: build
build: ## build the omnivision program
	$(COMPILER) $(SAMEENV) $(GO) build -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/omnivision

.PHONY: engines
engines: build ## build the upstream programs that the fleet runs
	$(BIN) engines build --cache $(CACHE)

# Tests find the engines' programs by OMNIVISION_ENGINES, and those that Debian
# also has (kustomize, promtool) in PATH.
TESTENV = engines=$$($(BIN) engines path --cache $(CACHE)); \
	export OMNIVISION_ENGINES=$$engines OMNIVISION_CACHE=$(CACHE) PATH=$$engines:$$PATH;

.PHONY: test
test: engines ## unit, golden and integration tests, against real servers, and race-light
	$(TESTENV) $(SAMEENV) $(GOTEST) -timeout 30m ./...
	$(TESTENV) $(RACETEST) -timeout 30m $(RACELIGHT)

# NVML's functions are looked up when they are called, not when the program starts.
RACETEST = CGO_ENABLED=1 $(GOTEST) -race -ldflags=-extldflags=-Wl,-z,lazy

# What runs goroutines of its own and does not import the Kubernetes libraries,
# which take as long to compile for the race detector as all else together.
RACELIGHT := ./worker/... ./ui/... ./cmd/worker ./cmd/ui ./forge/... ./shipper ./cmd/shipper \
	./localfleet/engine ./localfleet/story ./localfleet/process

.PHONY: race
race: engines ## all tests under the race detector
	$(TESTENV) $(RACETEST) -timeout 60m ./...

.PHONY: e2e
e2e: build ## the fleet from nothing, broken on purpose, and taken away again
	$(SAMEENV) $(GO) test -tags e2e -count 1 -timeout 60m -v ./test/e2e

.PHONY: bench
bench: build ## benchmarks; with the engines built, also against their programs
	OMNIVISION_ENGINES=$${OMNIVISION_ENGINES:-$$($(BIN) engines path --cache $(CACHE) 2>/dev/null || true)} $(GO) test -run '^$$' -bench . -benchmem ./...

.PHONY: update
update: ## rewrite golden files and generated documents
	$(GO) generate ./charts
	$(GO) test ./fleet ./plan/report ./localfleet/argocd ./gate/inject ./gate/logconfig -update

.PHONY: lint
lint: ## formatting, vet, staticcheck, shellcheck, actionlint
	@test -z "$$(gofmt -l . | tee /dev/stderr)" || { echo 'run gofmt -w on these files' >&2; exit 1; }
	$(SAMEENV) $(GO) vet ./...
	$(SAMEENV) $(GO) vet -tags e2e ./test/...
	$(SAMEENV) $(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...
	$(SAMEENV) $(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2 -tags e2e ./test/...
	shellcheck .ci/run $$(git ls-files '*.sh')
	$(SAMEENV) $(GO) run github.com/rhysd/actionlint/cmd/actionlint@v1.7.12 .github/workflows/*.yaml omnivision-gitops/.github/workflows/*.yaml

.PHONY: clean
clean: ## remove what was built into this folder
	rm -rf bin
