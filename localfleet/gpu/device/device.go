// Package device holds the simulated GPUs of one node: their identity, their health and their Xid logs.
//
// A simulated GPU computes nothing. It has what the outside of a GPU has: a UUID that stays the same as long as the
// node has its name, a model and a memory size, a log of the Xids that were raised on it, and a health that follows
// from that log. All of it outlives the process: a GPU that fell off the bus stays off after a restart, until it is
// reset.
//
// The state directory belongs to one process at a time (a lock file says so):
//
//	lock               held by the process that writes here
//	health.json        when each device was last reset, and what condemned it before its log's oldest event
//	xid/UUID.jsonl     the Xid log, appended to; containers see it read-only
//	xid/UUID.jsonl.1   its previous generation, if it was ever full
package device

import (
	"context"
	"crypto/sha1"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/omnivision/omnivision/internal/filelock"
)

// Bounds and defaults of a Config.
const (
	// MaxCount is the largest number of GPUs in one machine that a cloud sells.
	MaxCount = 16
	// DefaultMaxLogBytes is some 9,000 events a generation.
	DefaultMaxLogBytes = 1 << 20
	// DefaultModel and DefaultMemoryMiB are those of the T4 in the machines that the fleet's GPU nodes are shaped after.
	DefaultModel     = "Tesla T4"
	DefaultMemoryMiB = 15360

	// allocationGrace is how long after Allocate a device counts as used although the kubelet does not list it yet:
	// the container is made, and the log mounted, between the two.
	allocationGrace = 2 * time.Minute
)

// Errors that a caller can tell apart with errors.Is.
var (
	ErrUnknownDevice = errors.New("no such GPU")
	ErrInvalidXid    = errors.New("not an Xid")
	ErrLogFull       = errors.New("the Xid log is full")
)

// Config describes the GPUs of a node.
type Config struct {
	// Dir is where the devices' state is kept.
	Dir string
	// Cluster and Node name the machine: the UUIDs are derived from them and from the index. Cluster may be empty;
	// two clusters with nodes of the same name need it to have different GPUs.
	Cluster, Node string
	// Count is how many GPUs the node has, 1 to MaxCount.
	Count int
	// Model and MemoryMiB are reported; empty and zero mean those of a T4.
	Model     string
	MemoryMiB int
	// Policy says which Xids condemn a device.
	Policy Policy
	// MaxLogBytes bounds one generation of a device's log; zero means DefaultMaxLogBytes.
	MaxLogBytes int64
	// InUse reports whether a container uses the device. Without it, or when it fails, every device counts as used.
	InUse func(ctx context.Context, uuid string) (bool, error)
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	Log *slog.Logger
}

// Device is what can be seen of a simulated GPU at one moment.
type Device struct {
	Index     int
	UUID      string
	Model     string
	MemoryMiB int
	// Healthy is false from an Xid that condemns the device until the next reset; Cause is that Xid.
	Healthy bool
	Cause   *Event
	// Last is the last Xid ever raised, whatever was reset since.
	Last *Event
}

// Set is the GPUs of a node. Its methods may be called from several goroutines.
type Set struct {
	cfg     Config
	release func() // gives the state directory back
	health  string

	mu      sync.Mutex
	gpus    []*gpu
	changed chan struct{}
}

type gpu struct {
	Device
	log         *xidLog
	events      []Event // of both generations, oldest first
	generation  int     // events[generation:] are in the current one
	health      health
	allocatedAt time.Time
}

// health is what of a device's health does not follow from its log.
type health struct {
	// Reset is when the device was last reset: only later Xids count.
	Reset time.Time `json:"reset,omitzero"`
	// Carried is the Xid that condemned the device, kept here before its generation of the log is dropped.
	Carried *Event `json:"carried,omitempty"`
}

// Open takes the state directory and the devices as they were left. It waits for another process to let go of the
// directory until ctx is done.
func Open(ctx context.Context, cfg Config) (_ *Set, err error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	s := &Set{cfg: cfg, health: filepath.Join(cfg.Dir, "health.json"), changed: make(chan struct{})}
	if err := os.MkdirAll(s.LogDir(), 0o755); err != nil {
		return nil, fmt.Errorf("making the directory of the Xid logs: %w", err)
	}
	if s.release, err = acquireLock(ctx, filepath.Join(cfg.Dir, "lock")); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	healths, err := readHealths(s.health)
	if err != nil {
		return nil, err
	}
	for index := range cfg.Count {
		uuid := UUID(cfg.Cluster, cfg.Node, index)
		log, past, err := openXidLog(s.LogPath(uuid))
		if err != nil {
			return nil, err
		}
		if past.malformed > 0 {
			cfg.Log.Warn("skipped lines of the Xid log that are not events; a crash leaves such a line", "file", log.path, "lines", past.malformed)
		}
		g := &gpu{log: log, events: append(past.previous, past.current...), generation: len(past.previous), health: healths[uuid],
			Device: Device{Index: index, UUID: uuid, Model: cfg.Model, MemoryMiB: cfg.MemoryMiB}}
		s.judge(g)
		s.gpus = append(s.gpus, g)
	}
	return s, nil
}

