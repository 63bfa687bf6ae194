package advisories

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/aquasecurity/trivy-db/pkg/db"
	"github.com/aquasecurity/trivy-db/pkg/metadata"
	"github.com/aquasecurity/trivy-db/pkg/types"
	bolt "go.etcd.io/bbolt"
)

var today = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// open opens a database as Trivy does.
func open(t *testing.T, cacheDir string) db.Config {
	t.Helper()
	oneAtATime.Lock()
	t.Cleanup(oneAtATime.Unlock)
	if err := db.Init(filepath.Join(cacheDir, "db"), db.WithBoltOptions(&bolt.Options{ReadOnly: true, Timeout: time.Second})); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db.Config{}
}

func TestWrittenDatabaseIsReadByTrivysOwnLibrary(t *testing.T) {
	dir := t.TempDir()
	if err := Write(t.Context(), dir, today); err != nil {
		t.Fatal(err)
	}
	about, err := metadata.NewClient(filepath.Join(dir, "db")).Get()
	want := metadata.Metadata{Version: db.SchemaVersion, UpdatedAt: today, NextUpdate: today.AddDate(0, 0, 1), DownloadedAt: today}
	if err != nil || about != want {
		t.Errorf("the metadata is %+v, %v", about, err)
	}
	database := open(t, dir)
	for name, tt := range map[string]struct {
		source, pkg, id, fixed string
		severity               types.Severity
		vulnerable             []string
	}{
		"a Go module":              {"go::", "golang.org/x/net", "CVE-2023-39325", "0.17.0", types.SeverityHigh, []string{"<0.17.0"}},
		"a moderate one":           {"go::", "golang.org/x/net", "CVE-2023-45288", "0.23.0", types.SeverityMedium, []string{"<0.23.0"}},
		"a critical one":           {"go::", "golang.org/x/crypto", "CVE-2024-45337", "0.31.0", types.SeverityCritical, []string{"<0.31.0"}},
		"one of several branches":  {"go::", "google.golang.org/grpc", "GHSA-m425-mq94-257g", "1.56.3 1.57.1 1.58.3", types.SeverityHigh, []string{"<1.56.3", ">=1.57.0, <1.57.1", ">=1.58.0, <1.58.3"}},
		"a package of Debian":      {"debian 12", "glibc", "CVE-2023-4911", "2.36-9+deb12u3", types.SeverityHigh, nil},
		"another one of Debian":    {"debian 12", "openssl", "CVE-2024-6119", "3.0.14-1~deb12u2", types.SeverityHigh, nil},
		"one that names two paths": {"go::", "github.com/golang-jwt/jwt/v5", "CVE-2025-30204", "5.2.2", types.SeverityHigh, []string{">=5.0.0-rc.1, <5.2.2"}},
	} {
		t.Run(name, func(t *testing.T) {
			found, err := database.GetAdvisories(tt.source, tt.pkg)
			if err != nil {
				t.Fatal(err)
			}
			at := slices.IndexFunc(found, func(a types.Advisory) bool { return a.VulnerabilityID == tt.id })
			if at < 0 {
				t.Fatalf("%s has %+v", tt.pkg, found)
			}
			a := found[at]
			if fixed := strings.Join(append(a.PatchedVersions, a.FixedVersion), " "); strings.TrimSpace(fixed) != tt.fixed {
				t.Errorf("fixed in %q, want %q", fixed, tt.fixed)
			}
			if !slices.Equal(a.VulnerableVersions, tt.vulnerable) {
				t.Errorf("vulnerable are %q", a.VulnerableVersions)
			}
			if a.DataSource == nil || !strings.HasPrefix(a.DataSource.URL, "https://") {
				t.Errorf("its source is %+v", a.DataSource)
			}
			detail, err := database.GetVulnerability(tt.id)
			if err != nil || detail.Severity != tt.severity.String() || detail.Title == "" || len(detail.References) == 0 || detail.PublishedDate == nil {
				t.Errorf("the detail is %+v, %v", detail, err)
			}
			for _, severity := range detail.VendorSeverity {
				if severity != tt.severity {
					t.Errorf("a source says %s", severity)
				}
			}
		})
	}
}

