package shipper

import (
	"strconv"
	"unicode/utf8"
)

// batch gathers entries as the body of a push request to Loki, in its JSON form:
// {"streams":[{"stream":{…labels},"values":[["nanoseconds","line",{…structured metadata}],…]},…]}.
type batch struct {
	config  *Config
	streams []*stream
	byFile  map[streamKey]*stream
	records int
	size    int
}

type streamKey struct{ path, stream string }

type stream struct {
	labels, metadata string
	values           []byte
}

func newBatch(config *Config) *batch {
	return &batch{config: config, byFile: map[streamKey]*stream{}}
}

func (b *batch) add(f *file, name string, e entry) {
	key := streamKey{f.Path, name}
	s := b.byFile[key]
	if s == nil {
		s = b.stream(f, name)
		b.byFile[key] = s
	}
	before := len(s.values)
	if before > 0 {
		s.values = append(s.values, ',')
	}
	s.values = append(s.values, `["`...)
	s.values = strconv.AppendInt(s.values, e.at.UnixNano(), 10)
	s.values = append(s.values, `",`...)
	s.values = appendQuoted(s.values, e.text)
	if s.metadata != "{}" {
		s.values = append(append(s.values, ','), s.metadata...)
	}
	s.values = append(s.values, ']')
	b.records++
	b.size += len(s.values) - before
}

func (b *batch) stream(f *file, name string) *stream {
	object := func(fields []Field) string {
		text := []byte{'{'}
		for _, field := range fields {
			value := field.Value
			if field.Key == "stream" {
				value = name
			} else if field.Key != "" {
				value = f.values[field.Key]
			}
			if value == "" {
				continue
			}
			if len(text) > 1 {
				text = append(text, ',')
			}
			text = appendQuoted(text, []byte(field.Name))
			text = append(text, ':')
			text = appendQuoted(text, []byte(value))
		}
		return string(append(text, '}'))
	}
	s := &stream{labels: object(b.config.Loki.Labels), metadata: object(b.config.Loki.Metadata)}
	b.streams = append(b.streams, s)
	return s
}

// body is the whole request.
func (b *batch) body() []byte {
	text := make([]byte, 0, b.size+256*len(b.streams)+16)
	text = append(text, `{"streams":[`...)
	for i, s := range b.streams {
		if i > 0 {
			text = append(text, ',')
		}
		text = append(append(text, `{"stream":`...), s.labels...)
		text = append(append(text, `,"values":[`...), s.values...)
		text = append(text, `]}`...)
	}
	return append(text, `]}`...)
}

const hexDigits = "0123456789abcdef"

// appendQuoted appends a JSON string. What is not UTF-8 becomes the replacement character, byte by byte.
func appendQuoted(to, text []byte) []byte {
	to = append(to, '"')
	for i := 0; i < len(text); {
		c := text[i]
		if c >= utf8.RuneSelf {
			r, size := utf8.DecodeRune(text[i:])
			if r == utf8.RuneError && size == 1 {
				to = append(to, `\ufffd`...)
			} else {
				to = append(to, text[i:i+size]...)
			}
			i += size
			continue
		}
		switch {
		case c == '"' || c == '\\':
			to = append(to, '\\', c)
		case c == '\n':
			to = append(to, '\\', 'n')
		case c < ' ' || c == 0x7f:
			to = append(to, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		default:
			to = append(to, c)
		}
		i++
	}
	return append(to, '"')
}
