package build

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestBasesAreWhatADockerfileTakesFromRegistries(t *testing.T) {
	got, err := Bases([]byte(`# syntax=docker.io/docker/dockerfile:1.7@`+pinned+`
ARG VERSION=1.26.8
ARG GO=golang:${VERSION}-bookworm@`+pinned+`
FROM --platform=${BUILDPLATFORM} ${GO} AS build
RUN --mount=type=bind,from=ghcr.io/tools:1@`+pinned+`,target=/t true
FROM build AS again
FROM scratch
COPY --from=again /x /x
COPY --from=0 /x /y
COPY --from=gcr.io/other:2@`+pinned+` /x /z
`), map[string]string{"VERSION": "1.27.0"})
	check(t, err)
	var names []string
	for _, base := range got {
		names = append(names, base.Name)
		if base.Reference() != base.Name+"@"+pinned {
			t.Errorf("%s is %s", base.Name, base.Reference())
		}
	}
	if want := "docker.io/docker/dockerfile:1.7 docker.io/library/golang:1.27.0-bookworm ghcr.io/tools:1 gcr.io/other:2"; strings.Join(names, " ") != want {
		t.Errorf("bases are %q, want %q", names, want)
	}
}

func TestImageWithoutADigestIsNotBuiltFrom(t *testing.T) {
	for name, lines := range map[string]string{
		"a tag":                    "FROM golang:1.26\n",
		"no tag":                   "FROM golang\n",
		"a digest without its tag": "FROM golang@" + pinned + "\n",
		"an argument":              "ARG BASE=golang:1.26\nFROM ${BASE}\n",
		"an optional digest":       "ARG DIGEST=\nFROM golang:1.26${DIGEST:+@${DIGEST}}\n",
		"a later stage's":          "FROM scratch AS one\nCOPY --from=two /x /x\n",
		"a mount":                  "FROM scratch\nRUN --mount=from=golang:1.26,target=/t true\n",
		"a frontend":               "# syntax=docker/dockerfile:1\nFROM scratch\n",
		"another hash":             "FROM golang:1.26@sha512:" + strings.Repeat("a", 128) + "\n",
	} {
		if got, err := Bases([]byte(lines), nil); !errors.Is(err, ErrUnpinned) || !strings.Contains(err.Error(), "line ") {
			t.Errorf("%s: bases are %v, error is %v", name, got, err)
		}
	}
	for _, broken := range []string{"", "RUN true\n", "FROM\n", "FROM a b c\n", "FROM ${A\n"} {
		if got, err := Bases([]byte(broken), nil); err == nil {
			t.Errorf("%q has the bases %v", broken, got)
		}
	}
}

// A daemon is not even asked.
func TestBuildFromAnImageWithoutADigestIsRefused(t *testing.T) {
	d, repositories := newDaemon(t), newRepositories(t, 1)
	r := request(t, repositories)
	check(t, os.WriteFile(filepath.Join(r.Context, r.Dockerfile), []byte("FROM golang:1.26\n"), 0o600))
	_, err := Builder{Address: d.address}.Build(t.Context(), r, nothing)
	if !errors.Is(err, ErrUnpinned) || !strings.Contains(err.Error(), "cmd/worker/Dockerfile: line 1: ") || len(d.requests) > 0 {
		t.Errorf("error is %v, and the daemon was asked %d times", err, len(d.requests))
	}
}

func FuzzBases(f *testing.F) {
	f.Add("FROM golang:1.26@" + pinned)
	f.Add("# syntax=x\nARG A=${B:+c}\nFROM ${A} AS x\nRUN --mount=from=y true")
	f.Fuzz(func(t *testing.T, dockerfile string) {
		all, err := Bases([]byte(dockerfile), nil)
		for _, base := range all {
			if err == nil && (base.Name == "" || !strings.HasPrefix(base.Digest, "sha256:")) {
				t.Errorf("%q has the base %+v", dockerfile, base)
			}
		}
	})
}
