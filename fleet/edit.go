package fleet

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// Change is a new value at a path of mapping keys and, in lists, indexes from 0. The last
// is a key. The value is a string, always: it is written in quotes, so that no reader takes
// 1.10 for a number (P5).
type Change struct {
	Path  []string
	Value string
}

// Set changes values in the bytes of a YAML file. Only the values themselves are
// replaced: comments, order, blank lines and the quoting of all else stay. A last key
// that is missing is added beside its siblings.
//
// The result is parsed again and compared with the original; anything but exactly the
// intended paths having changed is an error, and nothing is returned. Values in flow
// style, over several lines or behind anchors are refused: a person should look.
func Set(src []byte, changes ...Change) ([]byte, error) {
	before, err := parse("the file", src)
	if err != nil {
		return nil, err
	}
	out := src
	for _, c := range changes {
		if len(c.Path) == 0 {
			return nil, errors.New("a change needs a path")
		}
		if out, err = set(out, c); err != nil {
			return nil, fmt.Errorf("setting %s: %w", strings.Join(c.Path, "."), err)
		}
	}
	after, err := parse("the edited file", out)
	if err != nil {
		return nil, fmt.Errorf("the edit would break the file: %w", err)
	}
	if err := onlyThese(before, after, changes); err != nil {
		return nil, err
	}
	return out, nil
}

// span is a range of bytes to replace.
type span struct{ from, to int }

func set(src []byte, c Change) ([]byte, error) {
	if !utf8.ValidString(c.Value) {
		return nil, errors.New("the value is not UTF-8 text")
	}
	doc, err := parse("the file", src)
	if err != nil {
		return nil, err
	}
	parentPath, key := c.Path[:len(c.Path)-1], c.Path[len(c.Path)-1]
	parent := doc
	for i := 0; ; i++ {
		if parent.Anchor != "" {
			return nil, fmt.Errorf("line %d has an anchor: what refers to it would change too", parent.Line)
		}
		if i == len(parentPath) {
			break
		}
		k := parentPath[i]
		if parent.Kind != yaml.MappingNode && parent.Kind != yaml.SequenceNode {
			return nil, fmt.Errorf("line %d is no mapping and no list", parent.Line)
		}
		if parent = child(parent, k); parent == nil {
			return nil, fmt.Errorf("there is no key %s: add it by hand first", k)
		}
	}
	if parent.Kind != yaml.MappingNode || parent.Style&yaml.FlowStyle != 0 || len(parent.Content) == 0 {
		return nil, fmt.Errorf("line %d: the mapping is empty, in braces, or none: write it with one key in a line", parent.Line)
	}
	lines := lineStarts(src)
	for i := 0; i+1 < len(parent.Content); i += 2 {
		if parent.Content[i].Value != key || parent.Content[i].Kind != yaml.ScalarNode {
			continue
		}
		where, err := valueSpan(src, lines, parent.Content[i], parent.Content[i+1])
		if err != nil {
			return nil, err
		}
		text := quote(c.Value)
		if where.from == where.to {
			text = " " + text // after the colon of a key without a value
		}
		return slices.Concat(src[:where.from], []byte(text), src[where.to:]), nil
	}
	return insert(src, lines, parent, key, c.Value)
}

// valueSpan finds the bytes of a scalar that stands in one line.
func valueSpan(src []byte, lines []int, key, value *yaml.Node) (span, error) {
	if value.Kind != yaml.ScalarNode {
		return span{}, fmt.Errorf("line %d holds no single value", value.Line)
	}
	if value.Anchor != "" || value.Style&yaml.TaggedStyle != 0 {
		return span{}, fmt.Errorf("line %d: the value has an anchor or a type tag", value.Line)
	}
	if value.Tag == "!!null" && value.Value == "" {
		end, err := scalarEnd(src, lines, key)
		if err != nil {
			return span{}, err
		}
		colon := end
		for colon < len(src) && (src[colon] == ' ' || src[colon] == '\t') {
			colon++
		}
		if colon >= len(src) || src[colon] != ':' {
			return span{}, fmt.Errorf("line %d: no colon after the key", key.Line)
		}
		return span{colon + 1, colon + 1}, nil
	}
	from, err := offset(src, lines, value)
	if err != nil {
		return span{}, err
	}
	to, err := scalarEnd(src, lines, value)
	return span{from, to}, err
}

// scalarEnd is the offset behind a scalar, quotes included.
func scalarEnd(src []byte, lines []int, n *yaml.Node) (int, error) {
	from, err := offset(src, lines, n)
	if err != nil {
		return 0, err
	}
	several := fmt.Errorf("line %d: the value goes over several lines", n.Line)
	switch n.Style &^ yaml.TaggedStyle {
	case 0:
		to := from + len(n.Value)
		if to > len(src) || string(src[from:to]) != n.Value {
			return 0, several
		}
		return to, nil
	case yaml.DoubleQuotedStyle, yaml.SingleQuotedStyle:
		if from >= len(src) {
			return 0, several
		}
		mark := src[from]
		for i := from + 1; i < len(src); i++ {
			switch {
			case src[i] == '\n' || src[i] == '\r':
				return 0, several
			case src[i] == '\\' && mark == '"':
				i++
			case src[i] == mark && mark == '\'' && i+1 < len(src) && src[i+1] == mark:
				i++
			case src[i] == mark:
				return i + 1, nil
			}
		}
	}
	return 0, several
}

