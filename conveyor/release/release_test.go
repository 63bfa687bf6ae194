package release

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/omnivision/omnivision/conveyor"
	"github.com/omnivision/omnivision/conveyor/build"
	"github.com/omnivision/omnivision/conveyor/propose"
	"github.com/omnivision/omnivision/conveyor/scan"
	"github.com/omnivision/omnivision/conveyor/sign"
	"github.com/omnivision/omnivision/conveyor/sign/signtest"
	"github.com/omnivision/omnivision/conveyor/source"
	"github.com/omnivision/omnivision/conveyor/verify"
	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/plan/revision"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// builder pushes an image of two platforms; the same commit is the same image.
type builder struct {
	images map[string]v1.ImageIndex
	files  []string // of the last build's context
	builds int
	fail   error
}

func (b *builder) Build(_ context.Context, r build.Request, _ func(string)) (build.Result, error) {
	b.builds++
	b.files = nil
	err := filepath.WalkDir(r.Context, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			path, err = filepath.Rel(r.Context, path)
			b.files = append(b.files, path)
		}
		return err
	})
	if err != nil {
		return build.Result{}, err
	}
	if b.fail != nil {
		return build.Result{}, b.fail
	}
	index, ok := b.images[r.Commit]
	if !ok {
		if index, err = random.Index(20, 1, 2); err != nil {
			return build.Result{}, err
		}
		index = mutate.Annotations(index, map[string]string{"org.opencontainers.image.revision": r.Commit}).(v1.ImageIndex)
		b.images[r.Commit] = index
	}
	digest, err := index.Digest()
	if err != nil {
		return build.Result{}, err
	}
	result := build.Result{Digest: digest.String(), Tag: r.Version}
	for _, repository := range r.Repositories {
		if err := remote.WriteIndex(repository.Tag(r.Version), index); err != nil {
			return build.Result{}, err
		}
		result.Repositories = append(result.Repositories, repository.String())
	}
	manifest, err := index.IndexManifest()
	for i, m := range manifest.Manifests {
		result.Platforms = append(result.Platforms, build.Platform{Platform: []string{"linux/amd64", "linux/arm64"}[i], Digest: m.Digest.String()})
	}
	return result, err
}

func (b *builder) Check(ctx context.Context, repositories []name.Repository, have build.Result) error {
	return build.Builder{}.Check(ctx, repositories, have)
}

// scanner finds what it is told to.
type scanner struct {
	targets []scan.Target
	during  func(context.Context) // what happens meanwhile; nil is nothing
	scans   int
	found   error
	stale   error
}

func (s *scanner) Scan(ctx context.Context, _ string, targets []scan.Target, _ func(string)) (scan.Result, error) {
	s.scans++
	if s.during != nil {
		s.during(ctx)
	}
	s.targets = targets
	if s.found != nil {
		return scan.Result{}, s.found
	}
	result := scan.Result{
		Scanner: "trivy 0.68.0", Database: scan.Database{Version: 2, UpdatedAt: time.Date(2026, 11, 24, 6, 0, 0, 0, time.UTC)},
		Counts:   map[scan.Severity]int{scan.Medium: 3},
		Excepted: []scan.Excepted{{Finding: scan.Finding{ID: "CVE-2026-1", Severity: scan.High, Package: "x"}, Reason: "not reachable", Expires: "2026-12-31"}},
	}
	for _, target := range targets {
		_, digest, _ := strings.Cut(target.Reference, "@")
		result.Images = append(result.Images, scan.Image{Platform: target.Platform, Digest: digest, Report: json.RawMessage(`{"SchemaVersion":2}`), SBOM: json.RawMessage(`{"bomFormat":"CycloneDX"}`)})
	}
	return result, nil
}

func (s *scanner) Recheck(string, scan.Result) error { return s.stale }

// proposer remembers what it was asked to propose, and its text.
type proposer struct {
	requests []propose.Request
	text     propose.Text
	runs     map[string]fleet.Release
	trees    func(fleet.Release) (base, head *revision.Tree) // nil where nothing is planned
	preview  func() (base, head *revision.Tree)              // nil where none can be had
	fail     error
}

