// Package compactjson reads JSON as Kubernetes API servers write it: without spaces, every key once, and with names that
// need no escape. It goes over a document once, without reflection, and hands out what is asked for.
//
// It is no general reader. Whatever is written in another way makes it give up, be it valid JSON or not: then an exact
// reader (sigs.k8s.io/json) has to decide. So it never reads anything that the exact one would refuse or read as something
// else; FuzzReader holds the two together.
package compactjson

import "bytes"

// Reader is at one place of a document. Its methods read the value there. After it has given up they find nothing, and
// Done tells so; what was handed out before then does not count.
type Reader struct {
	text   []byte
	at     int
	depth  int
	gaveUp bool
}

// Limits above which a document is left to the exact reader. An object's keys are compared with each other.
const (
	maxDepth = 64
	maxKeys  = 48
)

// New returns a Reader of a document. The Reader keeps the text, and what it hands out as bytes is part of it.
func New(text []byte) Reader { return Reader{text: text} }

// Done reports whether the whole document was read, and nothing is behind it but the line's end.
func (r *Reader) Done() bool {
	return !r.gaveUp && (r.at == len(r.text) || r.at == len(r.text)-1 && r.text[r.at] == '\n')
}

// GiveUp leaves the document to the exact reader.
func (r *Reader) GiveUp() { r.gaveUp, r.at = true, len(r.text) }

// Offset is where the Reader is, for From.
func (r *Reader) Offset() int { return r.at }

// From is the text since an offset.
func (r *Reader) From(offset int) []byte { return r.text[min(offset, r.at):r.at] }

// Object calls member with each key of an object, in order; member must read the value with this Reader. null has none.
func (r *Reader) Object(member func(key []byte)) {
	if r.Null() {
		return
	}
	r.open('{')
	var seen keys
	for first := true; r.more('}', first); first = false {
		key := r.plain()
		if !seen.add(key) || !r.take(':') {
			r.GiveUp()
			return
		}
		member(key)
	}
}

// Member reads an object for one string of it; an object without it has the empty one.
func (r *Reader) Member(name string) (value string) {
	r.Object(func(key []byte) {
		if string(key) == name {
			value = r.String()
		} else {
			r.Skip()
		}
	})
	return value
}

// Array calls element for each element of an array, in order; element must read it with this Reader. null has none.
func (r *Reader) Array(element func()) {
	if r.Null() {
		return
	}
	r.open('[')
	for first := true; r.more(']', first); first = false {
		element()
	}
}

// String reads a string without escapes; null is the empty one.
func (r *Reader) String() string {
	if r.Null() {
		return ""
	}
	return string(r.plain())
}

// Bool reads true or false; null is false.
func (r *Reader) Bool() bool {
	if r.peek() == 't' {
		r.literal("true")
		return !r.gaveUp
	}
	if !r.Null() {
		r.literal("false")
	}
	return false
}

// Null reads null, if that is what is there.
func (r *Reader) Null() bool {
	if r.peek() != 'n' {
		return false
	}
	r.literal("null")
	return !r.gaveUp
}

// Skip reads any value.
func (r *Reader) Skip() {
	switch r.peek() {
	case '"':
		r.skipString()
	case '{':
		r.open('{')
		for first := true; r.more('}', first); first = false {
			r.skipString()
			if !r.take(':') {
				r.GiveUp()
			}
			r.Skip()
		}
	case '[':
		r.Array(r.Skip)
	case 't':
		r.literal("true")
	case 'f':
		r.literal("false")
	case 'n':
		r.literal("null")
	default:
		r.skipNumber()
	}
}

func (r *Reader) peek() byte {
	if r.at < len(r.text) {
		return r.text[r.at]
	}
	return 0
}

func (r *Reader) take(c byte) bool {
	if r.at < len(r.text) && r.text[r.at] == c {
		r.at++
		return true
	}
	return false
}

func (r *Reader) open(c byte) {
	if r.depth++; r.depth > maxDepth || !r.take(c) {
		r.GiveUp()
	}
}

// more reports whether a member or an element follows, and reads what is between two of them, or the end.
func (r *Reader) more(end byte, first bool) bool {
	if r.gaveUp {
		return false
	}
	if r.take(end) {
		r.depth--
		return false
	}
	if !first && !r.take(',') {
		r.GiveUp()
	}
	return !r.gaveUp
}

func (r *Reader) literal(word string) {
	if !bytes.HasPrefix(r.text[r.at:], []byte(word)) {
		r.GiveUp()
		return
	}
	r.at += len(word)
}

// plain reads a string of printable ASCII without escapes.
func (r *Reader) plain() []byte {
	if !r.take('"') {
		r.GiveUp()
		return nil
	}
	start := r.at
	for r.at < len(r.text) && plain[r.text[r.at]] {
		r.at++
	}
	text := r.text[start:r.at]
	if !r.take('"') {
		r.GiveUp()
		return nil
	}
	return text
}

// plain are the bytes that stand for themselves, and any other than ASCII's for part of themselves.
var plain = func() (table [256]bool) {
	for c := byte(' '); c <= '~'; c++ {
		table[c] = c != '"' && c != '\\'
	}
	return table
}()

func (r *Reader) skipString() {
	if !r.take('"') {
		r.GiveUp()
	}
	for {
		switch c := r.peek(); {
		case plain[c], c > '~':
			r.at++
		case c == '\\':
			r.skipEscape()
		case c == '"':
			r.at++
			return
		default: // a control character, or the end
			r.GiveUp()
			return
		}
	}
}

func (r *Reader) skipEscape() {
	r.at++
	switch c := r.peek(); c {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		r.at++
	case 'u':
		r.at++
		for range 4 {
			if !hexadecimal(r.peek()) {
				r.GiveUp()
				return
			}
			r.at++
		}
	default:
		r.GiveUp()
	}
}

func hexadecimal(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

// skipNumber reads a number, https://www.rfc-editor.org/rfc/rfc8259#section-6.
func (r *Reader) skipNumber() {
	r.take('-')
	if !r.take('0') {
		r.digits()
	}
	if r.take('.') {
		r.digits()
	}
	if r.take('e') || r.take('E') {
		if !r.take('+') {
			r.take('-')
		}
		r.digits()
	}
}

func (r *Reader) digits() {
	start := r.at
	for '0' <= r.peek() && r.peek() <= '9' {
		r.at++
	}
	if r.at == start {
		r.GiveUp()
	}
}

// keys are those that an object had so far.
type keys struct {
	all [maxKeys][]byte
	n   int
}

// add reports whether the key is new, and there is room for it.
func (k *keys) add(key []byte) bool {
	if k.n == maxKeys {
		return false
	}
	for _, other := range k.all[:k.n] {
		if len(other) == len(key) && bytes.Equal(other, key) {
			return false
		}
	}
	k.all[k.n] = key
	k.n++
	return true
}