func (c *Config) complete() error {
	if c.Dir == "" || c.Node == "" {
		return errors.New("simulated GPUs need a state directory and the name of their node")
	}
	if c.Count < 1 || c.Count > MaxCount {
		return fmt.Errorf("%d GPUs on node %s: choose 1 to %d", c.Count, c.Node, MaxCount)
	}
	if c.Model == "" {
		c.Model = DefaultModel
	}
	if c.MemoryMiB == 0 {
		c.MemoryMiB = DefaultMemoryMiB
	}
	if c.MaxLogBytes == 0 {
		c.MaxLogBytes = DefaultMaxLogBytes
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Close lets go of the state directory.
func (s *Set) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.gpus {
		g.log.close()
	}
	s.gpus = nil
	if s.release != nil {
		s.release()
		s.release = nil
	}
}

// UUID derives a device's UUID from where it is: the same node has the same GPUs after every restart. The bytes are
// those of a version 5 UUID in a name space of this project's own.
func UUID(cluster, node string, index int) string {
	sum := sha1.Sum(fmt.Appendf(nil, "omnivision.dev/gpu-substitute\x00%s\x00%s\x00%d", cluster, node, index))
	sum[6] = sum[6]&0x0f | 0x50
	sum[8] = sum[8]&0x3f | 0x80
	return fmt.Sprintf("GPU-%x-%x-%x-%x-%x", sum[0:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16])
}

// LogDir is the directory of the devices' Xid logs.
func (s *Set) LogDir() string { return filepath.Join(s.cfg.Dir, "xid") }

// LogPath is a device's Xid log.
func (s *Set) LogPath(uuid string) string { return filepath.Join(s.LogDir(), LogName(uuid)) }

// LogName is the file name of a device's Xid log, the same on the node and in a container.
func LogName(uuid string) string { return uuid + ".jsonl" }

// Devices returns the devices as they are now, by index, and a channel that is closed at the next change.
func (s *Set) Devices() ([]Device, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	devices := make([]Device, len(s.gpus))
	for i, g := range s.gpus {
		devices[i] = g.Device
	}
	return devices, s.changed
}

// Events returns the Xids of a device since a moment, oldest first.
func (s *Set) Events(uuid string, since time.Time) []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	g, err := s.find(uuid)
	if err != nil {
		return nil
	}
	first, _ := slices.BinarySearchFunc(g.events, since, func(e Event, t time.Time) int { return e.Time.Compare(t) })
	return slices.Clone(g.events[first:])
}

