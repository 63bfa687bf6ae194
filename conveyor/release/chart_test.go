package release

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/omnivision/omnivision/conveyor"
	"github.com/omnivision/omnivision/conveyor/chart"
	"github.com/omnivision/omnivision/conveyor/sign"
	"github.com/omnivision/omnivision/conveyor/source"
	"github.com/omnivision/omnivision/conveyor/verify"
)

const chartPath = "charts/omnivision-platform"

// newChartSite is a site whose source has the platform's chart, and a registry for it.
func newChartSite(t *testing.T) (*site, name.Repository) {
	t.Helper()
	s := newSite(t)
	check(t, os.CopyFS(filepath.Join(s.dir, chartPath), os.DirFS("../../"+chartPath)))
	s.commit("a chart")
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	repository, err := name.NewRepository(strings.TrimPrefix(server.URL, "http://")+"/omnivision/charts/omnivision-platform", name.Insecure)
	check(t, err)
	return s, repository
}

func (s *site) chart(repository name.Repository) Chart {
	s.t.Helper()
	revision, err := source.Read(s.t.Context(), s.dir)
	check(s.t, err)
	return Chart{
		Name: "omnivision-platform", Path: chartPath, Dir: s.dir, Source: "https://github.com/omnivision/omnivision", Revision: revision,
		Invocation: "https://github.com/run/1", Repository: repository, Registry: []remote.Option{remote.WithRetryPredicate(func(error) bool { return false })},
		Signer: func(context.Context) (*sign.Signer, error) { s.signed++; return s.signer, nil },
		Policy: func(verify.Identity) verify.Policy { return s.signer.Policy() },
	}
}

func (s *site) publish(c Chart) ([]conveyor.Outcome, error) {
	s.t.Helper()
	belt, err := c.Belt(s.t.Context(), s.store, &watcher{})
	if err != nil {
		return nil, err
	}
	return belt.Run(s.t.Context(), "")
}

func TestChartIsPublishedAndSignedOnce(t *testing.T) {
	s, repository := newChartSite(t)
	outcomes, err := s.publish(s.chart(repository))
	check(t, err)
	var published Published
	check(t, json.Unmarshal(outcomes[0].Result, &published))
	packed, err := chart.Pack("../../" + chartPath)
	check(t, err)
	if published.Digest != packed.Digest || published.Tag != packed.Tag() || outcomes[0].Version != packed.Version {
		t.Errorf("published is %+v, the chart here is %s", published, packed.Digest)
	}
	believed, refused, err := s.signer.Policy().Image(t.Context(), repository.Digest(published.Digest))
	check(t, err)
	summary, err := verify.Summarize(believed)
	check(t, err)
	if len(believed) != 2 || len(refused) != 0 || summary.Commit != outcomes[0].Commit || summary.Version != packed.Version || summary.Repository != repository.String() {
		t.Errorf("said of it is %+v, refused is %v", summary, refused)
	}
	// A later commit that does not change the chart is no other release of it.
	s.commit("something else")
	later := s.chart(repository)
	later.Invocation = "https://github.com/run/2"
	outcomes, err = s.publish(later)
	check(t, err)
	if !outcomes[0].Kept || !outcomes[1].Kept || s.signed != 1 {
		t.Errorf("the second run signed %d times: %+v", s.signed, outcomes)
	}
}

func TestChartWithoutItsVersionRaisedIsNotPublished(t *testing.T) {
	s, repository := newChartSite(t)
	_, err := s.publish(s.chart(repository))
	check(t, err)
	path := filepath.Join(s.dir, chartPath, "values.yaml")
	values, err := os.ReadFile(path)
	check(t, err)
	check(t, os.WriteFile(path, append(values, "# more\n"...), 0o600))
	s.commit("another chart of the same version")
	if _, err := s.publish(s.chart(repository)); !errors.Is(err, chart.ErrVersionTaken) {
		t.Errorf("error is %v", err)
	}
	if s.signed != 1 {
		t.Errorf("signed %d times", s.signed)
	}
}

func TestChartIsPublishedAgainWhereTheRegistryLostIt(t *testing.T) {
	s, repository := newChartSite(t)
	outcomes, err := s.publish(s.chart(repository))
	check(t, err)
	check(t, remote.Delete(repository.Tag(outcomes[0].Version)))
	outcomes, err = s.publish(s.chart(repository))
	check(t, err)
	if outcomes[0].Kept {
		t.Error("the chart is gone and was not published again")
	}
	check(t, chart.Check(t.Context(), repository, outcomes[0].Version, digestIn(t, outcomes[0])))
}

func digestIn(t *testing.T, o conveyor.Outcome) string {
	t.Helper()
	var p Published
	check(t, json.Unmarshal(o.Result, &p))
	return p.Digest
}

func TestChartOfAnUnfinishedCheckoutIsNotPublished(t *testing.T) {
	s, repository := newChartSite(t)
	check(t, os.WriteFile(filepath.Join(s.dir, chartPath, "values.yaml"), nil, 0o600))
	if _, err := s.publish(s.chart(repository)); err == nil || !strings.Contains(err.Error(), "commit or stash") {
		t.Errorf("error is %v", err)
	}
}

func TestChartIsPublishedOnceItsRegistryIsBack(t *testing.T) {
	s, repository := newChartSite(t)
	c := s.chart(repository)
	c.Registry = append(c.Registry, remote.WithTransport(away{}))
	if _, err := s.publish(c); err == nil || !strings.Contains(err.Error(), `stage "publish"`) || s.signed != 0 {
		t.Errorf("error is %v, signed %d times", err, s.signed)
	}
	_, err := s.publish(s.chart(repository))
	check(t, err)
}

// away is a network that reaches nobody.
type away struct{}

func (away) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, errors.New("connection refused")
}
