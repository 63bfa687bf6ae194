package cppn

import "math"

const (
	latent = 8  // length of the prompt's vector
	hidden = 12 // neurons a layer
	output = 3  // colour, light, glow
	coords = 5  // x, y, distance from the centre, and two for the time
)

// network is three dense layers. The prompt's vector is constant over the
// clip, so its share of the first two layers is folded into their biases.
type network struct {
	w1   [hidden][coords]float32
	b1   [hidden]float32
	act1 [hidden]activation
	w2   [hidden][hidden]float32
	b2   [hidden]float32
	act2 [hidden]activation
	w3   [output][hidden]float32
	b3   [output]float32
}

type activation uint8

// A few kinds of activation are what makes such a network compose patterns:
// repetition, symmetry and edges each come from one.
const (
	sine activation = iota
	tanh
	bump
	fold
	activations
)

// newNetwork draws the weights from the seed and the conditioning from the
// prompt: the seed chooses the dancer, the prompt the dance.
func newNetwork(seed uint64, z [latent]float32) *network {
	r := rng(seed ^ 0x6f6d6e69766973) // "omnivis": seed 0 should not be the all-zero state
	n := &network{}
	for i := range hidden {
		// Low frequencies for large shapes, a few higher ones for detail.
		scale := float32(1.1)
		if i%4 == 3 {
			scale = 2.3
		}
		n.w1[i][0] = float32(scale * r.normal())
		n.w1[i][1] = float32(scale * r.normal())
		n.w1[i][2] = float32(1.2 * r.normal())
		n.w1[i][3] = float32(0.22 * r.normal())
		n.w1[i][4] = float32(0.22 * r.normal())
		n.b1[i] = float32(0.5 * r.normal())
		for k := range z {
			n.b1[i] += float32(0.55 * float32(r.normal()*z[k]))
		}
		n.act1[i] = activation(i) % activations
		if i%3 == 0 {
			n.act1[i] = sine
		}
	}
	for i := range hidden {
		for j := range hidden {
			n.w2[i][j] = float32(0.5 * r.normal())
		}
		n.b2[i] = float32(0.3 * r.normal())
		for k := range z {
			n.b2[i] += float32(0.4 * float32(r.normal()*z[k]))
		}
		n.act2[i] = activation(r.next() % uint64(activations))
	}
	for o := range output {
		for j := range hidden {
			n.w3[o][j] = float32(0.42 * r.normal())
		}
		for k := range z {
			n.b3[o] += float32(0.15 * float32(r.normal()*z[k]))
		}
	}
	return n
}

// rowBuffers hold one row of activations, neuron by neuron, so that the inner
// loops run over neighbouring memory.
type rowBuffers struct {
	h1, h2 [hidden][]float32
	out    [output][]float32
}

func newRowBuffers(width int) *rowBuffers {
	all := make([]float32, (2*hidden+output)*width)
	take := func() []float32 {
		row := all[:width:width]
		all = all[width:]
		return row
	}
	b := &rowBuffers{}
	for i := range hidden {
		b.h1[i], b.h2[i] = take(), take()
	}
	for i := range output {
		b.out[i] = take()
	}
	return b
}

// evaluate fills b.out for one row of pixels. xs and rs hold each pixel's x and
// distance from the centre; y and the time (tc, ts: a point on a circle, so
// that the last frame leads back to the first) are the same along the row.
//
// Every product is rounded by a conversion before it is added: that forbids
// fused multiply-add, which some processors have and others lack, and keeps an
// animation the same, bit by bit, in every region.
func (n *network) evaluate(b *rowBuffers, xs, rs []float32, y, tc, ts float32) {
	for i := range hidden {
		w := &n.w1[i]
		c := n.b1[i] + float32(w[1]*y) + float32(w[3]*tc) + float32(w[4]*ts)
		row := b.h1[i][:len(xs)]
		rs := rs[:len(xs)]
		for p, x := range xs {
			row[p] = c + float32(w[0]*x) + float32(w[2]*rs[p])
		}
		n.act1[i].apply(row)
	}
	for i := range hidden {
		dense(b.h2[i], &b.h1, &n.w2[i], n.b2[i])
		n.act2[i].apply(b.h2[i])
	}
	for o := range output {
		dense(b.out[o], &b.h2, &n.w3[o], n.b3[o])
	}
}

// dense adds up one neuron's inputs, four at a time.
func dense(dst []float32, in *[hidden][]float32, w *[hidden]float32, bias float32) {
	for p := range dst {
		dst[p] = bias
	}
	for j := 0; j+3 < hidden; j += 4 {
		w0, w1, w2, w3 := w[j], w[j+1], w[j+2], w[j+3]
		a0, a1, a2, a3 := in[j][:len(dst)], in[j+1][:len(dst)], in[j+2][:len(dst)], in[j+3][:len(dst)]
		for p := range dst {
			dst[p] += float32(w0*a0[p]) + float32(w1*a1[p]) + float32(w2*a2[p]) + float32(w3*a3[p])
		}
	}
}

func (a activation) apply(row []float32) {
	switch a {
	case sine:
		for i, v := range row {
			row[i] = sin32(v)
		}
	case tanh:
		for i, v := range row {
			v = min(max(v, -3), 3)
			s := float32(v * v)
			row[i] = v * (27 + s) / (27 + float32(9*s)) // Padé, exact at ±3
		}
	case bump:
		for i, v := range row {
			row[i] = 2/(1+float32(v*v)) - 1
		}
	case fold:
		for i, v := range row {
			row[i] = float32(2*abs32(v))/(1+abs32(v)) - 1
		}
	}
}

const sineSize = 4096

var sineTable = func() (table [sineSize + 1]float32) {
	for i := range table {
		table[i] = float32(math.Sin(2 * math.Pi * float64(i) / sineSize))
	}
	return table
}()

// sin32 interpolates in a table. The network keeps its argument small.
func sin32(v float32) float32 {
	v *= sineSize / (2 * math.Pi)
	k := int32(v)
	f := v - float32(k)
	if f < 0 {
		k--
		f++
	}
	k &= sineSize - 1
	a := sineTable[k]
	return a + float32((sineTable[k+1]-a)*f)
}

func abs32(v float32) float32 { return math.Float32frombits(math.Float32bits(v) &^ (1 << 31)) }