func TestWritingAgainMakesTheDatabaseYounger(t *testing.T) {
	dir := t.TempDir()
	for _, now := range []time.Time{today, today.Add(time.Hour)} {
		if err := Write(t.Context(), dir, now); err != nil {
			t.Fatal(err)
		}
		about, err := metadata.NewClient(filepath.Join(dir, "db")).Get()
		if err != nil || !about.UpdatedAt.Equal(now) {
			t.Errorf("the metadata is %+v, %v", about, err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("besides the database there is %v, %v", entries, err)
	}
}

// A scan that runs keeps the database that it opened.
func TestDatabaseIsReplacedUnderneathAReader(t *testing.T) {
	dir := t.TempDir()
	if err := Write(t.Context(), dir, today); err != nil {
		t.Fatal(err)
	}
	reader, err := bolt.Open(db.Path(filepath.Join(dir, "db")), 0o644, &bolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	var writers sync.WaitGroup
	for range 4 {
		writers.Go(func() {
			if err := Write(t.Context(), dir, today); err != nil {
				t.Error(err)
			}
		})
	}
	writers.Wait()
	err = reader.View(func(tx *bolt.Tx) error {
		if tx.Bucket([]byte("vulnerability")).Get([]byte("CVE-2023-39325")) == nil {
			return errors.New("the advisory is gone")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestDatabaseThatIsThereStaysWhenWritingFails(t *testing.T) {
	dir := t.TempDir()
	if err := Write(t.Context(), dir, today); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(metadata.Path(filepath.Join(dir, "db")))
	if err != nil {
		t.Fatal(err)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Write(over, dir, today.Add(time.Hour)); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	if err := write(t.Context(), dir, fstest.MapFS{"CVE-1.json": {Data: []byte("{")}}, today.Add(time.Hour)); err == nil {
		t.Error("an advisory that is no JSON was taken")
	}
	after, err := os.ReadFile(metadata.Path(filepath.Join(dir, "db")))
	if err != nil || string(after) != string(before) {
		t.Errorf("the metadata became %s, %v", after, err)
	}
}

const sound = `{
  "id": "GHSA-1", "aliases": ["CVE-1"], "summary": "It breaks.", "published": "2026-11-01T00:00:00Z",
  "affected": [{
    "package": {"ecosystem": "Go", "name": "example.com/a"},
    "ranges": [{"type": "SEMVER", "events": [{"introduced": "0"}, {"fixed": "1.2.3"}]}]
  }],
  "references": [{"type": "WEB", "url": "https://example.com/1"}],
  "database_specific": {"severity": "HIGH"}
}`

func TestMalformedAdvisoryIsRefusedByFileAndField(t *testing.T) {
	for name, tt := range map[string]struct{ old, new, want string }{
		"no id":                     {`"GHSA-1"`, `""`, "id"},
		"an id of another alphabet": {`"GHSA-1"`, `"GHSA 1"`, "id"},
		"an empty alias":            {`"CVE-1"`, `"CVE-1", ""`, "aliases"},
		"no summary":                {`It breaks.`, ` `, "summary"},
		"no date":                   {`"published"`, `"modified"`, "published"},
		"a date of no calendar":     {`2026-11-01`, `2026-13-01`, "parsing time"},
		"nothing affected":          {`"affected"`, `"effected"`, "affected"},
		"no package":                {`"example.com/a"`, `""`, "affected[0].package.name"},
		"a package with a version":  {`example.com/a`, `example.com/a@v1`, "affected[0].package.name"},
		"an ecosystem of others":    {`"Go"`, `"npm"`, `affected[0].package.ecosystem: "npm"`},
		"no release of Debian":      {`"Go"`, `"Debian:bookworm"`, "affected[0].package.ecosystem"},
		"no ranges":                 {`"ranges"`, `"range"`, "affected[0].ranges"},
		"an end without a start":    {`{"introduced": "0"}, `, ``, "affected[0].ranges[0].events[0]"},
		"two starts":                {`{"fixed": "1.2.3"}`, `{"introduced": "1.2.3"}`, "affected[0].ranges[0].events[1]"},
		"an event of another kind":  {`"fixed"`, `"last_affected"`, "affected[0].ranges[0].events[1]"},
		"both at once":              {`"introduced": "0"`, `"introduced": "0", "fixed": "1.0.0"`, "affected[0].ranges[0].events[0]"},
		"a version with v":          {`1.2.3`, `v1.2.3`, "affected[0].ranges[0].events[1]"},
		"a version with a second":   {`1.2.3`, `1.2.3, <9`, "affected[0].ranges[0].events[1]"},
		"Debian from a version on":  {`"Go", "name": "example.com/a"},` + "\n" + `    "ranges": [{"type": "SEMVER", "events": [{"introduced": "0"}`, `"Debian:12", "name": "a"}, "ranges": [{"events": [{"introduced": "1"}`, "affected[0].ranges: of a Debian package"},
		"no reference":              {`"references"`, `"reference"`, "references"},
		"a reference without TLS":   {`https://`, `http://`, "references[0].url"},
		"no severity":               {`"severity": "HIGH"`, `"severity": ""`, "database_specific.severity"},
		"Trivy's own medium":        {`HIGH`, `MEDIUM`, "database_specific.severity"},
		"no JSON":                   {`{`, ``, "invalid character"},
	} {
		t.Run(name, func(t *testing.T) {
			if !strings.Contains(sound, tt.old) {
				t.Fatalf("the sound advisory has no %s", tt.old)
			}
			_, err := read(fstest.MapFS{"CVE-1.json": {Data: []byte(strings.Replace(sound, tt.old, tt.new, 1))}})
			if err == nil || !strings.HasPrefix(err.Error(), "advisory CVE-1.json: ") || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want one with %q", err, tt.want)
			}
		})
	}
	if all, err := read(fstest.MapFS{"CVE-1.json": {Data: []byte(sound)}}); err != nil || len(all) != 1 {
		t.Errorf("the sound one: %+v, %v", all, err)
	}
}

func TestFolderOfAdvisoriesIsRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		folder fs.FS
		want   string
	}{
		"nothing in it":           {fstest.MapFS{}, "no advisory"},
		"a file of another name":  {fstest.MapFS{"CVE-2.json": {Data: []byte(sound)}}, "name the file so"},
		"no file but a directory": {fstest.MapFS{"CVE-1.json/x": {}}, "CVE-1.json"},
	} {
		if _, err := read(tt.folder); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error is %v", name, err)
		}
	}
}

func TestUnfixedPackageOfDebianIsAffected(t *testing.T) {
	dir := t.TempDir()
	src := strings.NewReplacer(`"Go", "name": "example.com/a"`, `"Debian:12", "name": "a"`, `, {"fixed": "1.2.3"}`, "").Replace(sound)
	if err := write(t.Context(), dir, fstest.MapFS{"CVE-1.json": {Data: []byte(src)}}, today); err != nil {
		t.Fatal(err)
	}
	found, err := open(t, dir).GetAdvisories("debian 12", "a")
	if err != nil || len(found) != 1 || found[0].FixedVersion != "" || found[0].Status != types.StatusAffected {
		t.Errorf("%+v, %v", found, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(sound))
	f.Add([]byte(strings.Replace(sound, `, {"fixed": "1.2.3"}`, "", 1)))
	f.Fuzz(func(t *testing.T, src []byte) {
		a, err := parse(src)
		if err != nil {
			return
		}
		for _, on := range a.Affected {
			versions, err := on.versions()
			if err != nil {
				t.Fatal(err)
			}
			if len(versions.VulnerableVersions) == 0 && versions.FixedVersion == "" && versions.Status != types.StatusAffected {
				t.Fatalf("%s matches nothing", src)
			}
		}
	})
}
