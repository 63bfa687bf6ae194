// Package docs proves what the documents say of the code, as far as a program can.
package docs

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const root = ".."

// pitfalls is how many docs/pitfalls.md lists.
const pitfalls = 45

var (
	testName = regexp.MustCompile("`((?:Test|Fuzz|Benchmark)[A-Z][A-Za-z0-9_]*)(?:/([A-Za-z0-9_]+))?`")
	// named are tests followed by their file or folder, in parentheses.
	named = regexp.MustCompile("((?:`(?:Test|Fuzz)[A-Za-z0-9_/]+`(?:, | and )?)+) \\(([a-z][a-z0-9]*(?:/[A-Za-z0-9_./-]+)?)[,)]")
	row   = regexp.MustCompile(`(?m)^\| P(\d+) \| (.+?) \| (.+) \|$`)
	open  = regexp.MustCompile(`(?i)\bopen\b`)
)

// source is a file with tests: their names, and all string literals, among
// which are the names of its subtests.
type source struct {
	path     string // from the root of the repository
	tests    map[string]bool
	literals map[string]bool
}

// sources reads every file with tests, whatever its build tags.
func sources(t *testing.T) (found []source) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); name == "testdata" || path != root && strings.HasPrefix(name, ".") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		s, err := read(path)
		found = append(found, s)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func read(path string) (source, error) {
	s := source{tests: map[string]bool{}, literals: map[string]bool{}}
	var err error
	if s.path, err = filepath.Rel(root, path); err != nil {
		return s, err
	}
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	if err != nil {
		return s, fmt.Errorf("reading the tests of %s: %w", path, err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			if n.Recv == nil {
				s.tests[n.Name.Name] = true
			}
		case *ast.BasicLit:
			if n.Kind == token.STRING {
				s.literals[strings.Trim(n.Value, "\"`")] = true
			}
		}
		return true
	})
	return s, nil
}

// missing says what is wrong with the tests that a text names; nothing, if all
// of them exist, and where it says.
func missing(text string, all []source) (wrong []string) {
	for _, m := range testName.FindAllStringSubmatch(text, -1) {
		if !exists(m[1], m[2], "", all) {
			wrong = append(wrong, "there is no test "+strings.Trim(m[0], "`"))
		}
	}
	for _, group := range named.FindAllStringSubmatch(text, -1) {
		place := group[2]
		if _, err := os.Stat(filepath.Join(root, place)); err != nil {
			wrong = append(wrong, "there is no "+place)
			continue
		}
		for _, m := range testName.FindAllStringSubmatch(group[1], -1) {
			if !exists(m[1], m[2], place, all) {
				wrong = append(wrong, fmt.Sprintf("%s is not in %s", m[1], place))
			}
		}
	}
	return wrong
}

// exists reports whether there is such a test, in the file or folder place if
// one is given.
func exists(test, subtest, place string, all []source) bool {
	return slices.ContainsFunc(all, func(s source) bool {
		here := place == "" || s.path == place || strings.HasPrefix(s.path, place+"/")
		return here && s.tests[test] && (subtest == "" || s.literals[subtest])
	})
}

func TestEveryPitfallIsAnsweredOrSaidToBeOpen(t *testing.T) {
	text, err := os.ReadFile("pitfalls.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := row.FindAllStringSubmatch(string(text), -1)
	if len(rows) != pitfalls {
		t.Errorf("%d pitfalls, want %d", len(rows), pitfalls)
	}
	for i, r := range rows {
		if want := fmt.Sprint(i + 1); r[1] != want {
			t.Errorf("P%s is where P%s should be", r[1], want)
		}
		if !testName.MatchString(r[3]) && !open.MatchString(r[3]) {
			t.Errorf("P%s names no test, and does not say that it is open: %s", r[1], r[3])
		}
	}
}

func TestEveryTestThatADocumentNamesExists(t *testing.T) {
	documents, err := filepath.Glob("*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"} {
		documents = append(documents, filepath.Join(root, name))
	}
	all := sources(t)
	for _, document := range documents {
		text, err := os.ReadFile(document)
		if err != nil {
			t.Fatal(err)
		}
		for i, line := range strings.Split(string(text), "\n") {
			for _, wrong := range missing(line, all) {
				t.Errorf("%s:%d: %s; correct the document", document, i+1, wrong)
			}
		}
	}
}

func TestATestThatIsMissingIsNoticed(t *testing.T) {
	all := []source{
		{"fleet/a_test.go", map[string]bool{"TestA": true, "TestB": true}, map[string]bool{"Up": true}},
		{"fleet/b_test.go", map[string]bool{"FuzzC": true}, nil},
	}
	here := "docs/pitfalls_test.go"
	all = append(all, source{here, map[string]bool{"TestD": true}, nil})
	for text, want := range map[string]string{
		"Proven by `TestA`, `TestB` and `FuzzC`.": "",
		"`TestA/Up`; `waitFor` (nowhere.go)":      "",
		"`TestX`":                                 "there is no test TestX",
		"`TestA/Down`":                            "there is no test TestA/Down",
		"`TestD` (" + here + ")":                  "",
		"`TestA`, `TestD` (" + here + ", with x)": "TestA is not in " + here,
		"`TestD` (docs)":                          "",
		"`TestD` (docs/none_test.go)":             "there is no docs/none_test.go",
	} {
		if got := strings.Join(missing(text, all), "; "); got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}
