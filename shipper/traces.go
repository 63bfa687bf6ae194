package shipper

import (
	"regexp"
	"time"
)

// language says which lines are one stack trace: one that matches start, and those behind it that match more. One that
// matches last is the trace's end.
type language struct {
	start, more, last *regexp.Regexp
}

// languages are Fluent Bit's built-in multi-line parsers of these names, as far as traces commonly go.
var languages = map[string]language{
	"go": {
		start: regexp.MustCompile(`\bpanic: |http: panic serving|^fatal error: `),
		more:  regexp.MustCompile(`^$|^\s|^\[signal |^goroutine \d+ .*\[[^\]]+\]:$|^(?:[^\s.:]+\.)*[^\s.():]+(?:\.\([^\s]+\))?(?:\.[^\s]+)*\(.*\)$|^created by |^exit status |^panic: `),
	},
	"java": {
		start: regexp.MustCompile(`(?:Exception|Error|Throwable|V8 errors stack trace)(?:[:\r\n]|$)`),
		more:  regexp.MustCompile(`^[\t ]+(?:eval )?at |^[\t ]*(?:Caused by|Suppressed): ?|^[\t ]*\.\.\. \d+ (?:more|common frames omitted)|^[\t ]*nested exception is:|^[\t ]+--- End of|^--- End of`),
	},
	"python": {
		start: regexp.MustCompile(`^Traceback \(most recent call last\):$`),
		more:  regexp.MustCompile(`^[\t ]+`),
		last:  regexp.MustCompile(`^(?:[^\s.():]+\.)*[^\s.():]+(?::|$)`),
	},
}

// maxEntry is the size at which an entry that is being put together is cut, and goes on as another one. It is Fluent
// Bit's multiline_buffer_limit; Loki's max_line_size must be at least this.
const maxEntry = 2 << 20

// entry is what becomes one entry in Loki.
type entry struct {
	at   time.Time
	text []byte
	// offset is where in the file its first line begins.
	offset int64
}

// joiner puts together the lines of one stream of one file: first what the runtime split, then stack traces.
type joiner struct {
	languages []language
	partial   *entry
	trace     *entry
	language  language
	touched   time.Time
}

// pending is the offset of the first line that is not emitted yet.
func (j *joiner) pending() (offset int64, any bool) {
	switch {
	case j.trace != nil:
		return j.trace.offset, true
	case j.partial != nil:
		return j.partial.offset, true
	}
	return 0, false
}

// add takes a line and emits what is complete by it.
func (j *joiner) add(line criLine, offset int64, now time.Time, emit func(entry)) {
	if j.partial == nil {
		j.partial = &entry{at: line.at, offset: offset}
	}
	j.partial.text = append(j.partial.text, line.text...)
	if line.partial && len(j.partial.text) < maxEntry {
		return
	}
	whole := *j.partial
	j.partial = nil
	j.whole(whole, now, emit)
}

func (j *joiner) whole(e entry, now time.Time, emit func(entry)) {
	if j.trace != nil {
		more := j.language.more.Match(e.text)
		last := !more && j.language.last != nil && j.language.last.Match(e.text)
		if (more || last) && len(j.trace.text)+len(e.text) < maxEntry {
			j.trace.text = append(append(j.trace.text, '\n'), e.text...)
			j.touched = now
			if last {
				j.flushTrace(emit)
			}
			return
		}
		j.flushTrace(emit)
	}
	for _, l := range j.languages {
		if len(e.text) < maxEntry/2 && l.start.Match(e.text) {
			j.trace, j.language, j.touched = &e, l, now
			return
		}
	}
	emit(e)
}

func (j *joiner) flushTrace(emit func(entry)) {
	if j.trace != nil {
		e := *j.trace
		j.trace = nil
		emit(e)
	}
}

// flush emits a trace to which nothing was added since; with all, also what the runtime did not end.
func (j *joiner) flush(before time.Time, all bool, emit func(entry)) {
	if all || j.touched.Before(before) {
		j.flushTrace(emit)
	}
	if all && j.partial != nil {
		e := *j.partial
		j.partial = nil
		emit(e)
	}
}
