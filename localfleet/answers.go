package localfleet

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/omnivision/omnivision/localfleet/topology"
	"github.com/omnivision/omnivision/worker/api"
)

// answerPatience is how long a request may take that asks for nothing.
const answerPatience = 2 * time.Second

// uiAddress is where this machine's browser finds a cluster's UI.
func uiAddress(c topology.Cluster) string { return fmt.Sprintf("http://127.0.0.1:%d", c.UIPort) }

// unanswered says of each cluster whose UI does not reach a worker, why: after a node has died,
// Argo CD shows for some seconds what was true before. Clusters elsewhere have addresses
// that this machine need not reach.
func (f *Fleet) unanswered(ctx context.Context) (waiting []string) {
	if f.elsewhere() {
		return nil
	}
	for _, cluster := range f.Plan.Clusters {
		if err := reachesWorker(ctx, uiAddress(cluster)); err != nil {
			waiting = append(waiting, fmt.Sprintf("%s: its UI at %s does not reach a worker: %v", cluster.Name, uiAddress(cluster), err))
		}
	}
	return waiting
}

// reachesWorker asks for a generation of nothing, which a worker refuses at once, whether its GPUs
// are busy or not: the answer has come all the way.
func reachesWorker(ctx context.Context, ui string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, answerPatience, errors.New("no answer within "+answerPatience.String()))
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, ui+api.GenerationsPath, strings.NewReader("{}"))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return err
	}
	defer response.Body.Close() //nolint:errcheck // its status is what is asked for
	if response.StatusCode != http.StatusBadRequest {
		return fmt.Errorf("the answer is %s", response.Status)
	}
	return nil
}
