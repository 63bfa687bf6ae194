package scan

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"
)

// Run again with this variable, the test's own program stands for Trivy.
const fake = "OMNIVISION_FAKE_TRIVY"

// answers are what the fake says: it reads them from the file that the variable names.
type answers struct {
	Reports map[string]string // by the reference's digest
	Version string
	Fail    string // the command that fails
	Calls   string // file that the calls are appended to
}

func TestMain(m *testing.M) {
	if file := os.Getenv(fake); file != "" {
		if err := trivy(file, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "FATAL\t"+err.Error())
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func trivy(file string, args []string) error {
	raw, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var a answers
	if err := json.Unmarshal(raw, &a); err != nil {
		return err
	}
	calls, err := os.OpenFile(a.Calls, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	dir, _ := os.Getwd()
	entries, _ := os.ReadDir(dir)
	var lies []string
	for _, v := range os.Environ() {
		if strings.HasPrefix(v, "TRIVY_") {
			lies = append(lies, v)
		}
	}
	fmt.Fprintln(calls, strings.Join(args, " "), "| files", len(entries), "| variables", strings.Join(lies, " "))
	if err := calls.Close(); err != nil {
		return err
	}
	if args[0] == a.Fail {
		return errors.New("unable to pull the database")
	}
	output := func() string { return args[slices.Index(args, "--output")+1] }
	switch args[0] {
	case "version":
		fmt.Println(a.Version)
	case "image":
		_, digest, _ := strings.Cut(args[len(args)-1], "@")
		return os.WriteFile(output(), []byte(a.Reports[digest]), 0o600)
	case "convert":
		return os.WriteFile(output(), []byte(`{"bomFormat":"CycloneDX","specVersion":"1.6"}`), 0o600)
	}
	return nil
}

var today = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

const (
	amd64 = "sha256:1111111111111111111111111111111111111111111111111111111111111111"
	arm64 = "sha256:2222222222222222222222222222222222222222222222222222222222222222"

	version = `{"Version":"0.68.0","VulnerabilityDB":{"Version":2,"NextUpdate":"2026-11-24T12:00:00Z","UpdatedAt":"2026-11-24T06:00:00Z","DownloadedAt":"2026-11-24T07:00:00Z"}}`
)

// report is one of a Go program with findings of these severities.
func report(severities ...Severity) string {
	var findings []string
	for i, s := range severities {
		findings = append(findings, fmt.Sprintf(`{"VulnerabilityID":"CVE-2026-%d","PkgName":"golang.org/x/net","InstalledVersion":"v0.60.0","FixedVersion":"0.61.0","Severity":%q,"Title":"HTTP/2 floods"}`, 1000+i, s))
	}
	return fmt.Sprintf(`{"SchemaVersion":2,"ArtifactName":"x","Results":[{"Target":"usr/local/bin/worker","Class":"lang-pkgs","Type":"gobinary",
		"Packages":[{"Name":"golang.org/x/net","Version":"v0.60.0"},{"Name":"stdlib","Version":"v1.26.8"}],"Vulnerabilities":[%s]}]}`, strings.Join(findings, ","))
}

func newScanner(t *testing.T, a answers) (Scanner, func() string) {
	t.Helper()
	dir := t.TempDir()
	a.Calls = filepath.Join(dir, "calls")
	if a.Version == "" {
		a.Version = version
	}
	raw, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "answers.json")
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv(fake, file)
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := Scanner{Program: program, CacheDir: dir, now: func() time.Time { return today }}
	return s, func() string {
		calls, _ := os.ReadFile(a.Calls)
		return string(calls)
	}
}

func targets() []Target {
	const repository = "123456789012.dkr.ecr.us-west-2.amazonaws.com/omnivision/omnivision-worker@"
	return []Target{{"linux/amd64", repository + amd64}, {"linux/arm64", repository + arm64}}
}

func nothing(string) {}

func TestCleanImagePassesWithItsEvidence(t *testing.T) {
	s, calls := newScanner(t, answers{Reports: map[string]string{amd64: report(Medium, Low), arm64: report(Medium)}})
	result, err := s.Scan(t.Context(), "omnivision-worker", targets(), nothing)
	if err != nil {
		t.Fatal(err)
	}
	if result.Scanner != "trivy 0.68.0" || !result.Database.UpdatedAt.Equal(time.Date(2026, 11, 24, 6, 0, 0, 0, time.UTC)) || !result.Scanned.Equal(today) {
		t.Errorf("result is %+v", result)
	}
	// The finding that both platforms share counts once.
	if result.Counts[Medium] != 1 || result.Counts[Low] != 1 || len(result.Counts) != 2 {
		t.Errorf("counts are %v", result.Counts)
	}
	if len(result.Images) != 2 || result.Images[1].Digest != arm64 || result.Images[1].Packages != 2 || !strings.Contains(string(result.Images[0].SBOM), "CycloneDX") || !strings.Contains(string(result.Images[0].Report), "gobinary") {
		t.Errorf("images are %+v", result.Images)
	}
	for _, want := range []string{"--scanners vuln", "-- " + targets()[0].Reference, "-- " + targets()[1].Reference} {
		if !strings.Contains(calls(), want) {
			t.Errorf("Trivy was not called with %q:\n%s", want, calls())
		}
	}
}

func TestHighAndCriticalFindingsStopTheBelt(t *testing.T) {
	s, _ := newScanner(t, answers{Reports: map[string]string{amd64: report(Medium, High), arm64: report(Medium, High, Critical)}})
	_, err := s.Scan(t.Context(), "omnivision-worker", targets(), nothing)
	var vulnerable *VulnerableError
	if !errors.As(err, &vulnerable) || len(vulnerable.Findings) != 2 {
		t.Fatalf("error is %v", err)
	}
	want := `2 findings of severity HIGH or CRITICAL:
  SEVERITY  ID             PACKAGE           INSTALLED  FIXED IN  WHERE
  CRITICAL  CVE-2026-1002  golang.org/x/net  v0.60.0    0.61.0    usr/local/bin/worker
  HIGH      CVE-2026-1001  golang.org/x/net  v0.60.0    0.61.0    usr/local/bin/worker
Update what is affected, or add a reviewed exception with a reason and an end to components/policies/manifests/release-policy.yaml of the GitOps tree.`
	if err.Error() != want {
		t.Errorf("the table is\n%s\nwant\n%s", err, want)
	}
}

func TestExceptionLetsOneAdvisoryPassUntilItsLastDay(t *testing.T) {
	s, _ := newScanner(t, answers{Reports: map[string]string{amd64: report(High), arm64: report(High)}})
	s.Exceptions = Exceptions{{ID: "CVE-2026-1000", Package: "golang.org/x/net", App: "omnivision-worker", Reason: "not reachable", Expires: "2026-11-24"}}
	result, err := s.Scan(t.Context(), "omnivision-worker", targets(), nothing)
	if err != nil || len(result.Excepted) != 1 || result.Excepted[0].Reason != "not reachable" || result.Counts[High] != 1 {
		t.Errorf("on its last day: %+v, %v", result.Excepted, err)
	}
	if _, err := s.Scan(t.Context(), "omnivision-ui", targets(), nothing); err == nil {
		t.Error("it covers another app")
	}
	if err := s.Recheck("omnivision-worker", result); err != nil {
		t.Errorf("looked at again on its last day: %v", err)
	}
	s.now = func() time.Time { return time.Date(2026, 11, 25, 0, 0, 0, 0, time.UTC) }
	var vulnerable *VulnerableError
	if err := s.Recheck("omnivision-worker", result); !errors.As(err, &vulnerable) {
		t.Errorf("looked at again on the day after: %v", err)
	}
	if _, err := s.Scan(t.Context(), "omnivision-worker", targets(), nothing); err == nil || !strings.Contains(err.Error(), "The exception for CVE-2026-1000 in golang.org/x/net ended on 2026-11-24.") {
		t.Errorf("on the day after: %v", err)
	}
}

func TestScanOfLastWeekIsNoScan(t *testing.T) {
	s, _ := newScanner(t, answers{Reports: map[string]string{amd64: report(), arm64: report()}})
	result, err := s.Scan(t.Context(), "omnivision-worker", targets(), nothing)
	if err != nil {
		t.Fatal(err)
	}
	s.now = func() time.Time { return today.AddDate(0, 0, 7) }
	if err := s.Recheck("omnivision-worker", result); !errors.Is(err, ErrStale) {
		t.Errorf("error is %v", err)
	}
}

func TestScanFailsClosed(t *testing.T) {
	clean := report()
	for name, tt := range map[string]struct {
		answers answers
		change  func(*Scanner)
		targets []Target
		want    string
	}{
		"the database is stale":             {answers: answers{Version: strings.ReplaceAll(version, "2026-11-24T06", "2026-11-20T06")}, want: "is of 2026-11-20T06:00:00Z, 102h0m0s ago, and may be 48h0m0s old"},
		"the database has no date":          {answers: answers{Version: `{"Version":"0.68.0","VulnerabilityDB":{"Version":2}}`}, want: "does not say when it was made"},
		"there is no database":              {answers: answers{Version: `{"Version":"0.68.0"}`}, want: "there is none in"},
		"Trivy fails":                       {answers: answers{Fail: "image"}, want: "unable to pull the database"},
		"Trivy cannot tell its database":    {answers: answers{Fail: "version"}, want: "asking Trivy for its database"},
		"there is no SBOM":                  {answers: answers{Fail: "convert"}, want: "making the SBOM"},
		"the report is empty":               {answers: answers{Reports: map[string]string{amd64: ""}}, want: "reading Trivy's report"},
		"the report is of another schema":   {answers: answers{Reports: map[string]string{amd64: `{"SchemaVersion":3}`}}, want: "its schema is 3"},
		"a severity is none":                {answers: answers{Reports: map[string]string{amd64: report("SEVERE")}}, want: `the severity "SEVERE"`},
		"a finding names no package":        {answers: answers{Reports: map[string]string{amd64: strings.ReplaceAll(report(Low), "PkgName", "Other")}}, want: "no package"},
		"nothing was recognised":            {answers: answers{Reports: map[string]string{amd64: `{"SchemaVersion":2}`}}, want: "no package was recognised"},
		"the base is out of support":        {answers: answers{Reports: map[string]string{amd64: `{"SchemaVersion":2,"Metadata":{"OS":{"Family":"alpine","Name":"3.9.4","EOSL":true}}}`}}, want: "alpine 3.9.4, is out of support"},
		"the base's packages are not known": {answers: answers{Reports: map[string]string{amd64: strings.Replace(clean, `"Results"`, `"Metadata":{"OS":{"Family":"fedora","Name":"42"}},"Results"`, 1)}}, want: "fedora 42, was recognised, but none of its packages"},
		"there is no image":                 {targets: []Target{}, want: "no image to scan"},
		"a tag is named":                    {targets: []Target{{"linux/amd64", "example.com/worker:1"}}, want: "only a digest is scanned"},
		"there is no such program":          {change: func(s *Scanner) { s.Program = "/nonexistent/trivy" }, want: "no such file"},
		"the scan takes longer than it may": {change: func(s *Scanner) { s.Timeout = time.Nanosecond }, want: "not done within 1ns"},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.answers.Reports == nil {
				tt.answers.Reports = map[string]string{amd64: clean, arm64: clean}
			}
			s, _ := newScanner(t, tt.answers)
			if tt.change != nil {
				tt.change(&s)
			}
			if tt.targets == nil {
				tt.targets = targets()
			}
			_, err := s.Scan(t.Context(), "omnivision-worker", tt.targets, nothing)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want one with %q", err, tt.want)
			}
			if strings.HasPrefix(name, "the database") && !errors.Is(err, ErrStale) {
				t.Errorf("%v is not known as a stale database", err)
			}
		})
	}
}

