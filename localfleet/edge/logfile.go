package edge

import (
	"fmt"
	"os"
	"sync"
)

// maxLogSize bounds each log file; with the one before it, a log takes at most twice as much.
const maxLogSize = 8 << 20

// logFile is a log of bounded size. When it is full it becomes PATH.1 and begins anew.
type logFile struct {
	path string
	max  int64

	mu   sync.Mutex
	file *os.File
	size int64
}

func openLog(path string, limit int64) (*logFile, error) {
	l := &logFile{path: path, max: limit}
	if err := l.open(); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *logFile) open() error {
	file, err := os.OpenFile(l.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return fmt.Errorf("opening the log: %w", err)
	}
	info, err := file.Stat()
	if err != nil {
		_ = file.Close()
		return fmt.Errorf("opening the log: %w", err)
	}
	l.file, l.size = file, info.Size()
	return nil
}

// Write implements io.Writer. One call is one line, and is never split between two files.
func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size > 0 && l.size+int64(len(p)) > l.max {
		if err := l.rotate(); err != nil {
			return 0, err
		}
	}
	n, err := l.file.Write(p)
	l.size += int64(n)
	return n, err
}

func (l *logFile) rotate() error {
	if err := os.Rename(l.path, l.path+".1"); err != nil {
		// Bounded before complete: without a second file the first one starts over.
		if err := l.file.Truncate(0); err != nil {
			return err
		}
		l.size = 0
		return nil
	}
	_ = l.file.Close() // whatever it says, the next lines go elsewhere
	return l.open()
}

// Close ends the log.
func (l *logFile) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.file.Close()
}
