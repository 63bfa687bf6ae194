package build

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

// ErrUnpinned says that a Dockerfile begins with an image that may be another tomorrow.
var ErrUnpinned = errors.New("the base image is not pinned by digest")

// Base is an image that a Dockerfile takes from a registry.
type Base struct {
	Name   string // with tag, such as docker.io/library/golang:1.26.8-bookworm
	Digest string // sha256:…, of the index for all platforms
	Line   int
}

// Reference is the image as it is pulled.
func (b Base) Reference() string { return b.Name + "@" + b.Digest }

// Bases lists the images that a Dockerfile takes from registries, in its FROM lines and in
// --from, each once. Build arguments have the values of args, else their defaults. One
// without a digest is ErrUnpinned with its line: the same commit would not be the same
// image (P3).
func Bases(dockerfile []byte, args map[string]string) ([]Base, error) {
	parsed, err := parser.Parse(bytes.NewReader(dockerfile))
	if err != nil {
		return nil, err
	}
	stages, global, err := instructions.Parse(parsed.AST, nil)
	if err != nil {
		return nil, err
	}
	found := bases{lex: shell.NewLex(parsed.EscapeToken), values: map[string]string{}}
	// The frontend that reads all that follows is an image as well.
	if frontend, _, at, ok := parser.DetectSyntax(dockerfile); ok {
		if err := found.from(frontend, nil, line(at)); err != nil {
			return nil, err
		}
	}
	for _, arg := range global {
		if err := found.define(arg, args); err != nil {
			return nil, err
		}
	}
	for i, stage := range stages {
		if err := found.from(stage.BaseName, stages[:i], line(stage.Location)); err != nil {
			return nil, err
		}
		for _, command := range stage.Commands {
			for _, from := range froms(command) {
				if err := found.from(from, stages, line(command.Location())); err != nil {
					return nil, err
				}
			}
		}
	}
	return found.all, nil
}

type bases struct {
	lex    *shell.Lex
	values map[string]string // of the build arguments before the first FROM
	all    []Base
}

func (b *bases) define(arg instructions.ArgCommand, given map[string]string) error {
	err := arg.Expand(func(word string) (string, error) { return b.expand(word) })
	if err != nil {
		return err
	}
	for _, pair := range arg.Args {
		if value, ok := given[pair.Key]; ok {
			b.values[pair.Key] = value
		} else if pair.Value != nil {
			b.values[pair.Key] = *pair.Value
		}
	}
	return nil
}

func (b *bases) expand(word string) (string, error) {
	expanded, _, err := b.lex.ProcessWord(word, environment(b.values))
	return expanded, err
}

// from adds an image, unless it is a stage of the same file, or nothing.
func (b *bases) from(word string, stages []instructions.Stage, line int) error {
	image, err := b.expand(word)
	if err != nil {
		return fmt.Errorf("line %d: %w", line, err)
	}
	if _, isStage := instructions.HasStage(stages, image); isStage || image == "scratch" {
		return nil
	}
	if at, err := strconv.Atoi(image); err == nil && at >= 0 && at < len(stages) {
		return nil // a stage by its number
	}
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return fmt.Errorf("line %d: %q: %w", line, image, err)
	}
	tagged, hasTag := named.(reference.Tagged)
	digested, hasDigest := named.(reference.Digested)
	if !hasTag || !hasDigest || digested.Digest().Algorithm() != "sha256" {
		return fmt.Errorf("line %d: %w: %s; write NAME:TAG@sha256:…, with the digest of the index that `docker buildx imagetools inspect NAME:TAG` shows", line, ErrUnpinned, image)
	}
	base := Base{Name: named.Name() + ":" + tagged.Tag(), Digest: digested.Digest().String(), Line: line}
	if !slices.ContainsFunc(b.all, func(have Base) bool { return have.Reference() == base.Reference() }) {
		b.all = append(b.all, base)
	}
	return nil
}

// froms are the images or stages that a command takes files from.
func froms(command instructions.Command) (all []string) {
	switch c := command.(type) {
	case *instructions.CopyCommand:
		all = append(all, c.From)
	case *instructions.RunCommand:
		for _, mount := range instructions.GetMounts(c) {
			all = append(all, mount.From)
		}
	}
	return slices.DeleteFunc(all, func(from string) bool { return from == "" })
}

func line(ranges []parser.Range) int {
	if len(ranges) == 0 {
		return 0
	}
	return ranges[0].Start.Line
}

// environment is the values of build arguments as the lexer asks for them.
type environment map[string]string

// Get implements shell.EnvGetter.
func (e environment) Get(key string) (string, bool) {
	value, ok := e[key]
	return value, ok
}

// Keys implements shell.EnvGetter.
func (e environment) Keys() (keys []string) {
	for key := range e {
		keys = append(keys, key)
	}
	return keys
}

// bases are those of the request's Dockerfile.
func (r Request) bases() ([]Base, error) {
	source, err := os.ReadFile(filepath.Join(r.Context, filepath.FromSlash(r.Dockerfile)))
	if err != nil {
		return nil, fmt.Errorf("reading the Dockerfile: %w", err)
	}
	all, err := Bases(source, r.Args)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.Dockerfile, err)
	}
	return all, nil
}

// contextName is the name that BuildKit looks a replacement of an image up by: short for
// Docker Hub's, and with the digest.
func contextName(base Base) (string, error) {
	named, err := reference.ParseNormalizedNamed(base.Reference())
	if err != nil {
		return "", err
	}
	return strings.TrimSuffix(reference.FamiliarString(named), ":latest"), nil
}
