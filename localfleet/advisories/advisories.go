// Package advisories makes a small vulnerability database for Trivy, from a few
// advisories that were published.
//
// It is a substitute: a machine without the internet cannot download Trivy's own
// database, which knows some hundred thousand vulnerabilities, and a conveyor that is
// rehearsed must still stop at one. Goal: a database in the format of the real one, at
// the place where Trivy keeps it, that finds what the folder published describes.
// Limits: that is all it finds. An image that passes here may be full of holes, so
// nothing that was scanned with it alone belongs in production.
package advisories

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/aquasecurity/trivy-db/pkg/db"
	"github.com/aquasecurity/trivy-db/pkg/metadata"
	"github.com/aquasecurity/trivy-db/pkg/types"
	"github.com/aquasecurity/trivy-db/pkg/vulnsrc/bucket"
	"github.com/aquasecurity/trivy-db/pkg/vulnsrc/vulnerability"
	bolt "go.etcd.io/bbolt"
)

// lifetime is how long a database counts as the newest: Trivy's own lives as long.
const lifetime = 24 * time.Hour

// Importing trivy-db makes the process's default logger print debug messages.
func init() { slog.SetLogLoggerLevel(slog.LevelInfo) }

// oneAtATime guards trivy-db, which keeps the open database in a variable of its package.
var oneAtATime sync.Mutex

// Write writes the database below Trivy's cache directory, over the one that is there.
// Its age counts from now: it says when it was written, and the advisories themselves
// say when they were published. Trivy may read the old one meanwhile.
func Write(ctx context.Context, cacheDir string, now time.Time) error {
	folder, err := fs.Sub(published, "published")
	if err != nil {
		return err
	}
	if err := write(ctx, cacheDir, folder, now.UTC().Truncate(time.Second)); err != nil {
		return fmt.Errorf("writing the vulnerability database below %s: %w", cacheDir, err)
	}
	return nil
}

func write(ctx context.Context, cacheDir string, folder fs.FS, now time.Time) error {
	all, err := read(folder)
	if err != nil {
		return err
	}
	dir := filepath.Join(cacheDir, "db")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	beside, err := os.MkdirTemp(cacheDir, ".db-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(beside) //nolint:errcheck // what is left is out of Trivy's way
	if err := fill(beside, all); err != nil {
		return err
	}
	about := metadata.Metadata{Version: db.SchemaVersion, UpdatedAt: now, NextUpdate: now.Add(lifetime), DownloadedAt: now}
	if err := metadata.NewClient(beside).Update(about); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return replace(beside, dir)
}

// replace moves the metadata last: after a kill in between, the database counts as
// older than it is, and never as younger.
func replace(from, to string) error {
	for _, file := range []func(string) string{db.Path, metadata.Path} {
		if err := os.Chmod(file(from), 0o644); err != nil { // whoever scans may read it
			return err
		}
		if err := os.Rename(file(from), file(to)); err != nil {
			return err
		}
	}
	return nil
}

func fill(dir string, all []advisory) (err error) {
	oneAtATime.Lock()
	defer oneAtATime.Unlock()
	if err := db.Init(dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	return db.Config{}.BatchUpdate(func(tx *bolt.Tx) error {
		for _, a := range all {
			if err := put(tx, a); err != nil {
				return fmt.Errorf("%s: %w", a.ID, err)
			}
		}
		return nil
	})
}

// put writes an advisory as trivy-db's own build leaves it behind: for each package the
// versions, and once what there is to say of the vulnerability.
func put(tx *bolt.Tx, a advisory) error {
	var (
		database = db.Config{}
		source   types.SourceID
	)
	for _, on := range a.Affected {
		b, err := bucketOf(on.Package.Ecosystem)
		if err != nil {
			return err
		}
		versions, err := on.versions()
		if err != nil {
			return err
		}
		versions.VendorIDs = a.others()
		if err := database.PutDataSource(tx, b.name, b.source); err != nil {
			return err
		}
		if err := database.PutAdvisory(tx, []string{b.name, on.Package.Name}, a.vulnerability(), &versions); err != nil {
			return err
		}
		source = b.severity
	}
	level, err := severity(a.DatabaseSpecific.Severity)
	if err != nil {
		return err
	}
	return database.PutVulnerability(tx, a.vulnerability(), types.Vulnerability{
		Title: a.Summary, Severity: level.String(), VendorSeverity: types.VendorSeverity{source: level},
		References: a.urls(), PublishedDate: &a.Published,
	})
}

// versions are the affected and the fixed ones, as the package's ecosystem has them.
func (on affected) versions() (types.Advisory, error) {
	spans, err := on.spans()
	if err != nil {
		return types.Advisory{}, err
	}
	var found types.Advisory
	if strings.HasPrefix(on.Package.Ecosystem, debian) {
		if found.FixedVersion = spans[0].until; found.FixedVersion == "" {
			found.Status = types.StatusAffected
		}
		return found, nil
	}
	for _, s := range spans {
		found.VulnerableVersions = append(found.VulnerableVersions, s.constraint())
		if s.until != "" {
			found.PatchedVersions = append(found.PatchedVersions, s.until)
		}
	}
	return found, nil
}

// place is where the database keeps the advisories of an ecosystem.
type place struct {
	name     string
	source   types.DataSource
	severity types.SourceID // whose word on the severity it is
}

const debian = "Debian:"

// bucketOf knows the ecosystems of our images: Go programs on Debian.
func bucketOf(ecosystem string) (place, error) {
	if release, ok := strings.CutPrefix(ecosystem, debian); ok && release != "" && strings.Trim(release, "0123456789") == "" {
		return place{
			name:     bucket.NewDebian(release).Name(),
			source:   types.DataSource{ID: vulnerability.Debian, Name: "Debian Security Tracker", URL: "https://security-tracker.debian.org"},
			severity: vulnerability.NVD, // Debian itself seldom gives one
		}, nil
	}
	if ecosystem != "Go" {
		return place{}, fmt.Errorf("%q is not known here: Go and Debian:<release> are", ecosystem)
	}
	source := types.DataSource{ID: vulnerability.GHSA, Name: "GitHub Security Advisory Go", URL: "https://github.com/advisories?query=type%3Areviewed+ecosystem%3Ago"}
	b, err := bucket.NewGo(source)
	if err != nil {
		return place{}, err
	}
	return place{name: b.Name(), source: source, severity: vulnerability.GHSA}, nil
}

func severity(name string) (types.Severity, error) {
	if name == "MODERATE" {
		return types.SeverityMedium, nil
	}
	level, err := types.NewSeverity(name)
	if err != nil || level == types.SeverityUnknown || level == types.SeverityMedium {
		return types.SeverityUnknown, fmt.Errorf("%q is none: LOW, MODERATE, HIGH or CRITICAL", name)
	}
	return level, nil
}
