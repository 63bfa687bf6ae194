package fleet

import (
	"bytes"
	"strings"
	"testing"
)

const digest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestSetReleaseChangesTwoValuesAndNothingElse(t *testing.T) {
	tree := tree(t)
	app, err := load(t, tree).App("omnivision-worker")
	if err != nil {
		t.Fatal(err)
	}
	before := tree[app.ReleaseFile("cluster-aws")].Data
	after, err := SetRelease(before, app, Release{Tag: "1.10", Digest: digest})
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Replace(strings.Replace(string(before), `"0.1.0"`, `"1.10"`, 1), `digest: ""`, `digest: "`+digest+`"`, 1)
	if string(after) != want {
		t.Errorf("got\n%s\nwant\n%s", after, want)
	}
	r, err := ParseRelease("x", after, app)
	if err != nil || r != (Release{Tag: "1.10", Digest: digest}) {
		t.Errorf("read back %+v, %v", r, err)
	}
}

func TestSetReleaseRefusesHalfARelease(t *testing.T) {
	app := App{Name: "a", ValuePath: "a"}
	for _, r := range []Release{{Tag: "1"}, {Digest: digest}, {Tag: "latest", Digest: digest}, {Tag: "1", Digest: "sha256:short"}, {Tag: "no tag", Digest: digest}} {
		if _, err := SetRelease([]byte("a:\n  tag: \"0\"\n  digest: \"\"\n"), app, r); err == nil {
			t.Errorf("%+v was accepted", r)
		}
	}
}

func TestSet(t *testing.T) {
	for _, test := range []struct{ name, src, path, value, want string }{
		{"comments and quoting stay", "# top\na: 'x'  # why\n\nb:\n    - 1.10 # one\n", "a", "y", "# top\na: \"y\"  # why\n\nb:\n    - 1.10 # one\n"},
		{"plain becomes quoted", "a:\n  b: 1.9 # c\n", "a.b", "1.10", "a:\n  b: \"1.10\" # c\n"},
		{"single quotes inside", "a: 'it''s' # c\n", "a", "x", "a: \"x\" # c\n"},
		{"escaped quotes inside", `a: "\"" # c` + "\n", "a", `\"`, `a: "\\\"" # c` + "\n"},
		{"no value yet", "a:\nb: 1\n", "a", "x", "a: \"x\"\nb: 1\n"},
		{"no value yet, with a comment", "a:   # later\nb: 1\n", "a", "x", "a: \"x\"   # later\nb: 1\n"},
		{"null", "a: ~\n", "a", "x", "a: \"x\"\n"},
		{"characters of several bytes before it", "ü: {}\n\"é\": 'x'\n", "é", "y", "ü: {}\n\"é\": \"y\"\n"},
		{"Windows line ends", "a: x\r\nb: y\r\n", "a", "z", "a: \"z\"\r\nb: y\r\n"},
		{"no line end", "a: x", "a", "z", "a: \"z\""},
		{"a key beside its siblings", "a:\n  # the tag\n  tag: x # y\n\nb: 1\n", "a.digest", "d", "a:\n  # the tag\n  tag: x # y\n  digest: \"d\"\n\nb: 1\n"},
		{"a key at the end without line end", "a:\n  tag: x", "a.digest", "d", "a:\n  tag: x\n  digest: \"d\""},
		{"a key before siblings of several lines", "a:\n  b:\n    c: 1\n", "a.digest", "d", "a:\n  digest: \"d\"\n  b:\n    c: 1\n"},
		{"control characters", "a: x\n", "a", "\x7f\u0085\ufeff\n", "a: \"\\u007f\\u0085\\ufeff\\n\"\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := Set([]byte(test.src), Change{Path: strings.Split(test.path, "."), Value: test.value})
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != test.want {
				t.Errorf("got\n%q\nwant\n%q", got, test.want)
			}
		})
	}
}

func TestSetRefusesWhatAPersonShouldLookAt(t *testing.T) {
	for _, test := range []struct{ name, src, path string }{
		{"a block of text", "a: |\n  x\n", "a"},
		{"a value over two lines", "a: \"x\n  y\"\n", "a"},
		{"a plain value over two lines", "a: x\n  y\n", "a"},
		{"a mapping", "a:\n  b: 1\n", "a"},
		{"a parent that is not there", "a:\n  b: 1\n", "c.d"},
		{"a parent in braces, for a new key", "a: {b: 1}\n", "a.c"},
		{"an anchored value", "a: &x y\nb: *x\n", "a"},
		{"an anchored mapping", "a: &x\n  b: 1\nc: *x\n", "a.b"},
		{"an alias", "a: &x\n  b: 1\nc: *x\n", "c.b"},
		{"a typed value", "a: !!str 1\n", "a"},
		{"two documents", "a: 1\n---\na: 2\n", "a"},
		{"the same key twice", "a: 1\na: 2\n", "a"},
		{"nothing", "", "a"},
		{"no YAML", "a: [\n", "a"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got, err := Set([]byte(test.src), Change{Path: strings.Split(test.path, "."), Value: "v"}); err == nil {
				t.Errorf("made it\n%s", got)
			}
		})
	}
}

// Whatever the file and the value: either an error, or a file that holds the value at the
// path, is otherwise equal, and stays as it is when the edit is repeated.
func FuzzSet(f *testing.F) {
	for _, src := range []string{
		"a:\n  b: 1.10 # c\n", "a: {b: 'x'}\n", "a:\n  b:\n", "# x\na:\n  c: |\n    t\n  b: \"\\u00e9\"\n",
		"a:\r\n  b: x\r\n", "- a\n", "a:\n  é: ü\n  b: x", "? a\n: b: 1\n", "a:\n  <<: {b: 1}\n", "a:\n\tb: 1\n", "\ufeffa:\n  b: 1\n",
	} {
		for _, value := range []string{"1.10", "", "\"'#: \\", "\x00\x7f\u2028\u0085", "yes"} {
			f.Add(src, value)
		}
	}
	f.Fuzz(func(t *testing.T, src, value string) {
		change := Change{Path: []string{"a", "b"}, Value: value}
		got, err := Set([]byte(src), change)
		if err != nil {
			return
		}
		doc, err := parse("x", got)
		if err != nil {
			t.Fatalf("%q became %q: %v", src, got, err)
		}
		if node := find(doc, "a", "b"); node == nil || node.Value != value || node.Tag != "!!str" {
			t.Fatalf("%q became %q, which does not hold %q", src, got, value)
		}
		again, err := Set(got, change)
		if err != nil || !bytes.Equal(again, got) {
			t.Fatalf("%q, again: %q, %v", got, again, err)
		}
		for _, comment := range strings.SplitAfter(src, "\n") {
			if strings.HasPrefix(strings.TrimSpace(comment), "#") && !bytes.Contains(got, []byte(comment)) {
				t.Fatalf("%q lost the comment %q: %q", src, comment, got)
			}
		}
	})
}
