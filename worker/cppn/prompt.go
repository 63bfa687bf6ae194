package cppn

import (
	"strings"
	"unicode"
)

// rng is SplitMix64. It is written here, not taken from a library, because a
// seed must give the same animation for as long as anybody keeps the seed.
type rng uint64

func (r *rng) next() uint64 {
	*r += 0x9e3779b97f4a7c15
	z := uint64(*r)
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb
	return z ^ (z >> 31)
}

// unit is uniform in [0,1).
func (r *rng) unit() float32 { return float32(r.next()>>40) / (1 << 24) }

// normal is near enough to a normal distribution: twelve uniform numbers summed.
func (r *rng) normal() float32 {
	var sum float32
	for range 12 {
		sum += r.unit()
	}
	return sum - 6
}

// hash is FNV-1a.
func hash(s string) uint64 {
	h := uint64(0xcbf29ce484222325)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 0x100000001b3
	}
	return h
}

// words splits a prompt as the embedding sees it.
func words(prompt string) []string {
	return strings.FieldsFunc(strings.ToLower(prompt), func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r)
	})
}

// embed turns a prompt into the network's latent vector. Each word has a
// direction of its own, and each pair of neighbours a weaker one, so that
// prompts that share words give animations that resemble each other.
func embed(prompt string) (z [latent]float32) {
	terms := words(prompt)
	if len(terms) == 0 {
		terms = []string{prompt} // "???" is a prompt too
	}
	add := func(text string, weight float32) {
		r := rng(hash(text))
		for i := range z {
			z[i] += float32(weight * r.normal())
		}
	}
	var weight float32
	for i, w := range terms {
		add(w, 1)
		weight++
		if i > 0 {
			add(terms[i-1]+" "+w, 0.4)
		}
	}
	scale := 1 / sqrt32(weight)
	for i := range z {
		z[i] *= scale
	}
	return z
}
