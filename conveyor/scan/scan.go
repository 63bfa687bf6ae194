// Package scan looks for known vulnerabilities in an image that was pushed, by Trivy's
// own program, and decides whether the release may go on.
//
// Each platform's image is scanned by its digest: what is looked at is what will run
// (P36). HIGH and CRITICAL findings stop the belt unless a reviewed exception covers
// them. It fails closed: a database that is missing or stale, a report that is not
// understood, or an image in which nothing was recognised is no proof of health (P37).
//
// Trivy runs without a shell, in an empty directory, without the caller's TRIVY_
// variables and the modules of the user's home, so that no ignore file, setting or
// extension that happens to lie about decides. It keeps nothing between scans but its
// database: what it found in a layer before is not believed, and two scans at once do
// not wait for each other.
package scan

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/omnivision/omnivision/internal/tooltime"
)

// DefaultMaxAge is how old the database may be. It is published every six hours.
const DefaultMaxAge = 48 * time.Hour

// Scanner runs Trivy.
type Scanner struct {
	Program  string // path of trivy
	CacheDir string // where it keeps its database
	// Offline uses the database that is there and never asks for a newer one.
	Offline bool
	// Insecure speaks HTTP to the registry.
	Insecure bool
	// Database is the repository that the database is pulled from; empty is Trivy's own.
	Database   string
	MaxAge     time.Duration // of the database; zero is DefaultMaxAge
	Exceptions Exceptions
	Timeout    time.Duration // of one call of the program; zero is ten minutes
	// Credentials are those of registries that Docker's configuration does not know.
	Credentials Credentials

	now func() time.Time // for tests; nil is time.Now
}

// Target is one image of a release.
type Target struct {
	Platform  string
	Reference string // with a digest
}

// Result is the scan of a release. Reports and SBOMs are kept as files: attestations
// are made of them.
type Result struct {
	Scanner  string    `json:"scanner"` // trivy and its version
	Database Database  `json:"database"`
	Scanned  time.Time `json:"scanned"`
	Images   []Image   `json:"images"`
	// Counts are all findings by severity, each counted once over the platforms.
	Counts Counts `json:"counts"`
	// Excepted are the findings that would have stopped the belt but for an exception.
	Excepted []Excepted `json:"excepted,omitempty"`
}

// Image is the scan of one platform's image.
type Image struct {
	Platform string          `json:"platform"`
	Digest   string          `json:"digest"`
	Packages int             `json:"packages"` // that Trivy recognised
	Report   json.RawMessage `json:"report"`
	SBOM     json.RawMessage `json:"sbom"` // CycloneDX
}

// Database is the vulnerability database of a scan.
type Database struct {
	Version    int       `json:"version"`
	UpdatedAt  time.Time `json:"updatedAt"`
	NextUpdate time.Time `json:"nextUpdate"`
}

// Excepted is a finding with the exception that covers it.
type Excepted struct {
	Finding
	Reason  string `json:"reason"`
	Expires string `json:"expires"`
}

// ErrStale says that the database cannot be relied on.
var ErrStale = errors.New("the vulnerability database is too old")

// Scan is the story: find out what the scanner knows, look at each image, decide.
func (s Scanner) Scan(ctx context.Context, app string, targets []Target, report func(string)) (Result, error) {
	if len(targets) == 0 {
		return Result{}, errors.New("there is no image to scan")
	}
	var (
		result   = Result{Scanned: s.time().UTC().Truncate(time.Second)}
		findings []Finding
	)
	if s.Offline { // a database that is not there, or stale, stays so
		if err := s.learn(ctx, &result); err != nil {
			return Result{}, err
		}
	}
	for _, target := range targets {
		report(target.Platform)
		image, found, err := s.image(ctx, target)
		if err != nil {
			return Result{}, fmt.Errorf("scanning %s: %w", target.Reference, err)
		}
		result.Images = append(result.Images, image)
		findings = append(findings, found...)
	}
	if !s.Offline { // asked afterwards: the first scan may have brought a newer one
		if err := s.learn(ctx, &result); err != nil {
			return Result{}, err
		}
	}
	findings = once(findings)
	result.Counts = count(findings)
	stopping, excepted := s.Exceptions.split(app, findings, s.time())
	result.Excepted = excepted
	if len(stopping) > 0 {
		return result, &VulnerableError{Findings: stopping, Expired: s.Exceptions.expired(app, stopping, s.time())}
	}
	return result, nil
}

