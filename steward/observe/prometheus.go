package observe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// prometheus asks a Prometheus over its HTTP API:
// https://prometheus.io/docs/prometheus/latest/querying/api/
type prometheus struct {
	address string
	client  *http.Client // nil is http.DefaultClient
}

// series is one of the answer's: samples of a range, none of an instant.
type series struct {
	Metric map[string]string
	Values [][2]any
}

// instant asks for an instant vector and returns its labels.
func (p prometheus) instant(ctx context.Context, query string) ([]map[string]string, error) {
	found, err := p.get(ctx, "query", url.Values{"query": {query}})
	var labels []map[string]string
	for _, s := range found {
		labels = append(labels, s.Metric)
	}
	return labels, err
}

// window asks how the one number that a query is for went, at each step; NaN where there was none.
func (p prometheus) window(ctx context.Context, query string, from time.Time, step time.Duration, steps int) ([]float64, error) {
	seconds := func(t time.Time) string { return strconv.FormatInt(t.Unix(), 10) }
	found, err := p.get(ctx, "query_range", url.Values{
		"query": {query}, "start": {seconds(from)}, "end": {seconds(from.Add(time.Duration(steps) * step))}, "step": {strconv.Itoa(int(step.Seconds()))},
	})
	if err != nil {
		return nil, err
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("the query has %d series, not one", len(found))
	}
	points := make([]float64, steps+1)
	for i := range points {
		points[i] = math.NaN()
	}
	for _, sample := range found[0].Values {
		at, ok := sample[0].(float64)
		text, _ := sample[1].(string)
		v, err := strconv.ParseFloat(text, 64)
		if i := int((int64(at) - from.Unix()) / int64(step.Seconds())); ok && err == nil && i >= 0 && i < len(points) {
			points[i] = v
		}
	}
	return points, nil
}

func (p prometheus) get(ctx context.Context, path string, parameters url.Values) ([]series, error) {
	address := strings.TrimSuffix(p.address, "/") + "/api/v1/" + path + "?" + parameters.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	client := p.client
	if client == nil {
		client = http.DefaultClient
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close() //nolint:errcheck // read as far as needed
	var answer struct {
		Status, Error string
		Data          struct{ Result []series }
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&answer); err != nil {
		return nil, fmt.Errorf("HTTP %d: %w", resp.StatusCode, err)
	}
	if answer.Status != "success" {
		return nil, errors.New(answer.Error)
	}
	return answer.Data.Result, nil
}
