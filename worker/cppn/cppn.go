// Package cppn is a small generative model: a compositional pattern-producing
// network (https://en.wikipedia.org/wiki/Compositional_pattern-producing_network)
// that maps a pixel's place and the time to its colour, conditioned on a
// prompt. Equal input gives equal pixels, on every machine. It runs on the
// CPU, has no weights to load, and draws abstract moving patterns; it does not
// draw what the prompt depicts.
package cppn

import (
	"context"
	"fmt"
	"math"
	"sync"

	"github.com/omnivision/omnivision/worker/api"
)

// Model renders on the CPU. The zero value uses one core.
type Model struct {
	// Threads is how many cores one generation may use.
	Threads int
}

// Name says which function of prompt and seed this is. It changes whenever the
// pixels do.
func (Model) Name() string { return "cppn-1" }

// Render draws the frames of g in order and gives each to emit, which must not
// keep it. It stops at the first error of emit, and between frames when ctx
// ends. The device is of no interest to a model that has none.
func (m Model) Render(ctx context.Context, _ string, g api.Generation, emit func(pix []byte) error) error {
	c := newClip(g)
	buffers := make([]*rowBuffers, max(1, min(m.Threads, g.Height)))
	for i := range buffers {
		buffers[i] = newRowBuffers(g.Width)
	}
	pix := make([]byte, g.Width*g.Height*3)
	for i := range g.Frames {
		if err := context.Cause(ctx); err != nil {
			return fmt.Errorf("stopped before frame %d of %d: %w", i+1, g.Frames, err)
		}
		c.frame(i, pix, buffers)
		if err := emit(pix); err != nil {
			return err
		}
	}
	return nil
}

// clip is what stays the same from frame to frame.
type clip struct {
	g       api.Generation
	net     *network
	colours *[paletteSize]rgb
	xs      []float32
	scale   float32
}

func newClip(g api.Generation) *clip {
	c := &clip{
		g:       g,
		net:     newNetwork(g.Seed, embed(g.Prompt)),
		colours: palette(g.Prompt, g.Seed),
		xs:      make([]float32, g.Width),
		scale:   2 / float32(min(g.Width, g.Height)), // the shorter side spans -1 to 1
	}
	for i := range c.xs {
		c.xs[i] = (float32(i) + 0.5 - float32(g.Width)/2) * c.scale
	}
	return c
}

// frame draws frame i, each of buffers on a goroutine of its own. Rows are
// dealt in turn, so that no thread gets all the dull ones.
func (c *clip) frame(i int, pix []byte, buffers []*rowBuffers) {
	angle := 2 * math.Pi * float64(i) / float64(c.g.Frames)
	tc, ts := float32(math.Cos(angle)), float32(math.Sin(angle))
	rows := func(first int) {
		rs := make([]float32, c.g.Width)
		for y := first; y < c.g.Height; y += len(buffers) {
			c.row(y, tc, ts, rs, buffers[first], pix[y*c.g.Width*3:][:c.g.Width*3])
		}
	}
	if len(buffers) == 1 {
		rows(0)
		return
	}
	var wg sync.WaitGroup
	for first := range buffers {
		wg.Go(func() { rows(first) })
	}
	wg.Wait()
}

func (c *clip) row(y int, tc, ts float32, rs []float32, b *rowBuffers, pix []byte) {
	fy := (float32(y) + 0.5 - float32(c.g.Height)/2) * c.scale
	for i, x := range c.xs {
		rs[i] = sqrt32(float32(x*x) + float32(fy*fy))
	}
	c.net.evaluate(b, c.xs, rs, fy, tc, ts)
	// The time also turns the palette once around, slowly enough to follow.
	shift := float32(0.1 * ts)
	colour, light, glow := b.out[0], b.out[1], b.out[2]
	for i := range c.xs {
		at := float32(0.5*colour[i]) + shift
		at -= float32(math.Floor(float64(at)))
		p := &c.colours[int(at*paletteSize)&(paletteSize-1)]
		l := 0.78 + float32(0.42*soft(light[i]))
		shine := max(soft(glow[i]), 0)
		shine = float32(shine * shine)
		l += float32(0.5 * shine)
		l *= 1.04 - float32(0.16*min(float32(rs[i]*rs[i]), 2)) // darker corners
		// Bright colours take on some white, dark ones stay what they are.
		shine = float32(0.25*shine) * max(p[0], p[1], p[2])
		for k := range 3 {
			v := clamp01(float32(p[k]*l) + shine)
			pix[3*i+k] = gamma[int(v*(gammaSize-1))]
		}
	}
}

// soft keeps a value within -1 and 1 without a hard edge.
func soft(v float32) float32 { return v / (1 + abs32(v)) }