// learn asks for the scanner and its database, and refuses a stale one.
func (s Scanner) learn(ctx context.Context, result *Result) (err error) {
	if result.Scanner, result.Database, err = s.version(ctx); err != nil {
		return err
	}
	return s.Fresh(result.Database)
}

// Tally says how many findings of each severity there are.
func (r Result) Tally() string { return r.Counts.String() }

// Fresh reports ErrStale if a database is too old to be relied on.
func (s Scanner) Fresh(db Database) error {
	limit := s.MaxAge
	if limit == 0 {
		limit = DefaultMaxAge
	}
	if db.UpdatedAt.IsZero() {
		return fmt.Errorf("%w: it does not say when it was made; remove %s and let Trivy download it", ErrStale, s.CacheDir)
	}
	if age := s.time().Sub(db.UpdatedAt); age > limit {
		return fmt.Errorf("%w: it is of %s, %s ago, and may be %s old; let Trivy download a newer one", ErrStale, db.UpdatedAt.Format(time.RFC3339), age.Round(time.Hour), limit)
	}
	return nil
}

// Recheck decides anew about an earlier scan: its database may have become stale
// meanwhile, and an exception may have ended.
func (s Scanner) Recheck(app string, have Result) error {
	if err := s.Fresh(have.Database); err != nil {
		return err
	}
	var findings []Finding
	for _, image := range have.Images {
		parsed, err := Parse(image.Report)
		if err != nil {
			return err
		}
		findings = append(findings, parsed.Findings()...)
	}
	if stopping, _ := s.Exceptions.split(app, once(findings), s.time()); len(stopping) > 0 {
		return &VulnerableError{Findings: stopping, Expired: s.Exceptions.expired(app, stopping, s.time())}
	}
	return nil
}

func (s Scanner) time() time.Time {
	if s.now == nil {
		return time.Now()
	}
	return s.now()
}