func (p *proposer) Preview(context.Context, propose.Request) (propose.Change, error) {
	if p.preview == nil {
		return propose.Change{}, errors.New("the forge is away")
	}
	base, head := p.preview()
	return propose.Change{Base: base, Head: head}, nil
}

func (p *proposer) Propose(ctx context.Context, r propose.Request) (propose.Result, error) {
	p.requests = append(p.requests, r)
	if p.fail != nil {
		return propose.Result{}, p.fail
	}
	change := propose.Change{Released: p.runs}
	if p.trees != nil {
		change.Base, change.Head = p.trees(r.Release)
	}
	var err error
	if p.text, err = r.Describe(ctx, change); err != nil {
		return propose.Result{}, err
	}
	return propose.Result{State: propose.Proposed, Number: 7}, nil
}

type watcher struct{ again, told []string }

func (*watcher) Started(string) {}
func (w *watcher) Progress(stage, detail string) {
	w.told = append(w.told, detail)
	if strings.HasPrefix(detail, "again: ") {
		w.again = append(w.again, stage+" "+detail)
	}
}
func (*watcher) Ended(string, time.Duration, error) {}

// site is a checkout, registries and everybody who works on a release.
type site struct {
	t        *testing.T
	dir      string
	store    conveyor.Store
	builder  *builder
	scanner  *scanner
	proposer *proposer
	signer   *sign.Signer
	repos    []name.Repository
	signed   int
}

func newSite(t *testing.T) *site {
	t.Helper()
	private, _ := signtest.Key(t)
	signer, err := sign.WithKey(private)
	check(t, err)
	s := &site{
		t: t, dir: t.TempDir(), store: conveyor.Store{Dir: t.TempDir()}, signer: signer,
		builder: &builder{images: map[string]v1.ImageIndex{}}, scanner: &scanner{}, proposer: &proposer{},
	}
	for range 2 {
		server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
		t.Cleanup(server.Close)
		repository, err := name.NewRepository(strings.TrimPrefix(server.URL, "http://")+"/omnivision/omnivision-worker", name.Insecure)
		check(t, err)
		s.repos = append(s.repos, repository)
	}
	s.git("init", "--quiet", "--initial-branch=main")
	s.commit("one")
	return s
}

