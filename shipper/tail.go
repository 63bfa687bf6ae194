package shipper

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// fileID is a file, whatever its name.
type fileID struct{ Device, Inode uint64 }

// position is how far a file was read: what is before Offset is in chunks.
type position struct {
	fileID
	Path   string
	Offset int64
	// Head is how the file begins. An inode is given to another file when the first is gone, and a line begins with its
	// time.
	Head []byte `json:",omitempty"`
}

const headSize = 32

// file is one that is read.
type file struct {
	position // Path is the name under which it was found first
	handle   *os.File
	rest     []byte // what was read from Offset on and is not a whole line yet
	skipping bool   // in a line that is too long
	last     time.Time
	joiners  map[string]*joiner
	values   map[string]string // container, restart, file: what labels are made of
	rotated  time.Time         // since when another file has its name
	sibling  string            // the name that it was rotated to, once that was seen
	ended    bool              // nothing was left at the last look
}

func identify(info os.FileInfo) fileID {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fileID{}
	}
	return fileID{Device: stat.Dev, Inode: stat.Ino}
}

// tailer finds and reads the files of a pattern.
type tailer struct {
	config    *Config
	files     map[fileID]*file
	positions map[fileID]position // of earlier runs, until the file is opened
	known     map[string]bool     // paths that were read, by earlier runs too
	metrics   *metrics
	buffer    []byte
}

const readSize = 64 << 10

func newTailer(config *Config, positions []position, m *metrics) *tailer {
	t := &tailer{config: config, files: map[fileID]*file{}, positions: map[fileID]position{}, known: map[string]bool{}, metrics: m, buffer: make([]byte, readSize)}
	for _, p := range positions {
		t.positions[p.fileID] = p
		t.known[p.Path] = true
	}
	return t
}

// refresh looks for files that are new and for names that went over to another file.
func (t *tailer) refresh(now time.Time) error {
	paths, err := filepath.Glob(t.config.Tail.Path)
	if err != nil {
		return fmt.Errorf("look for log files: %w", err)
	}
	owners := map[string]fileID{}
	var problems []error
	for _, path := range paths {
		if excluded, _ := filepath.Match(t.config.Tail.Exclude, path); excluded {
			continue
		}
		open := len(t.files)
		id, err := t.open(path, path)
		if err != nil {
			problems = append(problems, unlessGone(err))
			continue
		}
		owners[path] = id
		if len(t.files) > open || t.hasRotated(path, id) {
			problems = append(problems, t.openLeftBehind(path, id))
		}
		t.known[path] = true
	}
	for id, f := range t.files {
		if owners[f.Path] == id {
			f.rotated = time.Time{}
		} else if f.rotated.IsZero() {
			f.rotated = now
		}
	}
	return errors.Join(problems...)
}

