package fleet

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// QuarantineFile holds the images that no cluster may run: a ReleasePolicy with nothing but
// the list. The steward adds entries, people lift them by a reviewed change.
const QuarantineFile = "components/policies/manifests/quarantine.yaml"

// Quarantined is an image that a canary condemned.
type Quarantined struct {
	Digest   string    `yaml:"digest"`
	App      string    `yaml:"app"`
	Version  string    `yaml:"version"`
	Cluster  string    `yaml:"cluster"` // whose canary it was
	Reason   string    `yaml:"reason"`  // one line for people
	Since    time.Time `yaml:"since"`   // when the canary was aborted, by that cluster's clock
	Evidence string    `yaml:"evidence"`
}

// Quarantine is the list, in the order of the file.
type Quarantine []Quarantined

// Has reports whether the list names a digest.
func (q Quarantine) Has(digest string) bool {
	_, ok := q.Find(digest)
	return ok
}

// Find returns the first entry of a digest.
func (q Quarantine) Find(digest string) (Quarantined, bool) {
	for _, entry := range q {
		if entry.Digest == digest && digest != "" {
			return entry, true
		}
	}
	return Quarantined{}, false
}

// quarantinePath is where the list is in its file.
var quarantinePath = []string{"spec", "quarantine"}

// ReadQuarantine reads a tree's list. A tree without the file quarantines nothing; one whose
// file cannot be read is an error, for nobody would know what is in it.
func ReadQuarantine(tree fs.FS) (Quarantine, error) {
	src, err := fs.ReadFile(tree, QuarantineFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, Problem{File: QuarantineFile, Message: "cannot be read: " + reason(err)}
	}
	return ParseQuarantine(src)
}

// ParseQuarantine is ReadQuarantine for bytes that are at hand.
func ParseQuarantine(src []byte) (Quarantine, error) {
	doc, err := parse(QuarantineFile, src)
	if err != nil {
		return nil, err
	}
	list := find(doc, quarantinePath...)
	if list == nil || list.Tag == "!!null" {
		return nil, nil
	}
	if list.Kind != yaml.SequenceNode {
		return nil, Problem{File: QuarantineFile, Line: list.Line, Message: "spec.quarantine is no list"}
	}
	var q Quarantine
	for _, node := range list.Content {
		var entry Quarantined
		if err := node.Decode(&entry); err != nil {
			p := yamlProblem(QuarantineFile, err)
			p.Line = max(p.Line, node.Line)
			return nil, p
		}
		if !digestPattern.MatchString(entry.Digest) {
			return nil, Problem{File: QuarantineFile, Line: node.Line, Message: fmt.Sprintf("%q is no digest", entry.Digest), Fix: "write sha256: and 64 hexadecimal digits"}
		}
		q = append(q, entry)
	}
	return q, nil
}

// emptyQuarantine is the file for a tree that has none yet.
const emptyQuarantine = `# Images that no cluster may run, because a canary condemned them. The steward adds an entry
# with the pull request that takes the image out of Git; the gate refuses the digest. Lift
# one by a pull request that removes its entry and says why the image is good after all.
apiVersion: omnivision.ai/v1alpha1
kind: ReleasePolicy
metadata:
  name: quarantine
spec:
  quarantine: []
`

// AddQuarantine returns the bytes of the list's file with one more entry at its end; nil
// stands for a tree without the file. Comments and order stay. An entry whose digest is
// there already changes nothing.
func AddQuarantine(src []byte, entry Quarantined) ([]byte, error) {
	if !digestPattern.MatchString(entry.Digest) {
		return nil, fmt.Errorf("quarantining %q: it is no digest", entry.Digest)
	}
	entry.Since = entry.Since.Truncate(time.Second) // as it is written
	if src == nil {
		src = []byte(emptyQuarantine)
	}
	before, err := ParseQuarantine(src)
	if err != nil {
		return nil, err
	}
	if before.Has(entry.Digest) {
		return src, nil
	}
	out, err := appendEntry(src, entry)
	if err != nil {
		return nil, fmt.Errorf("quarantining %s: %w", entry.Digest, err)
	}
	after, err := ParseQuarantine(out)
	if err != nil {
		return nil, fmt.Errorf("the edit would break the file: %w", err)
	}
	if len(after) != len(before)+1 || !slices.EqualFunc(after[:len(before)], before, Quarantined.equal) || !after[len(before)].equal(entry) {
		return nil, errors.New("the edit would change other entries: edit " + QuarantineFile + " by hand")
	}
	return out, onlyAppended(src, out)
}

func (q Quarantined) equal(other Quarantined) bool {
	same := q.Since.Equal(other.Since)
	q.Since, other.Since = time.Time{}, time.Time{}
	return same && q == other
}

