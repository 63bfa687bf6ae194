package scan

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"unicode"
)

// Severity is how bad a vulnerability is.
type Severity string

// The severities, as Trivy names them.
const (
	Critical Severity = "CRITICAL"
	High     Severity = "HIGH"
	Medium   Severity = "MEDIUM"
	Low      Severity = "LOW"
	Unknown  Severity = "UNKNOWN"
)

// Severities are all of them, the worst first.
var Severities = []Severity{Critical, High, Medium, Low, Unknown}

func (s Severity) stops() bool { return s == Critical || s == High }

// Report is what this package reads of Trivy's report, schema 2:
// https://trivy.dev/docs/latest/configuration/reporting/#json.
type Report struct {
	SchemaVersion int
	ArtifactName  string
	Metadata      struct {
		OS struct {
			Family, Name string
			EOSL         bool // its end of service life has passed
		}
	}
	Results []struct {
		Target          string
		Class           string
		Type            string
		Packages        []struct{ Name, Version string }
		Vulnerabilities []struct {
			VulnerabilityID  string
			PkgName          string
			PkgPath          string
			InstalledVersion string
			FixedVersion     string
			Severity         Severity
			Title            string
			PrimaryURL       string
		}
	}
}

// Finding is one vulnerability of one package.
type Finding struct {
	ID        string   `json:"id"`
	Severity  Severity `json:"severity"`
	Package   string   `json:"package"`
	Installed string   `json:"installed"`
	Fixed     string   `json:"fixed,omitempty"` // empty: there is no fixed version yet
	Where     string   `json:"where"`           // file or system in the image
	Title     string   `json:"title,omitempty"`
	URL       string   `json:"url,omitempty"`
}

// Parse reads a report. One that is not understood in full is an error: what was not
// read may be what matters.
func Parse(raw []byte) (Report, error) {
	var r Report
	if err := json.Unmarshal(raw, &r); err != nil {
		return Report{}, fmt.Errorf("reading Trivy's report: %w", err)
	}
	if r.SchemaVersion != 2 {
		return Report{}, fmt.Errorf("reading Trivy's report: its schema is %d, and this program reads 2: use the version of Trivy that the project pins", r.SchemaVersion)
	}
	for _, result := range r.Results {
		for _, v := range result.Vulnerabilities {
			if v.VulnerabilityID == "" || v.PkgName == "" {
				return Report{}, errors.New("reading Trivy's report: a finding names no vulnerability or no package")
			}
			if !slices.Contains(Severities, v.Severity) {
				return Report{}, fmt.Errorf("reading Trivy's report: %s has the severity %q, which is none", v.VulnerabilityID, v.Severity)
			}
		}
	}
	return r, nil
}

// Packages counts what Trivy recognised.
func (r Report) Packages() (count int) {
	for _, result := range r.Results {
		count += len(result.Packages)
	}
	return count
}

// known is an error where Trivy did not look at all of the image, and says so in its log
// alone. Of a system that it does not know, and of one whose list of packages was
// removed, it leaves out the result.
func (r Report) known() error {
	system := r.Metadata.OS
	switch {
	case system.EOSL:
		return fmt.Errorf("its base, %s %s, is out of support: nobody publishes what is wrong with it; move to a supported release", Plain(system.Family), Plain(system.Name))
	case system.Family != "" && system.Family != noSystem && !r.hasSystemPackages():
		return fmt.Errorf("its base, %s %s, was recognised, but none of its packages: either Trivy does not know that system, or the list of packages was removed; take a base that Trivy knows, as it is", Plain(system.Family), Plain(system.Name))
	case r.Packages() == 0:
		return errors.New("no package was recognised in it, and what Trivy cannot look into it cannot call clean; build it so that the programs keep their build information, or on a base whose packages Trivy knows")
	}
	return nil
}

const (
	noSystem       = "none"    // what Trivy calls the system of packages that belong to none
	systemPackages = "os-pkgs" // the class of results
)

func (r Report) hasSystemPackages() bool {
	for _, result := range r.Results {
		if result.Class == systemPackages && len(result.Packages) > 0 {
			return true
		}
	}
	return false
}

// Findings lists all vulnerabilities of the report.
func (r Report) Findings() []Finding {
	var all []Finding
	for _, result := range r.Results {
		where := result.Target
		if result.Class == systemPackages { // the target repeats the image's whole name
			where = strings.TrimSpace(r.Metadata.OS.Family + " " + r.Metadata.OS.Name)
		}
		for _, v := range result.Vulnerabilities {
			all = append(all, Finding{
				ID: v.VulnerabilityID, Severity: v.Severity, Package: v.PkgName, Installed: v.InstalledVersion,
				Fixed: v.FixedVersion, Where: cmp.Or(v.PkgPath, where, result.Target), Title: v.Title, URL: v.PrimaryURL,
			})
		}
	}
	return all
}

// Counts are how many findings there are, by severity.
type Counts map[Severity]int

// String says it of each severity.
func (c Counts) String() string {
	var counts []string
	for _, severity := range Severities {
		counts = append(counts, fmt.Sprintf("%d %s", c[severity], strings.ToLower(string(severity))))
	}
	return strings.Join(counts, ", ")
}

func count(findings []Finding) Counts {
	counts := Counts{}
	for _, f := range findings {
		counts[f.Severity]++
	}
	return counts
}

// Counts are those of all that the report found, each once.
func (r Report) Counts() Counts { return count(once(r.Findings())) }

// once sorts findings, the worst first, and drops those that several platforms share.
func once(findings []Finding) []Finding {
	slices.SortFunc(findings, func(a, b Finding) int {
		return cmp.Or(
			slices.Index(Severities, a.Severity)-slices.Index(Severities, b.Severity),
			strings.Compare(a.Package, b.Package), strings.Compare(a.ID, b.ID),
			strings.Compare(a.Installed, b.Installed), strings.Compare(a.Where, b.Where),
		)
	})
	return slices.CompactFunc(findings, func(a, b Finding) bool {
		return a.ID == b.ID && a.Package == b.Package && a.Installed == b.Installed && a.Severity == b.Severity
	})
}

// VulnerableError stops the belt.
type VulnerableError struct {
	Findings []Finding
	Expired  []Exception // that would have covered one of them
}

// Error is the table of what, where, and fixed in which version.
func (e *VulnerableError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d findings of severity HIGH or CRITICAL:\n", len(e.Findings))
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "  SEVERITY\tID\tPACKAGE\tINSTALLED\tFIXED IN\tWHERE")
	for _, f := range e.Findings {
		fmt.Fprintf(w, "  %s\t%s\t%s\t%s\t%s\t%s\n", f.Severity, Plain(f.ID), Plain(f.Package), Plain(f.Installed), cmp.Or(Plain(f.Fixed), "none yet"), Plain(f.Where))
	}
	_ = w.Flush() // a strings.Builder does not fail
	for _, x := range e.Expired {
		fmt.Fprintf(&b, "The exception for %s in %s ended on %s.\n", Plain(x.ID), Plain(x.Package), x.Expires)
	}
	b.WriteString("Update what is affected, or add a reviewed exception with a reason and an end to " + ExceptionsFile + " of the GitOps tree.")
	return b.String()
}

// Plain keeps text of an image from steering a terminal or breaking the table.
func Plain(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
			return -1
		}
		return r
	}, text)
}
