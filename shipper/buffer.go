package shipper

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// chunkFolder is the folder of the chunks below storage.path: a real Fluent Bit's are beside it, in another format.
const chunkFolder = "shipper"

// header is the first line of a chunk, and the whole of the position database.
type header struct {
	Sequence  uint64     `json:"sequence"`
	Records   int        `json:"records"`
	Positions []position `json:"positions"`
}

// chunk is a file of entries that wait for delivery.
type chunk struct {
	sequence uint64
	records  int
	size     int64
}

// buffer is the queue of chunks on disk, the oldest first. When it outgrows its limit the oldest are dropped and counted.
type buffer struct {
	dir, db string
	limit   int64
	metrics *metrics

	mu     sync.Mutex
	chunks []chunk
	size   int64
	next   uint64
	inHand uint64 // the chunk that is being delivered
	added  chan struct{}
}

// openBuffer finds what an earlier process left, and the positions up to which files are in the buffer or delivered.
func openBuffer(config *Config, m *metrics) (*buffer, []position, error) {
	if err := config.prepare(); err != nil {
		return nil, nil, err
	}
	b := &buffer{dir: filepath.Join(config.Service.StoragePath, chunkFolder), db: config.Tail.DB + ".json", limit: config.Loki.Limit, metrics: m, next: 1, added: make(chan struct{}, 1)}
	latest, err := readHeader(b.db)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, nil, fmt.Errorf("read the position database %s: %w; remove it to read all files from their heads", b.db, err)
	}
	entries, err := os.ReadDir(b.dir)
	if err != nil {
		return nil, nil, fmt.Errorf("read the buffer: %w", err)
	}
	for _, e := range entries {
		sequence, err := strconv.ParseUint(strings.TrimSuffix(e.Name(), ".chunk"), 10, 64)
		info, statErr := e.Info()
		path := filepath.Join(b.dir, e.Name())
		if err != nil || statErr != nil || !strings.HasSuffix(e.Name(), ".chunk") {
			_ = os.Remove(path) // half written when the process died; its lines are read again
			continue
		}
		h, err := readHeader(path)
		if err != nil || h.Sequence != sequence {
			_ = os.Remove(path)
			m.dropped.Inc()
			continue
		}
		if h.Sequence > latest.Sequence {
			latest = h
		}
		b.chunks = append(b.chunks, chunk{sequence, h.Records, info.Size()})
		b.size += info.Size()
	}
	slices.SortFunc(b.chunks, func(x, y chunk) int {
		if x.sequence < y.sequence {
			return -1
		}
		return 1
	})
	b.next = latest.Sequence + 1
	b.gauge()
	return b, latest.Positions, nil
}

func readHeader(path string) (h header, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return h, err
	}
	line, _, _ := bytes.Cut(text, []byte{'\n'})
	return h, json.Unmarshal(line, &h)
}

func (b *buffer) path(sequence uint64) string {
	return filepath.Join(b.dir, fmt.Sprintf("%020d.chunk", sequence))
}

// add makes a chunk of a push request's body, and notes the positions behind it.
func (b *buffer) add(body []byte, records int, positions []position) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	h := header{Sequence: b.next, Records: records, Positions: positions}
	line, err := json.Marshal(h)
	if err != nil {
		return fmt.Errorf("write a chunk: %w", err)
	}
	line = append(line, '\n')
	if records > 0 {
		if err := replace(b.path(b.next), line, body); err != nil {
			return fmt.Errorf("write a chunk: %w", err)
		}
		size := int64(len(line) + len(body))
		b.chunks = append(b.chunks, chunk{b.next, records, size})
		b.size += size
	}
	b.next++
	b.drop()
	b.gauge()
	select {
	case b.added <- struct{}{}:
	default:
	}
	// The chunk has the positions, too. From here on it may be delivered and deleted.
	if err := replace(b.db, line); err != nil {
		return fmt.Errorf("write the position database: %w", err)
	}
	return nil
}

// replace writes a file as a whole, or not at all.
func replace(path string, parts ...[]byte) error {
	temporary := path + ".tmp"
	f, err := os.OpenFile(temporary, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	for _, part := range parts {
		if _, err := f.Write(part); err != nil {
			_ = f.Close()
			_ = os.Remove(temporary)
			return err
		}
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}

// drop takes the oldest away until the limit is kept. The chunk in the deliverer's hand is left to it.
func (b *buffer) drop() {
	for b.size > b.limit {
		i := slices.IndexFunc(b.chunks, func(c chunk) bool { return c.sequence != b.inHand })
		if i < 0 || len(b.chunks) == 1 {
			return
		}
		b.metrics.dropped.Add(float64(b.chunks[i].records))
		b.removeAt(i)
	}
}

func (b *buffer) removeAt(i int) {
	_ = os.Remove(b.path(b.chunks[i].sequence))
	b.size -= b.chunks[i].size
	b.chunks = slices.Delete(b.chunks, i, i+1)
}

// oldest is the next chunk to deliver, without its header.
func (b *buffer) oldest() (c chunk, body []byte, any bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.chunks) > 0 {
		c = b.chunks[0]
		text, err := os.ReadFile(b.path(c.sequence))
		if _, after, ok := bytes.Cut(text, []byte{'\n'}); err == nil && ok {
			b.inHand = c.sequence
			return c, after, true
		}
		b.metrics.dropped.Add(float64(c.records)) // somebody took it away
		b.removeAt(0)
		b.gauge()
	}
	return chunk{}, nil, false
}

// done takes a chunk away that was delivered or given up.
func (b *buffer) done(c chunk) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.inHand = 0
	if i := slices.Index(b.chunks, c); i >= 0 {
		b.removeAt(i)
	}
	b.gauge()
}

func (b *buffer) empty() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.chunks) == 0
}

func (b *buffer) gauge() {
	b.metrics.chunks.Set(float64(len(b.chunks)))
	b.metrics.bufferBytes.Set(float64(b.size))
}
