package gpu

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// XidLogVariable names the directory of XidLog's files. Only simulated GPUs
// come with it.
const XidLogVariable = "OMNIVISION_GPU_XID_LOG"

// maxXid bounds the label of a metric: a broken writer must not be able to
// make a million series.
const maxXid = 999

// maxLine bounds the memory that a writer without line breaks can take.
const maxLine = 4 << 10

const defaultPoll = 500 * time.Millisecond

// XidLog is the Driver of simulated GPUs: their device plugin appends one line
// of JSON an event to DIR/UUID.jsonl. A file may not exist yet, and its last
// line may be half written. Files are only ever appended to.
type XidLog struct {
	Dir     string
	Devices []string
	// Since is when the worker started; events before it are its predecessor's.
	Since time.Time
	// Poll is how often the files are looked at; 0 means twice a second. It is
	// polling, not inotify, because it costs nothing at this rate and works on
	// every kind of mount.
	Poll time.Duration
	// Report hears of lines and files that could not be read. It must not block.
	Report func(err error)
}

// Watch implements Driver.
func (l XidLog) Watch(ctx context.Context, emit func(Event)) error {
	info, err := os.Stat(l.Dir)
	if err == nil && !info.IsDir() {
		err = errors.New("it is not a directory")
	}
	if err != nil {
		return fmt.Errorf("reading Xid events from %s (%s): %w; the device plugin mounts it with the GPU", l.Dir, XidLogVariable, err)
	}
	tails := make([]*tail, len(l.Devices))
	for i, uuid := range l.Devices {
		tails[i] = &tail{path: filepath.Join(l.Dir, uuid+".jsonl"), uuid: uuid, since: l.Since, emit: emit, report: l.Report}
	}
	poll := l.Poll
	if poll <= 0 {
		poll = defaultPoll
	}
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	for {
		for _, t := range tails {
			t.read()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// tail follows one file.
type tail struct {
	path, uuid string
	since      time.Time
	emit       func(Event)
	report     func(error)

	offset   int64
	partial  []byte // the beginning of a line whose end is not written yet
	skipping bool   // inside a line that is too long
	lastErr  string // so that a lasting error is reported once
}

func (t *tail) read() {
	err := t.readNew()
	if errors.Is(err, fs.ErrNotExist) {
		err = nil // no event so far
	}
	if err == nil {
		t.lastErr = ""
		return
	}
	if text := err.Error(); text != t.lastErr {
		t.lastErr = text
		t.complain(fmt.Errorf("following %s: %w", t.path, err))
	}
}

func (t *tail) readNew() error {
	f, err := os.Open(t.path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() < t.offset {
		// Against the contract. Where the events went cannot be known; going on
		// at the new end counts none of them twice.
		was := t.offset
		t.offset, t.partial, t.skipping = info.Size(), nil, false
		return fmt.Errorf("the file shrank from %d to %d bytes, but it is only ever to be appended to; events may be lost", was, info.Size())
	}
	if _, err := f.Seek(t.offset, io.SeekStart); err != nil {
		return err
	}
	buf := make([]byte, 16<<10)
	for {
		n, err := f.Read(buf)
		t.offset += int64(n)
		t.take(buf[:n])
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// take consumes bytes that were appended and emits the events of the lines
// that they complete.
func (t *tail) take(data []byte) {
	for len(data) > 0 {
		end := bytes.IndexByte(data, '\n')
		if end < 0 {
			if t.partial = append(t.partial, data...); len(t.partial) > maxLine {
				t.partial, t.skipping = nil, true
			}
			return
		}
		line := append(t.partial, data[:end]...)
		tooLong := t.skipping || len(line) > maxLine
		t.partial, t.skipping, data = nil, false, data[end+1:]
		if tooLong {
			t.complain(fmt.Errorf("%s: a line is longer than %d bytes", t.path, maxLine))
			continue
		}
		t.line(line)
	}
}

func (t *tail) line(line []byte) {
	if len(bytes.TrimSpace(line)) == 0 {
		return
	}
	event, err := ParseXid(line)
	if err == nil && event.UUID != t.uuid {
		err = fmt.Errorf("the event is of device %s", event.UUID)
	}
	if err != nil {
		t.complain(fmt.Errorf("%s: skipping line %q: %w", t.path, line, err))
		return
	}
	if !event.Time.Before(t.since) {
		t.emit(event)
	}
}

func (t *tail) complain(err error) {
	if t.report != nil {
		t.report(err)
	}
}

// ParseXid reads one line of the log.
func ParseXid(line []byte) (Event, error) {
	var raw struct {
		Time *time.Time `json:"time"`
		UUID string     `json:"uuid"`
		Xid  int        `json:"xid"`
	}
	if err := json.Unmarshal(line, &raw); err != nil {
		return Event{}, fmt.Errorf("it is not an Xid event: %w", err)
	}
	switch {
	case raw.Time == nil || raw.Time.IsZero():
		return Event{}, errors.New("it has no time")
	case !devicePattern.MatchString(raw.UUID):
		return Event{}, fmt.Errorf("%q is not the name of a device", raw.UUID)
	case raw.Xid < 1 || raw.Xid > maxXid:
		return Event{}, fmt.Errorf("xid %d is not within 1 and %d", raw.Xid, maxXid)
	}
	return Event{Time: *raw.Time, UUID: raw.UUID, Xid: raw.Xid}, nil
}
