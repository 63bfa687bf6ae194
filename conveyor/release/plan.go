package release

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/omnivision/omnivision/conveyor/propose"
	"github.com/omnivision/omnivision/plan"
	"github.com/omnivision/omnivision/plan/chart"
	"github.com/omnivision/omnivision/plan/report"
)

// plan says as Markdown what a change does to each cluster. The same change is the same
// text, whenever it is planned: a release that is run again must propose nothing new.
func (r Release) plan(ctx context.Context, change propose.Change, tell func(string)) (string, error) {
	compared := r.forecast.of(change, tell)
	if compared == nil {
		var err error
		if compared, err = plan.Compare(ctx, change.Base, change.Head, plan.Options{Charts: toldApart{r.Charts, tell}}); err != nil {
			return "", err
		}
	}
	if err := rendered(compared); err != nil {
		return "", err
	}
	text := report.Markdown(compared, propose.MaxPlan)
	// The marker is how the plan's own comment is found.
	return strings.TrimPrefix(text, report.Marker+"\n"), nil
}

// rendered is an error that names what no cluster could be given.
func rendered(p *plan.Plan) error {
	var failed []error
	for _, cluster := range p.Clusters {
		for _, app := range cluster.Applications {
			if app.Status == plan.Failed {
				failed = append(failed, fmt.Errorf("%s cannot render its Application %s: %s", cluster.Name, app.Name, app.Error))
			}
		}
	}
	if len(failed) == 0 {
		return nil
	}
	return fmt.Errorf("%w\nsee the same with `omnivision plan`, and mend the GitOps tree or the chart first", errors.Join(failed...))
}

// toldApart keeps out of the plan what depends on when and where it is made, such as a
// registry that was away: whoever runs the release is told of it instead.
type toldApart struct {
	plan.ChartSource
	tell func(string)
}

// Chart implements plan.ChartSource.
func (s toldApart) Chart(ctx context.Context, ref chart.Reference) (*chart.Loaded, error) {
	loaded, err := s.ChartSource.Chart(ctx, ref)
	if err != nil || loaded.Warning == "" {
		return loaded, err
	}
	s.tell(loaded.Warning)
	quiet := *loaded
	quiet.Warning = ""
	return &quiet, nil
}
