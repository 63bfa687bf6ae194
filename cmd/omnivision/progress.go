package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// progress shows a story as it goes: one line per running step on a terminal,
// one line per event elsewhere.
type progress struct {
	out      io.Writer
	terminal bool
	quiet    time.Duration // steps that end sooner are not worth a line

	mu      sync.Mutex
	running []string // names, oldest first
	detail  map[string]string
	begun   map[string]time.Time
	drawn   int // lines on the terminal that are drawn over
	said    map[string]time.Time
	stop    chan struct{}
	stopped sync.WaitGroup
}

func newProgress(out io.Writer) *progress {
	p := &progress{
		out: out, terminal: isTerminal(out), detail: map[string]string{}, begun: map[string]time.Time{},
		said: map[string]time.Time{}, stop: make(chan struct{}),
	}
	if p.terminal {
		p.stopped.Go(p.redraw)
	}
	return p
}

func isTerminal(out io.Writer) bool {
	file, ok := out.(*os.File)
	return ok && term.IsTerminal(int(file.Fd())) //nolint:gosec // descriptors are small
}

func (p *progress) redraw() {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-tick.C:
			p.mu.Lock()
			p.draw()
			p.mu.Unlock()
		}
	}
}

func (p *progress) close() {
	close(p.stop)
	p.stopped.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
}

// Started implements story.Watcher.
func (p *progress) Started(step string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running = append(p.running, step)
	p.begun[step] = time.Now()
	p.draw()
}

// Progress implements story.Watcher. Off a terminal a step speaks at most every
// five seconds.
func (p *progress) Progress(step, detail string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.detail[step] = detail
	if p.terminal {
		return
	}
	if time.Since(p.said[step]) > 5*time.Second {
		p.said[step] = time.Now()
		fmt.Fprintf(p.out, "     … %s: %s\n", step, detail)
	}
}

// Ended implements story.Watcher.
func (p *progress) Ended(step string, took time.Duration, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, name := range p.running {
		if name == step {
			p.running = append(p.running[:i], p.running[i+1:]...)
			break
		}
	}
	p.erase()
	if err == nil && took < p.quiet {
		return
	}
	mark := "ok  "
	if err != nil {
		mark = "FAIL"
	}
	fmt.Fprintf(p.out, "%s  %s  %.1f s\n", mark, step, took.Seconds())
	p.draw()
}

func (p *progress) draw() {
	if !p.terminal {
		return
	}
	p.erase()
	for _, step := range p.running {
		line := fmt.Sprintf("  …   %s  %.0f s  %s", step, time.Since(p.begun[step]).Seconds(), p.detail[step])
		line, _, _ = strings.Cut(line, "\n")
		if width := p.width(); len(line) > width {
			line = line[:width]
		}
		fmt.Fprintln(p.out, line)
		p.drawn++
	}
}

func (p *progress) width() int {
	if file, ok := p.out.(*os.File); ok {
		if width, _, err := term.GetSize(int(file.Fd())); err == nil && width > 1 { //nolint:gosec // descriptors are small
			return width - 1
		}
	}
	return 79
}

func (p *progress) erase() {
	if p.terminal && p.drawn > 0 {
		fmt.Fprintf(p.out, "\033[%dA\033[J", p.drawn)
	}
	p.drawn = 0
}
