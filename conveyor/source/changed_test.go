package source_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/omnivision/omnivision/conveyor/source"
)

func TestVersionLeadsBackToItsCommit(t *testing.T) {
	c := newCheckout(t)
	want := map[string]string{"0.1.0-1": c.commit(t, "a", "1", "one"), "0.1.0-2": c.commit(t, "a", "2", "two")}
	c.git(t, "checkout", "--quiet", "-b", "side")
	c.commit(t, "b", "1", "aside")
	c.git(t, "checkout", "--quiet", "main")
	want["0.1.0-3"] = c.commit(t, "a", "3", "three")
	c.git(t, "merge", "--quiet", "--no-ff", "-m", "merge", "side")
	want["0.1.0-5"] = c.git(t, "rev-parse", "HEAD") // the merge, and what it brought
	want["0.1.0-6"] = c.commit(t, "a", "6", "six")
	for version, commit := range want {
		got, err := source.At(t.Context(), c.dir, version, "HEAD")
		if err != nil || got != commit {
			t.Errorf("%s is %s, %v; want %s", version, got, err, commit)
		}
	}
	for _, version := range []string{"0.1.0-4", "0.1.0-7", "0.1.0-0", "0.1.0", "0.2.0-3", "", "latest"} {
		if got, err := source.At(t.Context(), c.dir, version, "HEAD"); !errors.Is(err, source.ErrNoSuchVersion) {
			t.Errorf("%q is %s, %v", version, got, err)
		}
	}
}

func TestChangedFilesHaveBothNamesOfARename(t *testing.T) {
	c := newCheckout(t)
	first := c.commit(t, "old name", "the same", "one")
	c.git(t, "mv", "old name", "new\tname")
	second := c.commit(t, "other", "", "two")
	got, err := source.Changed(t.Context(), c.dir, first, second)
	if err != nil || !slices.Equal(got, []string{"new\tname", "old name", "other"}) {
		t.Errorf("changed are %q, %v", got, err)
	}
	if _, err := source.Changed(t.Context(), c.dir, "--output=x", second); err == nil {
		t.Error("an option is taken for a commit")
	}
}
