package terminal

import "testing"

func TestLineHasNoControlCharacters(t *testing.T) {
	if got := Line("a\x1b[2J\nb\u202eü"); got != "a [2J b ü" {
		t.Errorf("%q", got)
	}
}
