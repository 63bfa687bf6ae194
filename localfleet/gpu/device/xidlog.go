package device

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// Event is one line of a device's Xid log: the contract between the device plugin and the programs that run on the
// GPU, which read it where a program on a real GPU would wait for NVML's Xid events.
type Event struct {
	Time time.Time `json:"time"`
	UUID string    `json:"uuid"`
	Xid  int       `json:"xid"`
}

// previousSuffix names the generation before the current one; only one is kept.
const previousSuffix = ".1"

// maxLine bounds what loading keeps in memory for one line. A line that the log itself wrote is below 200 bytes.
const maxLine = 4096

// xidLog is the append-only file of one device. It is never rewritten: containers hold a bind mount of it, that is of
// its inode, and a reader that remembers its offset must not be lied to.
type xidLog struct {
	path string
	file *os.File
	size int64
}

// history is what a log holds: the events of the previous and of the current generation, and how many lines were not
// events (a crash in the middle of a write leaves such a line).
type history struct {
	previous, current []Event
	malformed         int
}

// openXidLog opens or makes the log and reads its history.
func openXidLog(path string) (*xidLog, history, error) {
	previous, bad, err := readEvents(path + previousSuffix)
	if err != nil {
		return nil, history{}, err
	}
	current, worse, err := readEvents(path)
	if err != nil {
		return nil, history{}, err
	}
	log := &xidLog{path: path}
	if err := log.open(); err != nil {
		return nil, history{}, err
	}
	if err := log.endTornLine(); err != nil {
		log.close()
		return nil, history{}, err
	}
	return log, history{previous: previous, current: current, malformed: bad + worse}, nil
}

func (l *xidLog) open() error {
	// O_APPEND makes a line of one write whole among other writers; 0644 lets a container of any user read it.
	file, err := os.OpenFile(l.path, os.O_APPEND|os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return fmt.Errorf("opening the Xid log: %w", err)
	}
	info, err := file.Stat()
	if err == nil {
		err = file.Chmod(0o644) // whatever the umask was
	}
	if err != nil {
		_ = file.Close()
		return fmt.Errorf("opening the Xid log: %w", err)
	}
	l.file, l.size = file, info.Size()
	return nil
}

// endTornLine ends a last line that a crash cut short, so that the next event starts a line of its own. The torn
// piece stays: readers skip it as they skip any line that is not an event.
func (l *xidLog) endTornLine() error {
	if l.size == 0 {
		return nil
	}
	last := make([]byte, 1)
	if _, err := l.file.ReadAt(last, l.size-1); err != nil {
		return fmt.Errorf("reading the end of the Xid log %s: %w", l.path, err)
	}
	if last[0] == '\n' {
		return nil
	}
	n, err := l.file.Write([]byte{'\n'})
	l.size += int64(n)
	if err != nil {
		return fmt.Errorf("ending the torn last line of the Xid log %s: %w", l.path, err)
	}
	return nil
}

// fits reports whether event can be appended without passing limit.
func (l *xidLog) fits(event Event, limit int64) bool {
	return l.size+int64(len(encodeEvent(event))) <= limit
}

// append writes event as one line with one write, and waits until it is on the disk: the event outlives the machine.
func (l *xidLog) append(event Event) error {
	n, err := l.file.Write(encodeEvent(event))
	l.size += int64(n)
	if err == nil {
		err = l.file.Sync()
	}
	if err != nil {
		if n > 0 {
			// What was written of the line is not an event; keep it from swallowing the next one.
			err = errors.Join(err, l.endTornLine())
		}
		return fmt.Errorf("appending to the Xid log %s: %w", l.path, err)
	}
	return nil
}

// startGeneration sets the full file aside and begins an empty one. Only for a device that no container uses: a
// container keeps seeing the inode that it was started with.
func (l *xidLog) startGeneration() error {
	if err := os.Rename(l.path, l.path+previousSuffix); err != nil {
		return fmt.Errorf("setting the full Xid log aside: %w", err)
	}
	full := l.file
	if err := l.open(); err != nil {
		return err
	}
	return full.Close()
}

func (l *xidLog) close() { _ = l.file.Close() }

func encodeEvent(event Event) []byte {
	line, err := json.Marshal(event)
	if err != nil { // a time outside of years 0 to 9999; the clock cannot say that
		panic(fmt.Sprintf("encoding the Xid event %+v: %v", event, err))
	}
	return append(line, '\n')
}

func readEvents(path string) (events []Event, malformed int, err error) {
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, fmt.Errorf("reading the Xid log: %w", err)
	}
	defer file.Close()
	lines := bufio.NewReaderSize(file, maxLine)
	for {
		line, isPrefix, err := lines.ReadLine()
		if errors.Is(err, io.EOF) {
			return events, malformed, nil
		}
		if err != nil {
			return nil, 0, fmt.Errorf("reading the Xid log %s: %w", path, err)
		}
		for isPrefix { // too long to be an event: skip its rest
			line = nil
			if _, isPrefix, err = lines.ReadLine(); err != nil {
				break
			}
		}
		if event, ok := decodeEvent(line); ok {
			events = append(events, event)
		} else {
			malformed++
		}
	}
}

func decodeEvent(line []byte) (Event, bool) {
	var event Event
	if json.Unmarshal(bytes.TrimSpace(line), &event) != nil {
		return Event{}, false
	}
	return event, event.UUID != "" && event.Xid > 0 && !event.Time.IsZero()
}
