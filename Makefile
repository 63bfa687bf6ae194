# OmniVision: see README.md. `make up` and `make test` are all that most people need.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
GO ?= go
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

.PHONY: build
build: ## build the omnivision program
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/omnivision

.PHONY: engines
engines: build ## build the upstream programs that the fleet runs
	$(BIN) engines build --cache $(CACHE)

.PHONY: test
test: engines ## unit, golden and integration tests, against real servers
	OMNIVISION_ENGINES=$$($(BIN) engines path --cache $(CACHE)) OMNIVISION_CACHE=$(CACHE) $(GO) test -timeout 30m ./...

.PHONY: race
race: engines ## the same under the race detector
	OMNIVISION_ENGINES=$$($(BIN) engines path --cache $(CACHE)) OMNIVISION_CACHE=$(CACHE) $(GO) test -race -timeout 40m ./...

.PHONY: e2e
e2e: build ## the fleet from nothing, broken on purpose, and taken away again
	$(GO) test -tags e2e -count 1 -timeout 40m -v ./test/e2e

.PHONY: bench
bench: ## benchmarks
	$(GO) test -run '^$$' -bench . -benchmem ./...

.PHONY: update
update: ## rewrite golden files and generated documents
	$(GO) generate ./charts
	$(GO) test ./fleet ./localfleet/argocd -update

.PHONY: lint
lint: ## formatting, vet, shellcheck
	@test -z "$$(gofmt -l . | tee /dev/stderr)" || { echo 'run gofmt -w on these files' >&2; exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags e2e ./test/...
	shellcheck .ci/run $$(git ls-files '*.sh')

.PHONY: clean
clean: ## remove what was built into this folder
	rm -rf bin