func TestNothingThatLiesAboutDecides(t *testing.T) {
	s, calls := newScanner(t, answers{Reports: map[string]string{amd64: report(), arm64: report()}})
	here := t.TempDir()
	t.Chdir(here)
	for _, file := range []string{".trivyignore", "trivy.yaml"} {
		if err := os.WriteFile(file, []byte("CVE-2026-1000\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("TRIVY_IGNORE_UNFIXED", "true")
	t.Setenv("TRIVY_USERNAME", "robot")
	if _, err := s.Scan(t.Context(), "omnivision-worker", targets(), nothing); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(calls()) {
		if !strings.HasPrefix(line, "convert") && !strings.Contains(line, "| files 0 |") {
			t.Errorf("Trivy ran among files: %s", line)
		}
		if !strings.HasSuffix(strings.TrimSpace(line), "| variables TRIVY_USERNAME=robot") {
			t.Errorf("Trivy saw variables: %s", line)
		}
	}
}

// Trivy runs elsewhere than the caller, and yet finds what the caller named.
func TestProgramAndCacheAreTheCallers(t *testing.T) {
	s, calls := newScanner(t, answers{Reports: map[string]string{amd64: report(), arm64: report()}})
	t.Chdir(filepath.Dir(s.Program))
	s.Program = "." + string(filepath.Separator) + filepath.Base(s.Program)
	s.CacheDir = "cache"
	if _, err := s.Scan(t.Context(), "omnivision-worker", targets(), nothing); err != nil {
		t.Fatal(err)
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	if want := "--cache-dir " + filepath.Join(here, "cache"); strings.Count(calls(), want) != 3 {
		t.Errorf("Trivy was not called with %s:\n%s", want, calls())
	}
}

func TestOfflineScanAsksNobody(t *testing.T) {
	s, calls := newScanner(t, answers{Reports: map[string]string{amd64: report(), arm64: report()}})
	s.Offline, s.Insecure, s.Database = true, true, "registry.example.com/trivy-db:2"
	if _, err := s.Scan(t.Context(), "omnivision-worker", targets(), nothing); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"--skip-db-update", "--offline-scan", "--insecure", "--db-repository registry.example.com/trivy-db:2"} {
		if !strings.Contains(calls(), want) {
			t.Errorf("Trivy was not called with %s", want)
		}
	}
}

func TestTextOfAnImageCannotSteerATerminal(t *testing.T) {
	err := &VulnerableError{Findings: []Finding{{ID: "CVE-1\x1b[2J", Severity: High, Package: "a\tb\nc", Installed: "1\u202e", Where: "x\r"}}}
	if text := err.Error(); strings.ContainsAny(text, "\x1b\r\u202e") || strings.Count(text, "\n") != 3 || !strings.Contains(text, "none yet") {
		t.Errorf("the table is %q", text)
	}
}

func TestExceptionsAreReadStrictly(t *testing.T) {
	const good = "apiVersion: omnivision.ai/v1alpha1\nkind: ReleasePolicy\nmetadata: {name: platform}\nspec:\n  images: [{glob: \"**\"}]\n  scan:\n    maxAge: 720h\n" +
		"    exceptions:\n      - {id: CVE-1, package: a, reason: r, expires: \"2026-12-31\"}\n"
	read := func(src string) (Exceptions, error) {
		return ReadExceptions(fstest.MapFS{ExceptionsFile: {Data: []byte(src)}})
	}
	for name, src := range map[string]string{
		"nothing":        "",
		"another kind":   strings.Replace(good, "ReleasePolicy", "Policy", 1),
		"a misspelt key": strings.Replace(good, "reason", "reazon", 1),
		"no reason":      strings.Replace(good, "reason: r", `reason: " "`, 1),
		"no end":         strings.Replace(good, ", expires: \"2026-12-31\"", "", 1),
		"no day":         strings.Replace(good, "2026-12-31", "2026-13-31", 1),
		"no package":     strings.Replace(good, "package: a, ", "", 1),
		"a pattern":      strings.Replace(good, "CVE-1", "CVE-*", 1),
		"no YAML":        "exceptions: [",
	} {
		if _, err := read(src); err == nil || !strings.Contains(err.Error(), "exception") {
			t.Errorf("%s: error is %v", name, err)
		}
	}
	if xs, err := read(good); err != nil || len(xs) != 1 {
		t.Errorf("%+v, %v", xs, err)
	}
	if xs, err := ReadExceptions(fstest.MapFS{}); err != nil || len(xs) != 0 {
		t.Errorf("a tree without policies lets %+v pass: %v", xs, err)
	}
}

// The file that is read is the one that clusters get.
func TestExceptionsOfTheTreeAreRead(t *testing.T) {
	tree := os.DirFS("../../omnivision-gitops")
	if _, err := fs.Stat(tree, ExceptionsFile); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadExceptions(tree); err != nil {
		t.Error(err)
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{report(High, Low), `{"SchemaVersion":2}`, `{"SchemaVersion":2,"Results":[null]}`, `null`, `[]`, `{"SchemaVersion":2,"Results":[{"Vulnerabilities":[{}]}]}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := Parse(raw)
		if err != nil {
			return
		}
		findings := once(r.Findings())
		for _, finding := range findings {
			if finding.ID == "" || finding.Package == "" || !slices.Contains(Severities, finding.Severity) {
				t.Fatalf("a finding without name, package or severity: %+v", finding)
			}
		}
		text := (&VulnerableError{Findings: findings}).Error()
		if strings.Count(text, "\n") != len(findings)+2 {
			t.Fatalf("the table has %d lines for %d findings", strings.Count(text, "\n"), len(findings))
		}
	})
}
