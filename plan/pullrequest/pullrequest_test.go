package pullrequest

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/omnivision/omnivision/forge"
	"github.com/omnivision/omnivision/plan"
)

// pull is one pull request.
type pull struct {
	head     string
	comment  string
	comments int
	statuses map[string]forge.Status
	fail     string
}

func (p *pull) PullRequest(_ context.Context, number int64) (forge.PullRequest, error) {
	return forge.PullRequest{Number: number, HeadSHA: p.head}, p.failing("read")
}

func (p *pull) Comment(_ context.Context, _ int64, _, body string) (forge.Comment, error) {
	p.comment = body
	p.comments++
	return forge.Comment{URL: "https://forge.example/pulls/7#comment"}, p.failing("comment")
}

func (p *pull) SetStatus(_ context.Context, sha string, s forge.Status) error {
	if p.statuses == nil {
		p.statuses = map[string]forge.Status{}
	}
	p.statuses[sha] = s
	return p.failing("status")
}

func (p *pull) failing(what string) error {
	if p.fail == what {
		return errors.New(what + " is refused")
	}
	return nil
}

func planned(status plan.Status) *plan.Plan {
	return &plan.Plan{Clusters: []plan.Cluster{{Name: "cluster-aws", Status: status, Applications: []plan.Application{{Name: "platform", Status: status}}}}}
}

func TestThePlanIsACommentAndAStatus(t *testing.T) {
	for what, tt := range map[string]struct {
		post        func(f Forge, target Target) error
		state       forge.StatusState
		description string
		comment     string
	}{
		"a plan": {
			func(f Forge, target Target) error { return Plan(t.Context(), f, target, planned(plan.Changed)) },
			forge.Success, "1 of 1 cluster", "### Plan: 1 of 1 cluster",
		},
		"a plan that cannot be rendered": {
			func(f Forge, target Target) error { return Plan(t.Context(), f, target, planned(plan.Failed)) },
			forge.Failure, "cannot be rendered: cluster-aws/platform", "platform",
		},
		"no plan": {
			func(f Forge, target Target) error {
				return Refusal(t.Context(), f, target, errors.New("fleet.yaml:3: ``` @everyone\nunknown key"))
			},
			forge.Failure, "there is no plan: fleet.yaml:3: ``` @everyone unknown key", "````\nfleet.yaml:3: ``` @everyone\nunknown key\n````",
		},
	} {
		t.Run(what, func(t *testing.T) {
			f := &pull{head: "abc"}
			if err := tt.post(f, Target{Number: 7, Head: "abc"}); err != nil {
				t.Fatal(err)
			}
			got := f.statuses["abc"]
			if got.State != tt.state || !strings.Contains(got.Description, tt.description) || got.Context != StatusContext || !strings.HasSuffix(got.URL, "#comment") {
				t.Errorf("the status is %+v", got)
			}
			if !strings.Contains(f.comment, tt.comment) {
				t.Errorf("the comment lacks %q:\n%s", tt.comment, f.comment)
			}
		})
	}
}

func TestALateRunLeavesTheNewerPlan(t *testing.T) {
	f := &pull{head: "newer"}
	if err := Plan(t.Context(), f, Target{Number: 7, Head: "older"}, planned(plan.Changed)); err != nil {
		t.Fatal(err)
	}
	if f.comments != 0 || f.statuses["older"].State != forge.Success || f.statuses["older"].URL != "" {
		t.Errorf("comments %d, statuses %+v", f.comments, f.statuses)
	}
}

func TestNoSuccessWithoutTheComment(t *testing.T) {
	for _, step := range []string{"read", "comment", "status"} {
		f := &pull{head: "abc", fail: step}
		err := Plan(t.Context(), f, Target{Number: 7, Head: "abc"}, planned(plan.Changed))
		if err == nil || !strings.Contains(err.Error(), step+" is refused") {
			t.Errorf("%s: the error is %v", step, err)
		}
		if step != "status" && len(f.statuses) > 0 {
			t.Errorf("%s fails, and the status is %+v", step, f.statuses)
		}
	}
}

func TestALongReasonFitsIntoAComment(t *testing.T) {
	f := &pull{head: "abc"}
	if err := Refusal(t.Context(), f, Target{Number: 7, Head: "abc"}, errors.New(strings.Repeat("`ä", 200000))); err != nil {
		t.Fatal(err)
	}
	if n := len([]rune(f.comment)); n > limit {
		t.Errorf("the comment has %d characters", n)
	}
	if n := len([]rune(f.statuses["abc"].Description)); n > 140 {
		t.Errorf("the description has %d characters", n)
	}
}
