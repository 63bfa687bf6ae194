// Package terminal keeps what others wrote from having a hand on the terminal that it is shown on.
package terminal

import (
	"strings"
	"unicode"
)

// Line makes one line of a text: whatever is not printable, line breaks and control characters included, becomes a space.
func Line(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, text)
}
