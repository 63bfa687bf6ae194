package fleet

import (
	"strings"
	"testing"
	"testing/fstest"
	"time"
)

func entry(n string) Quarantined {
	return Quarantined{
		Digest: "sha256:" + strings.Repeat(n, 64), App: "omnivision-worker", Version: "0.1.0-5" + n, Cluster: "cluster-aws",
		Reason: `Xid 31: "page fault" # no comment`, Since: time.Date(2026, 11, 27, 2, 0, 0, 0, time.UTC), Evidence: "https://git.example.com/pulls/1",
	}
}

func TestAddQuarantineAppendsAndLeavesTheRest(t *testing.T) {
	const head = "# top\nkind: ReleasePolicy\nspec: # of it\n"
	one := "    - digest: \"" + entry("1").Digest + "\" # by hand\n      app: omnivision-worker\n      reason: >\n        went\n        on\n\n        and on\n"
	for _, test := range []struct{ name, src, keep string }{
		{"no file yet", "", "# Images that no cluster may run"},
		{"empty list", head + "  quarantine: [] # none\n# end\n", "  quarantine: # none\n    - digest"},
		{"empty list at the end of the file", head + "  quarantine: []", head},
		{"no value", head + "  quarantine:\n", head},
		{"one entry over several lines", head + "  quarantine:\n    # first\n" + one + "  # after\n  mode: warn\n", one},
		{"no newline at the end", head + "  quarantine:\n  - digest: " + entry("1").Digest, head},
		{"a comment at the end", head + "  quarantine:\n" + one + "\n# end\n", "\n# end\n"},
		{"Windows line ends", strings.ReplaceAll(head+"  quarantine:\n"+one, "\n", "\r\n"), "by hand\r\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var src []byte
			if test.src != "" {
				src = []byte(test.src)
			}
			before, err := ParseQuarantine(src)
			if err != nil {
				t.Fatal(err)
			}
			out, err := AddQuarantine(src, entry("2"))
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(out), test.keep) {
				t.Errorf("became\n%s\nwithout\n%s", out, test.keep)
			}
			after, err := ParseQuarantine(out)
			if err != nil || len(after) != len(before)+1 || !after[len(before)].equal(entry("2")) {
				t.Errorf("reads as %+v, %v", after, err)
			}
			again, err := AddQuarantine(out, entry("2"))
			if err != nil || string(again) != string(out) {
				t.Errorf("added again it became\n%s\n%v", again, err)
			}
		})
	}
}

func TestAddQuarantineRefusesWhatAPersonShouldLookAt(t *testing.T) {
	for _, test := range []struct{ name, src string }{
		{"a list in brackets", "spec:\n  quarantine: [{digest: " + entry("1").Digest + "}]\n"},
		{"no spec", "kind: ReleasePolicy\n"},
		{"no list", "spec:\n  mode: warn\n"},
		{"an entry that is no digest", "spec:\n  quarantine:\n    - digest: sha256:abc\n"},
		{"broken YAML", "spec: [\n"},
		{"no list but text", "spec:\n  quarantine: none\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if out, err := AddQuarantine([]byte(test.src), entry("2")); err == nil {
				t.Errorf("became\n%s", out)
			}
		})
	}
	if _, err := AddQuarantine(nil, Quarantined{Digest: "latest"}); err == nil {
		t.Error("something that is no digest was quarantined")
	}
}

func FuzzAddQuarantine(f *testing.F) {
	f.Add([]byte("spec:\n  quarantine: []\n"), "because")
	f.Add([]byte("spec:\n  quarantine:\n  - digest: "+entry("1").Digest+"\n    reason: |\n      a\n# x"), "a\nb")
	f.Fuzz(func(t *testing.T, src []byte, why string) {
		add := entry("2")
		add.Reason = why
		before, err := ParseQuarantine(src)
		if err != nil {
			return
		}
		out, err := AddQuarantine(src, add)
		if err != nil {
			return
		}
		after, err := ParseQuarantine(out)
		if err != nil || !after.Has(add.Digest) || len(after) < len(before) {
			t.Errorf("%q became %q: %v", src, out, err)
		}
	})
}

func TestTreeThatWantsWhatItQuarantinesIsInvalid(t *testing.T) {
	gitops := tree(t)
	replace(t, gitops, "apps/omnivision-worker/cluster-gcp.yaml", `digest: ""`, `digest: "`+entry("1").Digest+`"`)
	list, err := AddQuarantine(nil, entry("1"))
	if err != nil {
		t.Fatal(err)
	}
	gitops[QuarantineFile] = &fstest.MapFile{Data: list}
	for _, p := range Validate(gitops) {
		if p.File == "apps/omnivision-worker/cluster-gcp.yaml" && strings.Contains(p.Message, "quarantined") {
			return
		}
	}
	t.Errorf("problems are %v", Validate(gitops))
}

func TestWavesHandOverAsFleetYAMLSays(t *testing.T) {
	f, err := Load(tree(t))
	if err != nil {
		t.Fatal(err)
	}
	if got := f.Handover(1); got.Soak != 30*time.Minute || got.FailureBudget != 0 {
		t.Errorf("wave 1 is %+v", got)
	}
	if got := f.Handover(2); got.Soak != DefaultSoak || got.FailureBudget != 0 {
		t.Errorf("a wave that is not listed is %+v", got)
	}
	for _, test := range []struct{ name, old, new, want string }{
		{"unknown wave", "  - wave: 1\n    soak", "  - wave: 7\n    soak", "wave 7 has no cluster"},
		{"a soak that is no time", "soak: 30m", "soak: long", "long"},
		{"a soak below zero", "soak: 30m", "soak: -1m", "soaks for -1m0s"},
		{"a budget of everything", "failureBudget: 0", "failureBudget: 1", "wave 1 of 1 clusters has a failure budget of 1"},
		{"unknown key", "failureBudget: 0", "failurebudget: 0", `unknown key "failurebudget"`},
		{"unknown pull requests", "autoMerge: []", "autoMerge: [all]", `merges "all" by itself`},
	} {
		t.Run(test.name, func(t *testing.T) {
			gitops := tree(t)
			replace(t, gitops, File, test.old, test.new)
			if _, err := Load(gitops); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}