func (s *site) git(args ...string) {
	s.t.Helper()
	cmd := exec.Command("git", append([]string{"-C", s.dir, "-c", "user.name=dev", "-c", "user.email=dev@example.com"}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("git %s: %v: %s", args[0], err, out)
	}
}

func (s *site) commit(subject string) {
	s.t.Helper()
	check(s.t, os.WriteFile(filepath.Join(s.dir, "main.go"), []byte(subject), 0o600))
	s.git("add", "--all")
	s.git("commit", "--quiet", "-m", subject)
}

func (s *site) release() Release {
	s.t.Helper()
	revision, err := source.Read(s.t.Context(), s.dir)
	check(s.t, err)
	return Release{
		App: "omnivision-worker", Wave: 1, Dir: s.dir, Source: "https://github.com/omnivision/omnivision", Revision: revision,
		Dockerfile: "cmd/worker/Dockerfile", Platforms: []string{"linux/amd64", "linux/arm64"}, Invocation: "https://github.com/run/1",
		Repositories: s.repos, Builder: s.builder, Scanner: s.scanner, Proposer: s.proposer,
		Signer: func(context.Context) (*sign.Signer, error) { s.signed++; return s.signer, nil },
		Policy: func(verify.Identity) verify.Policy { return s.signer.Policy() },
	}
}

func (s *site) run(r Release, until string) (*watcher, []conveyor.Outcome, error) {
	s.t.Helper()
	w := &watcher{}
	belt, err := r.Belt(s.store, w)
	check(s.t, err)
	outcomes, err := belt.Run(s.t.Context(), until)
	return w, outcomes, err
}

func TestReleaseGoesFromTheCommitToTheProposal(t *testing.T) {
	s := newSite(t)
	check(t, os.WriteFile(filepath.Join(s.dir, ".git", "not-a-source"), nil, 0o600))
	_, outcomes, err := s.run(s.release(), "")
	check(t, err)
	if len(outcomes) != 4 || len(s.proposer.requests) != 1 {
		t.Fatalf("outcomes are %+v", outcomes)
	}
	if !slices.Equal(s.builder.files, []string{"main.go"}) {
		t.Errorf("the build saw %v", s.builder.files)
	}
	var image Built
	check(t, json.Unmarshal(outcomes[0].Result, &image))
	request := s.proposer.requests[0]
	if request.Release != (fleet.Release{Tag: "0.1.0-1", Digest: image.Digest}) || request.App != "omnivision-worker" || request.Wave != 1 {
		t.Errorf("proposed is %+v", request)
	}
	// What was scanned is what was built, and what was signed is what was scanned (P36).
	for i, target := range s.scanner.targets {
		if target.Reference != s.repos[0].Digest(image.Platforms[i].Digest).String() {
			t.Errorf("scanned is %s, built was %s", target.Reference, image.Platforms[i].Digest)
		}
	}
	for _, repository := range s.repos {
		believed, refused, err := s.signer.Policy().Image(t.Context(), repository.Digest(image.Digest))
		if err != nil || len(refused) > 0 || len(believed) != 2 {
			t.Errorf("in %s believed are %+v, refused %v, %v", repository, believed, refused, err)
		}
	}
	want := []propose.Fact{
		{Name: "Source commit", Value: s.release().Revision.Commit},
		{Name: "Scan", Value: "0 critical, 0 high, 3 medium, 0 low, 0 unknown"},
		{Name: "Scanned by", Value: "trivy 0.68.0, database of 2026-11-24T06:00:00Z"},
		{Name: "Signed by", Value: s.signer.Identity().String()},
		{Name: "Let pass", Value: "HIGH CVE-2026-1 in x until 2026-12-31: not reachable"},
	}
	if !slices.Equal(s.proposer.text.Facts, want) {
		t.Errorf("the text has the facts %+v", s.proposer.text.Facts)
	}
}

func TestProposalListsTheCommitsSinceWhatTheWaveRuns(t *testing.T) {
	s := newSite(t)
	_, outcomes, err := s.run(s.release(), "")
	check(t, err)
	var first Built
	check(t, json.Unmarshal(outcomes[0].Result, &first))
	s.commit("two")
	s.commit("three")
	s.proposer.runs = map[string]fleet.Release{"cluster-aws": {Tag: "0.1.0-1", Digest: first.Digest}, "cluster-new": {Tag: "0.1.0"}}
	r := s.release()
	_, _, err = s.run(r, "")
	check(t, err)
	text := s.proposer.text
	if text.Total != 2 || len(text.Commits) != 2 || text.Commits[0].Subject != "three" {
		t.Errorf("the text is %+v", text)
	}
	// An image that is gone is no reason not to release.
	s.proposer.runs = map[string]fleet.Release{"cluster-aws": {Tag: "0.1.0-1", Digest: "sha256:" + strings.Repeat("0", 64)}}
	_, _, err = s.run(r, "")
	check(t, err)
	if s.proposer.text.Total != 0 {
		t.Errorf("the text is %+v", s.proposer.text)
	}
}

func TestSecondRunProposesAndDoesNothingElse(t *testing.T) {
	s := newSite(t)
	_, _, err := s.run(s.release(), "")
	check(t, err)
	later := s.release()
	later.Invocation = "https://github.com/run/2" // another job goes on with the evidence
	w, _, err := s.run(later, "")
	check(t, err)
	if s.builder.builds != 1 || s.scanner.scans != 1 || s.signed != 1 || len(s.proposer.requests) != 2 {
		t.Errorf("built %d, scanned %d, signed %d, proposed %d; again for %v", s.builder.builds, s.scanner.scans, s.signed, len(s.proposer.requests), w.again)
	}
}

func TestStagesAreDoneAgainWhenTheirResultIsGone(t *testing.T) {
	for name, tt := range map[string]struct {
		lose                func(t *testing.T, s *site, image Built)
		builds, scans, sign int
		why                 string
	}{
		"the tag is gone": {
			func(t *testing.T, s *site, _ Built) { check(t, remote.Delete(s.repos[1].Tag("0.1.0-1"))) }, 2, 1, 1, "build again",
		},
		"a signature is gone": {
			func(t *testing.T, s *site, image Built) {
				check(t, remote.Delete(s.repos[1].Tag(strings.Replace(image.Digest, ":", "-", 1))))
			}, 1, 1, 2, "sign again",
		},
		"the scan is stale": {func(_ *testing.T, s *site, _ Built) { s.scanner.stale = scan.ErrStale }, 1, 2, 1, "scan again"},
		"the signer changed": {
			func(t *testing.T, s *site, _ Built) { s.signer = newSite(t).signer }, 1, 1, 2, "sign again",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			_, outcomes, err := s.run(s.release(), "")
			check(t, err)
			var image Built
			check(t, json.Unmarshal(outcomes[0].Result, &image))
			tt.lose(t, s, image)
			w, _, err := s.run(s.release(), "")
			check(t, err)
			if s.builder.builds != tt.builds || s.scanner.scans != tt.scans || s.signed != tt.sign {
				t.Errorf("built %d, scanned %d, signed %d", s.builder.builds, s.scanner.scans, s.signed)
			}
			if !strings.Contains(strings.Join(w.again, "\n"), tt.why) {
				t.Errorf("the watcher was told %v", w.again)
			}
		})
	}
}

