package build

import (
	"cmp"
	"fmt"
	"regexp"
	"strings"

	"github.com/moby/buildkit/client"
	"github.com/opencontainers/go-digest"

	"github.com/omnivision/omnivision/internal/terminal"
)

// Steps are those of a Dockerfile, for all its platforms.
type Steps struct {
	Cached int      `json:"cached"` // whose result the daemon had, or found in the cache of a registry
	Run    []string `json:"run"`    // the others, as BuildKit names them, in the order in which they began
	// Failed is what did not work and was not needed, such as writing the cache, with why.
	Failed []string `json:"failed,omitempty"`
}

// String counts them, and says what did not work.
func (s Steps) String() string {
	return strings.Join(append([]string{fmt.Sprintf("%d of %d steps from the cache", s.Cached, s.Cached+len(s.Run))}, s.Failed...), "; ")
}

// progress is what a daemon tells of a build.
type progress struct {
	report func(string)

	begun []*step
	byID  map[digest.Digest]*step
}

type step struct {
	name   string
	cached bool
	failed string // why
	said   []byte // the end of what it printed
}

// keptOutput is how many bytes of a step's output are kept, shownLines how many lines of that
// are shown if it fails.
const (
	keptOutput = 8 << 10
	shownLines = 20
)

// follow reports each step as it begins.
func (p *progress) follow(status <-chan *client.SolveStatus) {
	p.byID = map[digest.Digest]*step{}
	for s := range status {
		for _, v := range s.Vertexes {
			p.see(v)
		}
		for _, log := range s.Logs {
			if of := p.byID[log.Vertex]; of != nil {
				of.said = append(of.said, log.Data...)
				of.said = of.said[max(0, len(of.said)-keptOutput):]
			}
		}
	}
}

// see is told of one step several times.
func (p *progress) see(v *client.Vertex) {
	if v.Started == nil {
		return
	}
	known := p.byID[v.Digest]
	if known == nil {
		known = &step{name: v.Name}
		p.byID[v.Digest] = known
		p.begun = append(p.begun, known)
		p.report(v.Name)
	}
	known.cached = known.cached || v.Cached
	known.failed = cmp.Or(v.Error, known.failed)
}

// ofDockerfile are the steps that make something, as BuildKit names them: [linux/arm64 build 2/3] RUN …
// Base images are not made, and [internal] steps are not the Dockerfile's.
var ofDockerfile = regexp.MustCompile(`^\[(?:[^\]]* )?\d+/\d+\] (?:RUN|COPY|ADD|WORKDIR)\b`)

// steps are those of a build that has succeeded.
func (p *progress) steps() Steps {
	all := Steps{Run: []string{}}
	for _, s := range p.begun {
		if s.failed != "" {
			all.Failed = append(all.Failed, terminal.Line(s.name+": "+s.failed))
		}
		switch {
		case !ofDockerfile.MatchString(s.name):
		case s.cached:
			all.Cached++
		default:
			all.Run = append(all.Run, s.name)
		}
	}
	return all
}

// explain adds to an error what the step that failed printed last.
func (p *progress) explain(err error) error {
	for _, s := range p.begun {
		if s.failed == "" || len(s.said) == 0 {
			continue
		}
		lines := strings.Split(strings.TrimRight(string(s.said), "\r\n"), "\n")
		lines = lines[max(0, len(lines)-shownLines):]
		for i, line := range lines {
			lines[i] = "  " + strings.TrimRight(terminal.Line(line), " ")
		}
		return fmt.Errorf("%w\n%s ended with:\n%s", err, terminal.Line(s.name), strings.Join(lines, "\n"))
	}
	return err
}
