package apng

// filter picks, row by row, the PNG filter that leaves the least behind
// (minimum sum of absolute differences, as section 12.7 of the PNG
// specification suggests). Only Sub, Up and Average compete: generated
// pictures are smooth, and Paeth costs twice the time for a few percent.
type filter struct {
	candidates [3][]byte // filter type byte, then the row
	zero       []byte
}

// Filter types of section 9.2.
const (
	filterSub     = 1
	filterUp      = 2
	filterAverage = 3
)

func newFilter(width int) filter {
	n := width * BytesPerPixel
	f := filter{zero: make([]byte, n)}
	for i := range f.candidates {
		f.candidates[i] = make([]byte, n+1)
		f.candidates[i][0] = byte(i + 1)
	}
	return f
}

// row filters cur given the row above it, nil for the first. The result is
// valid until the next call.
func (f *filter) row(cur, above []byte) []byte {
	if above == nil {
		above = f.zero
	}
	n := len(cur)
	above = above[:n]
	sub, up, avg := f.candidates[filterSub-1][1:][:n], f.candidates[filterUp-1][1:][:n], f.candidates[filterAverage-1][1:][:n]
	var cost [3]int
	const left = BytesPerPixel
	for i := range min(left, n) { // the first pixel has nothing to its left
		sub[i], up[i], avg[i] = cur[i], cur[i]-above[i], cur[i]-above[i]/2
	}
	before := cur[:n-left]
	for j, b := range before {
		i := j + left
		c, a := cur[i], above[i]
		s, u, v := c-b, c-a, c-byte((int(b)+int(a))/2)
		sub[i], up[i], avg[i] = s, u, v
		cost[0] += magnitude(s)
		cost[1] += magnitude(u)
		cost[2] += magnitude(v)
	}
	best := 0
	for k := range cost {
		if cost[k] < cost[best] {
			best = k
		}
	}
	return f.candidates[best]
}

// magnitude reads a difference as signed.
func magnitude(b byte) int {
	d := int(int8(b))
	m := d >> 63
	return (d ^ m) - m
}
