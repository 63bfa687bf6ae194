package scan

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/omnivision/omnivision/apis/v1alpha1"
)

// Exception lets a finding pass in spite of its severity, for a reason and for a time.
type Exception = v1alpha1.ScanException

// Exceptions are those of the fleet's ReleasePolicy, which admission goes by as well: what is released is
// then what is admitted.
type Exceptions []Exception

// ExceptionsFile is where a GitOps tree has them, under spec.scan.
const ExceptionsFile = "components/policies/manifests/release-policy.yaml"

// ReadExceptions reads a tree's, strictly: an exception that is misspelt must not turn into one that
// covers more. A tree without the file lets nothing pass.
func ReadExceptions(tree fs.FS) (Exceptions, error) {
	src, err := fs.ReadFile(tree, ExceptionsFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the exceptions: %w", err)
	}
	policy, err := v1alpha1.DecodeReleasePolicy(src)
	if err != nil {
		return nil, fmt.Errorf("reading the exceptions of %s: %w", ExceptionsFile, err)
	}
	if policy.Spec.Scan == nil {
		return nil, nil
	}
	return policy.Spec.Scan.Exceptions, nil
}

func covers(x Exception, app string, f Finding) bool {
	return x.ID == f.ID && x.Package == f.Package && (x.App == "" || x.App == app)
}

// over reports whether the exception's last day has passed.
func over(x Exception, now time.Time) bool {
	last, err := time.Parse(time.DateOnly, x.Expires)
	return err != nil || !now.UTC().Before(last.AddDate(0, 0, 1))
}

// split tells the findings that stop a release from those that an exception covers.
func (xs Exceptions) split(app string, findings []Finding, now time.Time) (stopping []Finding, excepted []Excepted) {
	for _, f := range findings {
		if !f.Severity.stops() {
			continue
		}
		if x, ok := xs.find(app, f, func(x Exception) bool { return !over(x, now) }); ok {
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
		if covers(x, app, f) && also(x) {
			return x, true
		}
	}
	return Exception{}, false
}

// expired lists the exceptions that ended and would have covered a finding.
func (xs Exceptions) expired(app string, findings []Finding, now time.Time) []Exception {
	var ended []Exception
	for _, f := range findings {
		if x, ok := xs.find(app, f, func(x Exception) bool { return over(x, now) }); ok {
			ended = append(ended, x)
		}
	}
	return ended
}
