package rescan

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/omnivision/omnivision/conveyor/scan"
	"github.com/omnivision/omnivision/conveyor/sign"
	"github.com/omnivision/omnivision/conveyor/verify"
)

// DefaultEvery is how old a statement may become before a new one is made. A month, which is how old
// a scan may be at admission, then has some three weeks in which the nightly run may fail; and as
// the gate looks at no more than 200 things beside an image, one a week lasts for years.
const DefaultEvery = 7 * 24 * time.Hour

// Attestation states beside each image that was found clean that it was, so that the clusters go
// on admitting it. Of one that is vulnerable nothing is stated: what stops it is the age of
// the last statement, which leaves time for a release, or the quarantine, which acts at once.
type Attestation struct {
	Signer *sign.Signer
	// Every is how old the last statement may be; zero is DefaultEvery.
	Every time.Duration
	// Now is the time; nil is time.Now.
	Now func() time.Time
}

// Attested says what became of the statement of a scan.
type Attested string

// What became of it.
const (
	Stated   Attested = "stated"   // now
	Recent   Attested = "recent"   // the last one is of these days, and says the same
	Unstated Attested = "unstated" // it failed; the problem says why
)

// attest states the scan of one image in one cluster.
func (r Rescan) attest(ctx context.Context, d Deployed, result scan.Result, progress func(string)) (Attested, error) {
	repository, err := r.named(d)
	if err != nil {
		return Unstated, err
	}
	recent, err := r.Attest.recent(ctx, repository, result, r.Registry)
	switch {
	case err != nil:
		return Unstated, err
	case recent:
		return Recent, nil
	}
	err = sign.PublishScans(ctx, r.Attest.Signer, repository, result, func(what string) {
		progress(fmt.Sprintf("%s in %s: %s", d.App, d.Cluster, what))
	}, r.Registry...)
	if err != nil {
		return Unstated, fmt.Errorf("stating that %s is clean in %s: %w", d.App, d.Cluster, err)
	}
	return Stated, nil
}

// recent reports whether each image has a statement of these days with the same findings.
func (a Attestation) recent(ctx context.Context, repository name.Repository, result scan.Result, options []remote.Option) (bool, error) {
	for _, image := range result.Images {
		statements, _, err := a.Signer.Policy().Image(ctx, repository.Digest(image.Digest), options...)
		if err != nil {
			return false, err
		}
		last, found, err := verify.FindLastScan(statements)
		if err != nil || !found || !a.young(last.Finished) { // a scan that cannot be read is superseded
			return false, nil
		}
		if same, err := sameFindings(last.Result, image.Report); err != nil || !same {
			return false, err
		}
	}
	return true, nil
}

func (a Attestation) young(finished time.Time) bool {
	now, every := time.Now, DefaultEvery
	if a.Now != nil {
		now = a.Now
	}
	if a.Every != 0 {
		every = a.Every
	}
	return now().Sub(finished) < every
}

// sameFindings compares what two reports say that matters to admission.
func sameFindings(before, now []byte) (bool, error) {
	was, err := scan.Parse(before)
	if err != nil {
		return false, nil // what cannot be read is superseded
	}
	is, err := scan.Parse(now)
	if err != nil {
		return false, err
	}
	return slices.Equal(stopping(was), stopping(is)), nil
}

// stopping names the findings that need an exception.
func stopping(report scan.Report) []string {
	var ids []string
	for _, f := range scan.Exceptions(nil).Stopping("", report.Findings(), time.Time{}) {
		ids = append(ids, strings.Join([]string{f.ID, f.Package, string(f.Severity)}, " "))
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}
