package cppn

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"slices"
	"testing"

	"github.com/omnivision/omnivision/worker/api"
)

func render(t testing.TB, m Model, g api.Generation) [][]byte {
	t.Helper()
	var frames [][]byte
	err := m.Render(t.Context(), "", g, func(pix []byte) error {
		frames = append(frames, slices.Clone(pix))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return frames
}

func sum(frames [][]byte) string {
	h := sha256.New()
	for _, f := range frames {
		h.Write(f)
	}
	return hex.EncodeToString(h.Sum(nil))
}

var sample = api.Generation{Prompt: "aurora over a quiet sea", Seed: 7, Width: 96, Height: 64, Frames: 6, FPS: 24}

// The pixels are a promise to whoever keeps a seed: a change here needs a new
// Model.Name.
func TestThePixelsOfASeedNeverChange(t *testing.T) {
	const want = "9d76d1e0ff9a304b01b9271a21993b021bcbeea73dc4a8cb977a6b4cc0b80067"
	if got := sum(render(t, Model{}, sample)); got != want {
		t.Errorf("%s draws %s, want %s", Model{}.Name(), got, want)
	}
}

func TestTheNumberOfThreadsDoesNotChangeThePixels(t *testing.T) {
	want := sum(render(t, Model{}, sample))
	for _, threads := range []int{2, 3, 500} {
		if got := sum(render(t, Model{Threads: threads}, sample)); got != want {
			t.Errorf("%d threads draw %s, one draws %s", threads, got, want)
		}
	}
}

func TestPromptAndSeedBothChangeThePixels(t *testing.T) {
	seen := map[string]string{}
	for _, prompt := range []string{"aurora over a quiet sea", "sea over a quiet aurora", "lava under ice", "日の出", "???"} {
		for _, seed := range []uint64{0, 7, api.MaxSeed} {
			g := sample
			g.Prompt, g.Seed = prompt, seed
			h := sum(render(t, Model{}, g))
			if other, twice := seen[h]; twice {
				t.Errorf("%q with seed %d looks like %s", prompt, seed, other)
			}
			seen[h] = prompt
		}
	}
}

// difference is the mean distance of two frames' bytes.
func difference(a, b []byte) float64 {
	var d int
	for i := range a {
		d += max(int(a[i])-int(b[i]), int(b[i])-int(a[i]))
	}
	return float64(d) / float64(len(a))
}

func TestItMovesSmoothlyAndEndsWhereItBegan(t *testing.T) {
	g := sample
	g.Frames = 48
	for _, prompt := range []string{"aurora over a quiet sea", "a neon city in the rain", "qwerty"} {
		g.Prompt = prompt
		frames := render(t, Model{}, g)
		for i := range frames {
			next := (i + 1) % len(frames) // the last leads back to the first
			if d := difference(frames[i], frames[next]); d < 0.05 || d > 40 {
				t.Errorf("%q: from frame %d to %d a byte changes by %.2f on average; want motion without jumps", prompt, i, next, d)
			}
		}
		if d := difference(frames[0], frames[24]); d < 2 {
			t.Errorf("%q: the frame half way differs by only %.2f from the first", prompt, d)
		}
	}
}

func TestNoPictureIsFlat(t *testing.T) {
	g := sample
	g.Frames = 1
	for seed := range uint64(40) {
		g.Seed = seed
		pix := render(t, Model{}, g)[0]
		low, high := slices.Min(pix), slices.Max(pix)
		if high-low < 60 {
			t.Errorf("seed %d has bytes from %d to %d alone", seed, low, high)
		}
	}
}

func TestItStopsWhenNobodyWantsTheRest(t *testing.T) {
	t.Run("the context ends", func(t *testing.T) {
		gone := errors.New("the caller left")
		ctx, leave := context.WithCancelCause(t.Context())
		n := 0
		err := Model{}.Render(ctx, "", sample, func([]byte) error {
			if n++; n == 2 {
				leave(gone)
			}
			return nil
		})
		if !errors.Is(err, gone) || n != 2 {
			t.Errorf("after %d frames Render = %v, want 2 and %v", n, err, gone)
		}
	})
	t.Run("emit fails", func(t *testing.T) {
		full := errors.New("no space")
		if err := (Model{}).Render(t.Context(), "", sample, func([]byte) error { return full }); !errors.Is(err, full) {
			t.Errorf("Render = %v, want %v", err, full)
		}
	})
}

func BenchmarkFrame(b *testing.B) {
	for name, threads := range map[string]int{"threads=1": 1, "threads=2": 2} {
		b.Run(name, func(b *testing.B) {
			g := sample
			g.Width, g.Height = 256, 256
			c := newClip(g)
			buffers := make([]*rowBuffers, threads)
			for i := range buffers {
				buffers[i] = newRowBuffers(g.Width)
			}
			pix := make([]byte, g.Width*g.Height*3)
			for b.Loop() {
				c.frame(3, pix, buffers)
			}
		})
	}
}
