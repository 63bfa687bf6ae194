package advisories

import (
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"
)

//go:embed published/*.json
var published embed.FS

// advisory is one file of the folder published: the part of a record of the Open Source
// Vulnerability format (https://ossf.github.io/osv-schema/) that the database needs.
type advisory struct {
	ID         string     `json:"id"`
	Aliases    []string   `json:"aliases"`
	Summary    string     `json:"summary"`
	Published  time.Time  `json:"published"`
	Affected   []affected `json:"affected"`
	References []struct {
		URL string `json:"url"`
	} `json:"references"`
	DatabaseSpecific struct {
		Severity string `json:"severity"` // as GitHub writes it: MODERATE is Trivy's MEDIUM
	} `json:"database_specific"`
}

type affected struct {
	Package struct {
		Ecosystem string `json:"ecosystem"` // Go or Debian:12
		Name      string `json:"name"`      // module path, or Debian's source package
	} `json:"package"`
	Ranges []struct {
		Events []event `json:"events"`
	} `json:"ranges"`
}

// event starts a range of affected versions, or ends it before a version.
type event struct {
	Introduced string `json:"introduced"`
	Fixed      string `json:"fixed"`
}

// span is a range of affected versions: from is "0" for the first, until is empty
// where there is no fixed version yet.
type span struct{ from, until string }

// constraint is the range as Trivy's database has it. From the first version on nothing
// is said of the start: a pseudo-version v0.0.0-… is older than 0.
func (s span) constraint() string {
	switch {
	case s.until == "":
		return ">=" + s.from
	case s.from == "0":
		return "<" + s.until
	}
	return ">=" + s.from + ", <" + s.until
}

// vulnerability is the name that scanners show: the CVE's where there is one.
func (a advisory) vulnerability() string {
	for _, alias := range a.Aliases {
		if strings.HasPrefix(alias, "CVE-") {
			return alias
		}
	}
	return a.ID
}

// others are the further names of the same advisory.
func (a advisory) others() []string {
	names := append([]string{a.ID}, a.Aliases...)
	return slices.DeleteFunc(names, func(name string) bool { return name == a.vulnerability() })
}

func (a advisory) urls() []string {
	var urls []string
	for _, reference := range a.References {
		urls = append(urls, reference.URL)
	}
	return urls
}

// read reads all advisories of a folder.
func read(folder fs.FS) ([]advisory, error) {
	files, err := fs.Glob(folder, "*.json")
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, errors.New("there is no advisory")
	}
	var (
		all  []advisory
		from = map[string]string{} // vulnerability to file
	)
	for _, file := range files {
		src, err := fs.ReadFile(folder, file)
		if err != nil {
			return nil, err
		}
		a, err := parse(src)
		if err != nil {
			return nil, fmt.Errorf("advisory %s: %w", file, err)
		}
		name := a.vulnerability()
		if stem := strings.TrimSuffix(path.Base(file), ".json"); stem != name {
			return nil, fmt.Errorf("advisory %s: id and aliases make it %s: name the file so", file, name)
		}
		if other, twice := from[name]; twice {
			return nil, fmt.Errorf("advisory %s: %s is described by %s already", file, name, other)
		}
		from[name] = file
		all = append(all, a)
	}
	return all, nil
}

// parse reads an advisory. Errors name the field: a slip must not turn into an advisory
// that matches nothing.
func parse(src []byte) (advisory, error) {
	var a advisory
	if err := json.Unmarshal(src, &a); err != nil {
		return advisory{}, err
	}
	switch {
	case !plainName(a.ID):
		return advisory{}, errors.New("id is missing or no plain name")
	case slices.ContainsFunc(a.Aliases, func(alias string) bool { return !plainName(alias) }):
		return advisory{}, errors.New("aliases has one that is no plain name")
	case strings.TrimSpace(a.Summary) == "":
		return advisory{}, errors.New("summary is missing")
	case a.Published.IsZero():
		return advisory{}, errors.New("published is missing: a time such as 2026-11-24T00:00:00Z")
	case len(a.Affected) == 0:
		return advisory{}, errors.New("affected is missing")
	case len(a.References) == 0:
		return advisory{}, errors.New("references is missing: where it was published")
	}
	if _, err := severity(a.DatabaseSpecific.Severity); err != nil {
		return advisory{}, fmt.Errorf("database_specific.severity: %w", err)
	}
	for i, reference := range a.References {
		if !strings.HasPrefix(reference.URL, "https://") {
			return advisory{}, fmt.Errorf("references[%d].url: %q is no https address", i, reference.URL)
		}
	}
	for i, on := range a.Affected {
		if err := on.check(); err != nil {
			return advisory{}, fmt.Errorf("affected[%d].%w", i, err)
		}
	}
	return a, nil
}

func plainName(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return r != '-' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
	})
}

// check and what it calls begin their errors with the field.
func (on affected) check() error {
	if _, err := bucketOf(on.Package.Ecosystem); err != nil {
		return fmt.Errorf("package.ecosystem: %w", err)
	}
	if on.Package.Name == "" || strings.ContainsAny(on.Package.Name, " \t\n@") {
		return errors.New("package.name is missing, or no name of a package")
	}
	spans, err := on.spans()
	if err == nil && len(spans) == 0 {
		err = errors.New("ranges is missing")
	}
	if err == nil && strings.HasPrefix(on.Package.Ecosystem, debian) && (len(spans) > 1 || spans[0].from != "0") {
		err = errors.New("ranges: of a Debian package there is one, from version 0: Trivy's database knows only the version that fixes it")
	}
	return err
}

func (on affected) spans() ([]span, error) {
	var spans []span
	for i, r := range on.Ranges {
		open := false // whether the last span waits for its end
		for j, e := range r.Events {
			switch {
			case e.Introduced != "" && e.Fixed == "" && !open && version(e.Introduced):
				spans, open = append(spans, span{from: e.Introduced}), true
			case e.Fixed != "" && e.Introduced == "" && open && version(e.Fixed):
				spans[len(spans)-1].until, open = e.Fixed, false
			default:
				return nil, fmt.Errorf("ranges[%d].events[%d]: want introduced and fixed by turns, each with a version without v in front", i, j)
			}
		}
	}
	return spans, nil
}

func version(s string) bool {
	return s[0] >= '0' && s[0] <= '9' && !strings.ContainsAny(s, " ,|<>=")
}