// insert adds a key to a block mapping: behind the last sibling whose value ends in its
// own line, or else before the first.
func insert(src []byte, lines []int, parent *yaml.Node, key, value string) ([]byte, error) {
	first, err := offset(src, lines, parent.Content[0])
	if err != nil {
		return nil, err
	}
	indent := src[lines[parent.Content[0].Line-1]:first]
	if len(bytes.Trim(indent, " ")) > 0 {
		return nil, fmt.Errorf("line %d: the mapping begins behind other text", parent.Line)
	}
	at := lines[parent.Content[0].Line-1]
	for i := 0; i+1 < len(parent.Content); i += 2 {
		k, v := parent.Content[i], parent.Content[i+1]
		if v.Kind != yaml.ScalarNode || v.Line != k.Line {
			continue
		}
		if _, err := scalarEnd(src, lines, v); err != nil {
			continue
		}
		at = len(src)
		if k.Line < len(lines) {
			at = lines[k.Line]
		}
	}
	newline := "\n"
	if bytes.Contains(src, []byte("\r\n")) {
		newline = "\r\n"
	}
	line := string(indent) + quoteKey(key) + ": " + quote(value) + newline
	if at == len(src) && len(src) > 0 && src[len(src)-1] != '\n' {
		line = newline + strings.TrimSuffix(line, newline)
	}
	return slices.Concat(src[:at], []byte(line), src[at:]), nil
}

// lineStarts are the offsets of the lines.
func lineStarts(src []byte) []int {
	starts := []int{0}
	for i, b := range src {
		if b == '\n' && i+1 < len(src) {
			starts = append(starts, i+1)
		}
	}
	return starts
}

// offset turns the parser's line and column, which counts characters, into bytes.
func offset(src []byte, lines []int, n *yaml.Node) (int, error) {
	if n.Line < 1 || n.Line > len(lines) {
		return 0, fmt.Errorf("line %d is not in the file", n.Line)
	}
	at := lines[n.Line-1]
	for range n.Column - 1 {
		_, size := utf8.DecodeRune(src[at:])
		if size == 0 {
			return 0, fmt.Errorf("line %d has no column %d", n.Line, n.Column)
		}
		at += size
	}
	return at, nil
}

// quote writes a string as YAML's double-quoted style, of which JSON's is a subset.
func quote(s string) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(s) // a string always encodes
	text := strings.TrimSuffix(b.String(), "\n")
	var out strings.Builder
	for _, r := range text {
		// JSON leaves these as they are; YAML does not take them in a file.
		if r == 0x7f || (r >= 0x80 && r < 0xa0) || r == 0xfeff || r == 0xfffe || r == 0xffff {
			fmt.Fprintf(&out, `\u%04x`, r)
			continue
		}
		out.WriteRune(r)
	}
	return out.String()
}

func quoteKey(key string) string {
	for _, r := range key {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r == '-' || r == '_') {
			return quote(key)
		}
	}
	return key
}

// onlyThese compares two parsed files.
func onlyThese(before, after *yaml.Node, changes []Change) error {
	want := map[string]string{}
	for _, c := range changes {
		want[pathKey(c.Path)] = c.Value
	}
	for p, value := range want {
		node := find(after, splitKey(p)...)
		if node == nil || node.Kind != yaml.ScalarNode || node.Tag != "!!str" || node.Value != value {
			return fmt.Errorf("setting %s: the file would not hold the value afterwards", strings.Join(splitKey(p), "."))
		}
	}
	return same(before, after, nil, want)
}

func pathKey(path []string) string { return strings.Join(path, "\x00") }

func splitKey(key string) []string { return strings.Split(key, "\x00") }

func same(a, b *yaml.Node, path []string, want map[string]string) error {
	if _, ok := want[pathKey(path)]; ok && len(path) > 0 {
		return nil
	}
	changed := fmt.Errorf("the edit would also change %s in line %d", strings.Join(path, "."), a.Line)
	if a.Kind != b.Kind || a.Tag != b.Tag || a.Value != b.Value || a.Anchor != b.Anchor {
		return changed
	}
	switch a.Kind {
	case yaml.MappingNode:
		rest := b.Content
		for i := 0; i+1 < len(a.Content); i += 2 {
			// Added keys are allowed where they are wanted.
			for len(rest) > 1 && rest[0].Value != a.Content[i].Value {
				if _, ok := want[pathKey(append(slices.Clone(path), rest[0].Value))]; !ok {
					return changed
				}
				rest = rest[2:]
			}
			if len(rest) < 2 {
				return changed
			}
			if err := same(a.Content[i], rest[0], nil, nil); err != nil {
				return changed
			}
			if err := same(a.Content[i+1], rest[1], append(slices.Clone(path), rest[0].Value), want); err != nil {
				return err
			}
			rest = rest[2:]
		}
		for ; len(rest) > 1; rest = rest[2:] {
			if _, ok := want[pathKey(append(slices.Clone(path), rest[0].Value))]; !ok {
				return changed
			}
		}
	case yaml.SequenceNode:
		if len(a.Content) != len(b.Content) {
			return changed
		}
		for i := range a.Content {
			if err := same(a.Content[i], b.Content[i], append(slices.Clone(path), fmt.Sprint(i)), want); err != nil {
				return err
			}
		}
	}
	return nil
}
