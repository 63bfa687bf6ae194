package scan

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Exception lets a release pass in spite of one advisory, for a reason and for a time.
type Exception struct {
	ID      string `yaml:"id"`
	Package string `yaml:"package"`
	App     string `yaml:"app"` // empty is every app
	Reason  string `yaml:"reason"`
	Expires string `yaml:"expires"` // the last day, UTC: 2026-12-31
}

// Exceptions are those of the file conveyor/exceptions.yaml.
type Exceptions []Exception

const day = "2006-01-02"

// ParseExceptions reads the file strictly: an exception that is misspelt must not turn
// into one that covers more.
func ParseExceptions(src []byte) (Exceptions, error) {
	var file struct {
		Exceptions *Exceptions `yaml:"exceptions"`
	}
	dec := yaml.NewDecoder(strings.NewReader(string(src)))
	dec.KnownFields(true)
	if err := dec.Decode(&file); err != nil {
		return nil, fmt.Errorf("reading the exceptions: %w", err)
	}
	if err := dec.Decode(new(any)); !errors.Is(err, io.EOF) {
		return nil, errors.New("reading the exceptions: there is a second document in the file: keep one")
	}
	if file.Exceptions == nil {
		return nil, errors.New("reading the exceptions: the key exceptions is missing: write exceptions: [] for none")
	}
	seen := map[string]bool{}
	for i, x := range *file.Exceptions {
		if err := x.check(); err != nil {
			return nil, fmt.Errorf("exception %d (%s): %w", i+1, x.ID, err)
		}
		key := x.ID + " " + x.Package + " " + x.App
		if seen[key] {
			return nil, fmt.Errorf("exception %d (%s): it is there twice: keep one", i+1, x.ID)
		}
		seen[key] = true
	}
	return *file.Exceptions, nil
}

func (x Exception) check() error {
	switch {
	case x.ID == "" || x.Package == "":
		return errors.New("id and package are needed")
	case strings.ContainsAny(x.ID+x.Package, "*?"):
		return errors.New("patterns are not taken: name the advisory and the package")
	case strings.TrimSpace(x.Reason) == "":
		return errors.New("a reason is needed: why it does no harm here")
	}
	if _, err := time.Parse(day, x.Expires); err != nil {
		return fmt.Errorf("expires is needed, as a day such as 2026-12-31: %w", err)
	}
	return nil
}

func (x Exception) covers(app string, f Finding) bool {
	return x.ID == f.ID && x.Package == f.Package && (x.App == "" || x.App == app)
}

// over reports whether the exception's last day has passed.
func (x Exception) over(now time.Time) bool {
	last, err := time.Parse(day, x.Expires)
	return err != nil || !now.UTC().Before(last.AddDate(0, 0, 1))
}

// split tells the findings that stop a release from those that an exception covers.
func (xs Exceptions) split(app string, findings []Finding, now time.Time) (stopping []Finding, excepted []Excepted) {
	for _, f := range findings {
		if !f.Severity.stops() {
			continue
		}
		if x, ok := xs.find(app, f, func(x Exception) bool { return !x.over(now) }); ok {
			excepted = append(excepted, Excepted{Finding: f, Reason: x.Reason, Expires: x.Expires})
			continue
		}
		stopping = append(stopping, f)
	}
	return stopping, excepted
}

// Stopping are the findings of an app for which nothing of it may be released.
func (xs Exceptions) Stopping(app string, findings []Finding, now time.Time) []Finding {
	stopping, _ := xs.split(app, findings, now)
	return stopping
}

func (xs Exceptions) find(app string, f Finding, also func(Exception) bool) (Exception, bool) {
	for _, x := range xs {
		if x.covers(app, f) && also(x) {
			return x, true
		}
	}
	return Exception{}, false
}

// expired lists the exceptions that ended and would have covered a finding.
func (xs Exceptions) expired(app string, findings []Finding, now time.Time) []Exception {
	var ended []Exception
	for _, f := range findings {
		if x, ok := xs.find(app, f, func(x Exception) bool { return x.over(now) }); ok {
			ended = append(ended, x)
		}
	}
	return ended
}