func TestNothingUnsignedOrVulnerableIsProposed(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*site, *Release)
		stage  string
	}{
		"the build fails":       {func(s *site, _ *Release) { s.builder.fail = errors.New("exit code: 1") }, Build},
		"the tag is taken":      {func(s *site, _ *Release) { s.builder.fail = build.ErrTagTaken }, Build},
		"a finding is critical": {func(s *site, _ *Release) { s.scanner.found = &scan.VulnerableError{} }, Scan},
		"the database is stale": {func(s *site, _ *Release) { s.scanner.found = scan.ErrStale }, Scan},
		"nobody signs": {func(_ *site, r *Release) {
			r.Signer = func(context.Context) (*sign.Signer, error) { return nil, errors.New("no identity") }
		}, Sign},
		"the forge refuses": {func(s *site, _ *Release) { s.proposer.fail = errors.New("403") }, Propose},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			r := s.release()
			tt.change(s, &r)
			_, _, err := s.run(r, "")
			var stage *conveyor.StageError
			if !errors.As(err, &stage) || stage.Stage != tt.stage {
				t.Fatalf("error is %v, want one of stage %s", err, tt.stage)
			}
			if tt.stage != Propose && len(s.proposer.requests) > 0 {
				t.Error("it was proposed")
			}
			// The next run, when all is well again, finishes the job.
			s.builder.fail, s.scanner.found, s.proposer.fail = nil, nil, nil
			_, outcomes, err := s.run(s.release(), "")
			if err != nil || len(outcomes) != 4 {
				t.Errorf("the next run: %+v, %v", outcomes, err)
			}
			if tt.stage == Propose && s.builder.builds != 1 {
				t.Error("what was done was done again")
			}
		})
	}
}

func TestWorkingTreeWithChangesIsNotReleased(t *testing.T) {
	s := newSite(t)
	check(t, os.WriteFile(filepath.Join(s.dir, "new"), nil, 0o600))
	if _, err := s.release().Belt(s.store, &watcher{}); err == nil || !strings.Contains(err.Error(), "commit or stash them") {
		t.Errorf("error is %v", err)
	}
}