// unlessGone is nil for an error that says that a file is not there: names change while they are looked at.
func unlessGone(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// openLeftBehind opens the files that had a path before the newest. The newest is opened first: a rotation after that leaves
// behind a file that is known. As long as such files are open it is done again, since a folder that is listed while names
// change in it may not show them all.
func (t *tailer) openLeftBehind(path string, newest fileID) error {
	var problems []error
	for _, sibling := range t.leftBehind(path, newest) {
		id, err := t.open(sibling, path)
		if err != nil {
			problems = append(problems, unlessGone(err))
			continue
		}
		t.files[id].sibling = sibling
	}
	return errors.Join(problems...)
}

// hasRotated reports whether a file is open that had the path before the newest.
func (t *tailer) hasRotated(path string, newest fileID) bool {
	for id, f := range t.files {
		if f.Path == path && id != newest {
			return true
		}
	}
	return false
}

// leftBehind are the files that were rotated away from a path, from the oldest on that is read, by this process or an
// earlier one. The kubelet appends the time to the name, and compresses all but the newest.
func (t *tailer) leftBehind(path string, newest fileID) []string {
	siblings, _ := filepath.Glob(path + ".*")
	slices.Sort(siblings)
	siblings = slices.DeleteFunc(siblings, func(s string) bool { return strings.HasSuffix(s, ".gz") || strings.HasSuffix(s, ".tmp") })
	for i, sibling := range siblings {
		if t.knows(sibling, newest) {
			return siblings[i:]
		}
	}
	if !t.known[path] && t.config.Tail.FromHead {
		return siblings
	}
	return nil
}

// knows reports whether a file is being read, or was by an earlier process, beside the newest, which may just have been
// rotated.
func (t *tailer) knows(path string, newest fileID) bool {
	info, err := os.Stat(path)
	if err != nil || identify(info) == newest {
		return false
	}
	_, open := t.files[identify(info)]
	_, was := t.positions[identify(info)]
	return open || was
}

// open begins to read a file where an earlier run stopped, or at its head. What is open already stays as it is.
func (t *tailer) open(path, as string) (fileID, error) {
	info, err := os.Stat(path)
	if err != nil {
		return fileID{}, err
	}
	if !info.Mode().IsRegular() {
		return fileID{}, os.ErrNotExist
	}
	if _, open := t.files[identify(info)]; open {
		return identify(info), nil
	}
	handle, err := os.Open(path)
	if err != nil {
		return fileID{}, fmt.Errorf("open a log file: %w", err)
	}
	if info, err = handle.Stat(); err != nil {
		_ = handle.Close()
		return fileID{}, fmt.Errorf("look at a log file: %w", err)
	}
	id := identify(info)
	f := &file{position: position{fileID: id, Path: as}, handle: handle, joiners: map[string]*joiner{}, values: t.values(as)}
	if p, was := t.positions[id]; was && p.Path == as && bytes.Equal(p.Head, head(handle, len(p.Head))) {
		f.Offset = min(p.Offset, info.Size())
		delete(t.positions, id)
	} else if !t.config.Tail.FromHead && len(t.files) == 0 && len(t.known) == 0 {
		f.Offset = info.Size()
	}
	t.files[id] = f
	return id, nil
}

// head is how a file begins, at most size bytes of it.
func head(handle *os.File, size int) []byte {
	text := make([]byte, size)
	n, _ := handle.ReadAt(text, 0)
	return text[:n]
}

// values are what the name of a file says.
func (t *tailer) values(path string) map[string]string {
	values := map[string]string{"file": path}
	re := t.config.File.Regexp
	if re == nil {
		return values
	}
	for i, match := range re.FindStringSubmatch(path) {
		if name := re.SubexpNames()[i]; name != "" {
			values[name] = match
		}
	}
	return values
}

// read takes at most one buffer from each file and reports whether any had something. Files take turns, so that one that
// writes much does not keep others waiting.
func (t *tailer) read(now time.Time, emit func(*file, string, entry)) (some bool, err error) {
	for _, f := range t.inOrder() {
		n, err := f.handle.ReadAt(t.buffer, f.Offset+int64(len(f.rest)))
		if err != nil && !errors.Is(err, io.EOF) {
			return some, fmt.Errorf("read %s: %w", f.Path, err)
		}
		f.ended = n == 0
		if n > 0 {
			some = true
			t.metrics.inputBytes.Add(float64(n))
			t.lines(f, t.buffer[:n], now, emit)
		} else if info, err := f.handle.Stat(); err == nil && info.Size() < f.Offset {
			f.Offset, f.rest, f.skipping = 0, nil, false // somebody made it shorter: it begins anew
		}
		t.flushJoiners(f, now.Add(-t.config.Traces.Flush), false, emit)
	}
	t.close(now)
	return some, nil
}

// inOrder are the files of one name from the oldest on, so that a log's order is kept.
func (t *tailer) inOrder() []*file {
	files := make([]*file, 0, len(t.files))
	for _, f := range t.files {
		files = append(files, f)
	}
	slices.SortFunc(files, func(a, b *file) int {
		if c := strings.Compare(a.Path, b.Path); c != 0 {
			return c
		}
		if a.rotated.IsZero() != b.rotated.IsZero() {
			if b.rotated.IsZero() {
				return -1
			}
			return 1
		}
		if (a.sibling == "") != (b.sibling == "") {
			if b.sibling == "" {
				return -1
			}
			return 1
		}
		return cmp.Or(strings.Compare(a.sibling, b.sibling), a.rotated.Compare(b.rotated))
	})
	return files
}

// lines takes whole lines out of what was read. Offset moves only behind whole lines.
func (t *tailer) lines(f *file, read []byte, now time.Time, emit func(*file, string, entry)) {
	data := append(f.rest, read...)
	for {
		end := bytes.IndexByte(data, '\n')
		if end < 0 {
			break
		}
		if f.skipping {
			f.skipping = false
		} else {
			t.line(f, data[:end], now, emit)
		}
		data = data[end+1:]
		f.Offset += int64(end + 1)
	}
	if len(data) > t.config.Tail.BufferMax {
		if !f.skipping {
			t.metrics.skippedLines.Inc()
		}
		f.skipping = true
		f.Offset += int64(len(data))
		data = nil
	}
	f.rest = bytes.Clone(data)
}

func (t *tailer) line(f *file, line []byte, now time.Time, emit func(*file, string, entry)) {
	t.metrics.inputRecords.Inc()
	parsed, err := parseLine(line)
	if err != nil {
		// Nothing is thrown away. Its time is that of the line before, so that sending it twice is sending the same.
		parsed = criLine{at: f.last, text: line}
		if f.last.IsZero() {
			parsed.at = now
		}
	}
	f.last = parsed.at
	j := f.joiners[parsed.stream]
	if j == nil {
		j = &joiner{}
		for _, name := range t.config.Traces.Parsers {
			j.languages = append(j.languages, languages[name])
		}
		f.joiners[parsed.stream] = j
	}
	j.add(parsed, f.Offset, now, func(e entry) { emit(f, parsed.stream, e) })
}

func (t *tailer) flushJoiners(f *file, before time.Time, all bool, emit func(*file, string, entry)) {
	for stream, j := range f.joiners {
		j.flush(before, all, func(e entry) { emit(f, stream, e) })
	}
}

// finish emits what waits for more, and the last line if it has no end: nothing more will come.
func (t *tailer) finish(now time.Time, emit func(*file, string, entry)) {
	for _, f := range t.inOrder() {
		if len(f.rest) > 0 && !f.skipping {
			rest := f.rest
			t.line(f, rest, now, emit)
			f.Offset, f.rest = f.Offset+int64(len(rest)), nil
		}
		t.flushJoiners(f, now, true, emit)
	}
}

// close lets go of files that were rotated away a while ago and read to their end, the oldest of a name first: what is
// newer than one that is open is never taken for one that was not read (leftBehind).
func (t *tailer) close(now time.Time) {
	kept := map[string]bool{}
	for _, f := range t.inOrder() {
		if _, pending := f.pending(); kept[f.Path] || pending || !f.ended || f.rotated.IsZero() || now.Sub(f.rotated) < t.config.Tail.RotateWait {
			kept[f.Path] = true
			continue
		}
		_ = f.handle.Close()
		delete(t.files, f.fileID)
	}
}

func (t *tailer) closeAll() {
	for _, f := range t.files {
		_ = f.handle.Close()
	}
}

// pending is the first offset that no emitted entry covers.
func (f *file) pending() (offset int64, any bool) {
	for _, j := range f.joiners {
		if o, waits := j.pending(); waits && (!any || o < offset) {
			offset, any = o, true
		}
	}
	return offset, any
}

// state is from where to go on if the process ends now.
func (t *tailer) state() []position {
	state := make([]position, 0, len(t.files))
	for _, f := range t.inOrder() {
		p := f.position
		if offset, waits := f.pending(); waits {
			p.Offset = offset
		}
		p.Head = head(f.handle, int(min(headSize, p.Offset)))
		state = append(state, p)
	}
	return state
}