func appendEntry(src []byte, entry Quarantined) ([]byte, error) {
	doc, err := parse(QuarantineFile, src)
	if err != nil {
		return nil, err
	}
	spec := find(doc, quarantinePath[0])
	if spec == nil || spec.Kind != yaml.MappingNode {
		return nil, errors.New("the file has no spec: restore it from history")
	}
	lines := lineStarts(src)
	for i := 0; i+1 < len(spec.Content); i += 2 {
		key, list := spec.Content[i], spec.Content[i+1]
		if key.Value != quarantinePath[1] {
			continue
		}
		if len(list.Content) == 0 {
			return fillEmpty(src, lines, key, list, entry)
		}
		if list.Style&yaml.FlowStyle != 0 {
			return nil, fmt.Errorf("line %d: the list is in brackets: write it with one entry after another", list.Line)
		}
		at, newline := endOfList(src, lines, list)
		text := entry.yaml(list.Column - 1)
		if newline {
			text = "\n" + strings.TrimSuffix(text, "\n")
		}
		return slices.Concat(src[:at], []byte(text), src[at:]), nil
	}
	return nil, errors.New("the file has no spec.quarantine: write it as []")
}

// fillEmpty turns `quarantine: []`, or a key without a value, into a list of one.
func fillEmpty(src []byte, lines []int, key, list *yaml.Node, entry Quarantined) ([]byte, error) {
	end, err := scalarEnd(src, lines, key)
	if err != nil {
		return nil, err
	}
	rest := src[end:]
	line := rest
	if i := bytes.IndexByte(rest, '\n'); i >= 0 {
		line = rest[:i]
	}
	value, comment, _ := strings.Cut(string(line), "#")
	if v := strings.TrimSpace(value); v != ":" && strings.ReplaceAll(v, " ", "") != ":[]" {
		return nil, fmt.Errorf("line %d: the empty list is written in a way that is not understood: write it as []", list.Line)
	}
	head := ":"
	if comment != "" {
		head += " #" + comment
	}
	tail := strings.TrimPrefix(string(rest[len(line):]), "\n")
	return slices.Concat(src[:end], []byte(head+"\n"+entry.yaml(key.Column+1)+tail)), nil
}

// endOfList is the offset behind the last line of a block list; newline reports that the
// file ends there without one.
func endOfList(src []byte, lines []int, list *yaml.Node) (at int, newline bool) {
	last := list.Content[len(list.Content)-1].Line // counts from 1
	for n := last + 1; n <= len(lines); n++ {
		text := lineAt(src, lines, n)
		trimmed := strings.TrimLeft(text, " ")
		if strings.TrimSpace(text) == "" {
			continue
		}
		if len(text)-len(trimmed) < list.Column {
			break
		}
		last = n
	}
	if last < len(lines) {
		return lines[last], false
	}
	return len(src), len(src) > 0 && src[len(src)-1] != '\n'
}

func lineAt(src []byte, lines []int, n int) string {
	end := len(src)
	if n < len(lines) {
		end = lines[n]
	}
	return strings.TrimRight(string(src[lines[n-1]:end]), "\r\n")
}

func (q Quarantined) yaml(indent int) string {
	var b strings.Builder
	mark := strings.Repeat(" ", indent) + "- "
	for _, field := range []struct{ key, value string }{
		{"digest", q.Digest}, {"app", q.App}, {"version", q.Version}, {"cluster", q.Cluster},
		{"reason", q.Reason}, {"since", q.Since.UTC().Format(time.RFC3339)}, {"evidence", q.Evidence},
	} {
		if field.value == "" {
			continue
		}
		fmt.Fprintf(&b, "%s%s: %s\n", mark, field.key, quote(field.value))
		mark = strings.Repeat(" ", indent+2)
	}
	return b.String()
}

// onlyAppended proves that nothing but the list's end is new.
func onlyAppended(before, after []byte) error {
	a, err := parse(QuarantineFile, before)
	if err != nil {
		return err
	}
	b, err := parse(QuarantineFile, after)
	if err != nil {
		return err
	}
	list := find(b, quarantinePath...)
	list.Content = list.Content[:len(list.Content)-1]
	if len(list.Content) == 0 { // `[]` and an empty value are the same nothing
		empty := find(a, quarantinePath...)
		*list = *empty
	}
	return same(a, b, nil, nil)
}

// quarantined refuses a tree that wants what it condemns.
func (v *validator) quarantined() {
	list, err := ReadQuarantine(v.tree)
	if err != nil {
		v.add(err)
		return
	}
	for _, c := range v.fleet.Clusters {
		for _, app := range v.fleet.Apps {
			release, err := ReadRelease(v.tree, app, c.Name)
			if err != nil {
				continue // reported already
			}
			if entry, ok := list.Find(release.Digest); ok {
				v.add(Problem{
					File: app.ReleaseFile(c.Name), Message: fmt.Sprintf("wants %s, which is quarantined: %s", release.Tag, entry.Reason),
					Fix: "release another image, or lift the quarantine in " + QuarantineFile + " with a reason",
				})
			}
		}
	}
}
