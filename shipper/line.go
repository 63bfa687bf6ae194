package shipper

import (
	"bytes"
	"errors"
	"time"
)

// criLine is a line of a container's log file as the kubelet's Container Runtime Interface has it:
// <time in RFC 3339> <stdout|stderr> <tags> <text>, the first of the tags being P (to be continued) or F (full).
type criLine struct {
	at      time.Time
	stream  string
	partial bool
	text    []byte
}

var errNotCRI = errors.New("not a line of the Container Runtime Interface")

// parseLine takes a line, without its end, apart. text shares memory with line.
func parseLine(line []byte) (criLine, error) {
	stamp, rest, ok := bytes.Cut(line, []byte{' '})
	if !ok || len(stamp) > 40 {
		return criLine{}, errNotCRI
	}
	at, err := time.Parse(time.RFC3339Nano, string(stamp))
	if err != nil || at.Year() < 1970 || at.Year() > 2261 { // what nanoseconds since 1970 can say
		return criLine{}, errNotCRI
	}
	name, rest, ok := bytes.Cut(rest, []byte{' '})
	if !ok {
		return criLine{}, errNotCRI
	}
	parsed := criLine{at: at}
	switch string(name) {
	case "stdout":
		parsed.stream = "stdout"
	case "stderr":
		parsed.stream = "stderr"
	default:
		return criLine{}, errNotCRI
	}
	tags, text, ok := bytes.Cut(rest, []byte{' '})
	if !ok {
		tags, text = rest, nil // an empty line may have lost its last blank
	}
	first, _, _ := bytes.Cut(tags, []byte{':'})
	switch string(first) {
	case "P":
		parsed.partial = true
	case "F":
	default:
		return criLine{}, errNotCRI
	}
	parsed.text = text
	return parsed, nil
}