// Raise lets a device report an Xid: it is in the log, on disk, when Raise returns. A full log is refused while a
// container uses the device, and set aside for a new generation when none does.
func (s *Set) Raise(ctx context.Context, uuid string, xid int) (Event, error) {
	if xid < 1 || xid > MaxXid {
		return Event{}, fmt.Errorf("%w: %d; choose 1 to %d", ErrInvalidXid, xid, MaxXid)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	g, err := s.find(uuid)
	if err != nil {
		return Event{}, err
	}
	event := Event{Time: s.after(g), UUID: uuid, Xid: xid}
	if !g.log.fits(event, s.cfg.MaxLogBytes) {
		if err := s.startGeneration(ctx, g); err != nil {
			return Event{}, err
		}
	}
	if err := g.log.append(event); err != nil {
		return Event{}, err
	}
	g.events = append(g.events, event)
	s.judge(g)
	s.announce()
	return event, nil
}

// Reset makes a device healthy again, as `nvidia-smi --gpu-reset` or a new machine would. Unlike these it does not
// ask for the device to be idle, so that a rehearsal can end without deleting Pods. The log keeps its events.
func (s *Set) Reset(uuid string) (Device, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g, err := s.find(uuid)
	if err != nil {
		return Device{}, err
	}
	before := g.health
	g.health = health{Reset: s.after(g)}
	if err := s.writeHealths(); err != nil {
		g.health = before
		return Device{}, err
	}
	s.judge(g)
	s.announce()
	return g.Device, nil
}

// Allocated notes that the kubelet gives the device to a container now.
func (s *Set) Allocated(uuid string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	g, err := s.find(uuid)
	if err != nil {
		return err
	}
	g.allocatedAt = s.cfg.Now()
	return nil
}

func (s *Set) find(uuid string) (*gpu, error) {
	for _, g := range s.gpus {
		if g.UUID == uuid {
			return g, nil
		}
	}
	return nil, fmt.Errorf("%w: %s on node %s", ErrUnknownDevice, uuid, s.cfg.Node)
}

// after is the present moment, moved behind everything that happened to the device: health compares the time of
// events with the time of the reset, and a clock that was set back must not confuse the two.
func (s *Set) after(g *gpu) time.Time {
	now := s.cfg.Now().UTC().Round(0)
	last := g.health.Reset
	if g.Last != nil && g.Last.Time.After(last) {
		last = g.Last.Time
	}
	if !now.After(last) {
		now = last.Add(time.Nanosecond)
	}
	return now
}

// judge derives what can be seen of a device from its log and its last reset.
func (s *Set) judge(g *gpu) {
	g.Healthy, g.Cause, g.Last = true, nil, g.health.Carried
	condemn := func(event *Event) {
		if g.Healthy && event.Time.After(g.health.Reset) && s.cfg.Policy.Condemns(event.Xid) {
			g.Healthy, g.Cause = false, event
		}
	}
	if g.health.Carried != nil {
		condemn(g.health.Carried)
	}
	for i := range g.events {
		g.Last = &g.events[i]
		condemn(g.Last)
	}
}

func (s *Set) startGeneration(ctx context.Context, g *gpu) error {
	used, err := true, error(nil)
	if s.cfg.InUse != nil {
		used, err = s.cfg.InUse(ctx, g.UUID)
	}
	if err != nil {
		return fmt.Errorf("%w (%d bytes) and whether a container uses %s is not known (%w): raise the limit of the log or wait for the kubelet",
			ErrLogFull, s.cfg.MaxLogBytes, g.UUID, err)
	}
	if used || s.cfg.Now().Sub(g.allocatedAt) < allocationGrace {
		return fmt.Errorf("%w (%d bytes) and a container uses %s: delete its Pod, wait %s and raise the Xid again",
			ErrLogFull, s.cfg.MaxLogBytes, g.UUID, allocationGrace)
	}
	if g.Cause != nil { // outlives the events that are dropped now or next time
		g.health.Carried = g.Cause
		if err := s.writeHealths(); err != nil {
			return err
		}
	}
	if err := g.log.startGeneration(); err != nil {
		return err
	}
	g.events = slices.Clone(g.events[g.generation:])
	g.generation = len(g.events)
	s.cfg.Log.Info("started a new generation of the Xid log", "gpu", g.UUID, "file", g.log.path)
	return nil
}

func (s *Set) announce() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func acquireLock(ctx context.Context, path string) (release func(), err error) {
	release, err = filelock.Acquire(ctx, path)
	if err != nil && ctx.Err() != nil {
		return nil, fmt.Errorf("waiting for another gpu-substitute to let go of its state directory: %w", err)
	}
	return release, err
}

func readHealths(path string) (map[string]health, error) {
	content, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the health of the devices: %w", err)
	}
	var healths map[string]health
	if err := json.Unmarshal(content, &healths); err != nil {
		return nil, fmt.Errorf("reading the health of the devices: %s is damaged (%w); remove it, and devices that were reset are unhealthy again", path, err)
	}
	return healths, nil
}

// writeHealths replaces the file as a whole: a crash leaves the old or the new one.
func (s *Set) writeHealths() error {
	healths := map[string]health{}
	for _, g := range s.gpus {
		if g.health != (health{}) {
			healths[g.UUID] = g.health
		}
	}
	content, err := json.Marshal(healths)
	if err != nil {
		return fmt.Errorf("encoding the health of the devices: %w", err)
	}
	file, err := os.CreateTemp(filepath.Dir(s.health), ".health-*")
	if err != nil {
		return fmt.Errorf("writing the health of the devices: %w", err)
	}
	defer os.Remove(file.Name())
	_, err = file.Write(content)
	err = errors.Join(err, file.Sync(), file.Close())
	if err == nil {
		err = os.Rename(file.Name(), s.health)
	}
	if err != nil {
		return fmt.Errorf("writing the health of the devices: %w", err)
	}
	return nil
}
