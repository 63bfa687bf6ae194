package diff

import (
	"fmt"
	"slices"
	"strings"
)

// around is how many unchanged lines surround a difference.
const around = 3

// maxEdits bounds the search for the shortest script: beyond it, what differs is shown
// as replaced. Memory grows with its square.
const maxEdits = 1000

// Unified is the difference of two texts as `diff -u` writes it, without the lines that
// name files; empty if there is none.
func Unified(before, after string) string {
	if before == after {
		return ""
	}
	var out strings.Builder
	for _, h := range hunks(script(lines(before), lines(after))) {
		h.write(&out)
	}
	return out.String()
}

// lines splits a text; a last line without its end counts as one.
func lines(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(text, "\n"), "\n")
}

// edit is one line of a diff: ' ', '-' or '+'.
type edit struct {
	op   byte
	text string
}

// script finds the edits that lead from a to b.
func script(a, b []string) []edit {
	head := 0
	for head < len(a) && head < len(b) && a[head] == b[head] {
		head++
	}
	tail := 0
	for tail < len(a)-head && tail < len(b)-head && a[len(a)-1-tail] == b[len(b)-1-tail] {
		tail++
	}
	edits := make([]edit, 0, len(a)+len(b))
	for _, line := range a[:head] {
		edits = append(edits, edit{' ', line})
	}
	edits = append(edits, shortest(a[head:len(a)-tail], b[head:len(b)-tail])...)
	for _, line := range a[len(a)-tail:] {
		edits = append(edits, edit{' ', line})
	}
	return edits
}

// shortest is Myers' greedy algorithm (An O(ND) Difference Algorithm, 1986).
func shortest(a, b []string) []edit {
	limit := min(len(a)+len(b), maxEdits)
	reach := make([]int, 2*limit+2) // furthest x on each diagonal; diagonal k is at k+limit
	var trail [][]int
	for d := 0; d <= limit; d++ {
		trail = append(trail, slices.Clone(reach[limit-d:limit+d+1]))
		for k := -d; k <= d; k += 2 {
			x := 0
			if d > 0 {
				x = step(reach, limit, d, k)
			}
			for y := x - k; x < len(a) && y < len(b) && a[x] == b[y]; y++ {
				x++
			}
			reach[limit+k] = x
			if x >= len(a) && x-k >= len(b) {
				return walkBack(a, b, trail, d)
			}
		}
	}
	return replaced(a, b)
}

// step chooses between a line of b added and a line of a removed.
func step(reach []int, middle, d, k int) int {
	if k == -d || (k != d && reach[middle+k-1] < reach[middle+k+1]) {
		return reach[middle+k+1]
	}
	return reach[middle+k-1] + 1
}

func replaced(a, b []string) []edit {
	var edits []edit
	for _, line := range a {
		edits = append(edits, edit{'-', line})
	}
	for _, line := range b {
		edits = append(edits, edit{'+', line})
	}
	return edits
}

// walkBack reads the way from the end to the start out of what each round knew.
func walkBack(a, b []string, trail [][]int, d int) []edit {
	var edits []edit
	x, y := len(a), len(b)
	for ; d > 0; d-- {
		known := trail[d] // diagonal k is at k+d
		k := x - y
		previous := k - 1
		if k == -d || (k != d && known[k-1+d] < known[k+1+d]) {
			previous = k + 1
		}
		fromX := known[previous+d]
		fromY := fromX - previous
		for x > fromX && y > fromY {
			x, y = x-1, y-1
			edits = append(edits, edit{' ', a[x]})
		}
		if previous > k {
			y--
			edits = append(edits, edit{'+', b[y]})
		} else {
			x--
			edits = append(edits, edit{'-', a[x]})
		}
	}
	for x > 0 {
		x--
		edits = append(edits, edit{' ', a[x]})
	}
	slices.Reverse(edits)
	return edits
}

// hunk is a part of a diff with the lines around it.
type hunk struct {
	before, after int // lines before it in either text
	edits         []edit
}

func hunks(edits []edit) []hunk {
	var found []hunk
	var open *hunk
	quiet := 0 // unchanged lines at the end of the open hunk
	before, after := 0, 0
	for i, e := range edits {
		if e.op != ' ' && open == nil {
			from := max(0, i-around)
			open = &hunk{before: before - (i - from), after: after - (i - from), edits: slices.Clone(edits[from:i])}
		}
		if open != nil {
			open.edits = append(open.edits, e)
			if quiet++; e.op != ' ' {
				quiet = 0
			}
			if quiet > 2*around {
				open.edits = open.edits[:len(open.edits)-quiet+around]
				found, open, quiet = append(found, *open), nil, 0
			}
		}
		if e.op != '+' {
			before++
		}
		if e.op != '-' {
			after++
		}
	}
	if open != nil {
		open.edits = open.edits[:len(open.edits)-max(0, quiet-around)]
		found = append(found, *open)
	}
	return found
}

func (h hunk) write(out *strings.Builder) {
	removed, added := 0, 0
	for _, e := range h.edits {
		if e.op != '+' {
			removed++
		}
		if e.op != '-' {
			added++
		}
	}
	fmt.Fprintf(out, "@@ -%s +%s @@\n", extent(h.before, removed), extent(h.after, added))
	for _, e := range h.edits {
		out.WriteByte(e.op)
		out.WriteString(e.text)
		out.WriteByte('\n')
	}
}

// extent is first line and count, where an empty range names the line before it.
func extent(before, count int) string {
	switch count {
	case 0:
		return fmt.Sprintf("%d,0", before)
	case 1:
		return fmt.Sprint(before + 1)
	}
	return fmt.Sprintf("%d,%d", before+1, count)
}