// image scans one image. Reports are written to files: what Trivy prints is for people.
func (s Scanner) image(ctx context.Context, target Target) (Image, []Finding, error) {
	_, digest, ok := strings.Cut(target.Reference, "@")
	if !ok || !strings.HasPrefix(digest, "sha256:") {
		return Image{}, nil, errors.New("only a digest is scanned: a tag may name another image when it is deployed")
	}
	dir, err := os.MkdirTemp("", "omnivision-scan-")
	if err != nil {
		return Image{}, nil, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // below the system's temporary directory
	if err := s.lend(ctx, dir, target.Reference); err != nil {
		return Image{}, nil, err
	}
	reportFile, sbomFile := filepath.Join(dir, "report.json"), filepath.Join(dir, "sbom.json")
	args, err := s.imageArgs(target, dir, reportFile)
	if err != nil {
		return Image{}, nil, err
	}
	if _, err := s.run(ctx, dir, args...); err != nil {
		return Image{}, nil, err
	}
	raw, err := readLimited(reportFile)
	if err != nil {
		return Image{}, nil, err
	}
	parsed, err := Parse(raw)
	if err != nil {
		return Image{}, nil, err
	}
	if err := parsed.known(); err != nil {
		return Image{}, nil, err
	}
	if _, err := s.run(ctx, dir, "convert", "--format", "cyclonedx", "--output", sbomFile, reportFile); err != nil {
		return Image{}, nil, fmt.Errorf("making the SBOM: %w", err)
	}
	sbom, err := readLimited(sbomFile)
	if err == nil && !json.Valid(sbom) {
		err = errors.New("it is no JSON")
	}
	if err != nil {
		return Image{}, nil, fmt.Errorf("reading the SBOM: %w", err)
	}
	return Image{Platform: target.Platform, Digest: digest, Packages: parsed.Packages(), Report: raw, SBOM: sbom}, parsed.Findings(), nil
}

func (s Scanner) imageArgs(target Target, dir, out string) ([]string, error) {
	cache, err := filepath.Abs(s.CacheDir) // Trivy runs in another directory
	if err != nil {
		return nil, err
	}
	args := []string{
		"image", "--cache-dir", cache, "--cache-backend", "memory", "--module-dir", filepath.Join(dir, "none"),
		"--image-src", "remote", "--scanners", "vuln", "--list-all-pkgs",
		"--format", "json", "--output", out, "--exit-code", "0", "--no-progress", "--disable-telemetry", "--skip-version-check",
	}
	if s.Offline {
		args = append(args, "--skip-db-update", "--skip-java-db-update", "--offline-scan")
	}
	if s.Database != "" {
		args = append(args, "--db-repository", s.Database)
	}
	if s.Insecure {
		args = append(args, "--insecure")
	}
	return append(args, "--", target.Reference), nil
}

// version asks for the program's version and its database.
func (s Scanner) version(ctx context.Context) (string, Database, error) {
	dir, err := os.MkdirTemp("", "omnivision-scan-")
	if err != nil {
		return "", Database{}, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // below the system's temporary directory
	cache, err := filepath.Abs(s.CacheDir)
	if err != nil {
		return "", Database{}, err
	}
	out, err := s.run(ctx, dir, "version", "--format", "json", "--cache-dir", cache)
	if err != nil {
		return "", Database{}, fmt.Errorf("asking Trivy for its database: %w", err)
	}
	var answer struct {
		Version         string
		VulnerabilityDB *Database
	}
	if err := json.Unmarshal(out, &answer); err != nil {
		return "", Database{}, fmt.Errorf("reading what Trivy says of its database: %w", err)
	}
	if answer.VulnerabilityDB == nil {
		return "", Database{}, fmt.Errorf("%w: there is none in %s; let Trivy download one", ErrStale, s.CacheDir)
	}
	return "trivy " + answer.Version, *answer.VulnerabilityDB, nil
}

// run runs Trivy in a directory and returns what it printed.
func (s Scanner) run(ctx context.Context, dir string, args ...string) ([]byte, error) {
	timeout := s.Timeout
	if timeout == 0 {
		timeout = 10 * time.Minute
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not done within %s", timeout))
	defer cancel()
	program, err := exec.LookPath(s.Program)
	if err == nil {
		program, err = filepath.Abs(program)
	}
	if err != nil {
		return nil, fmt.Errorf("looking for Trivy's program: %w", err)
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.WaitDelay = dir, 5*time.Second
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "TRIVY_") && !strings.HasPrefix(v, "TRIVY_USERNAME=") && !strings.HasPrefix(v, "TRIVY_PASSWORD=")
	})
	cmd.Env = append(cmd.Env, lent(dir)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	waited := tooltime.Begin(ctx, "Trivy")
	err = cmd.Run()
	waited()
	if err == nil {
		return stdout.Bytes(), nil
	}
	if cause := context.Cause(ctx); cause != nil {
		err = fmt.Errorf("%w (%w)", cause, err)
	}
	return nil, fmt.Errorf("trivy %s: %w: %s", args[0], err, lastLines(stderr.String(), 5))
}

func lastLines(text string, count int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-count):], "\n")
}

// maxReport is far above the report of any image, and below what a machine has.
const maxReport = 128 << 20

func readLimited(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading the report, which Trivy should have left: %w", err)
	}
	defer f.Close() //nolint:errcheck // only read
	data, err := io.ReadAll(io.LimitReader(f, maxReport+1))
	if err == nil && len(data) > maxReport {
		err = fmt.Errorf("the report is longer than %d bytes", maxReport)
	}
	return data, err
}
