// Package loki asks a Loki for log lines over its HTTP API (v1). It reads; what is shipped comes by the sidecars.
package loki

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Client asks one Loki. It is safe for concurrent use.
type Client struct {
	// URL is the server's: http://loki.logging.svc:3100.
	URL string
	// HTTP is http.DefaultClient if nil. Deadlines are the contexts'.
	HTTP *http.Client
}

// Entry is a line with its labels, in which structured metadata is included.
type Entry struct {
	At     time.Time
	Line   string
	Labels map[string]string
}

const maxAnswer = 64 << 20

// Everything selects every line: Loki wants at least one label that must not be empty.
const Everything = `{namespace=~".+"}`

// Selector is a LogQL stream selector for labels of these values; empty values are left out. Without any
// it is Everything.
func Selector(labels map[string]string) string {
	var matchers []string
	for name, value := range labels {
		if value != "" {
			matchers = append(matchers, name+"="+strconv.Quote(value))
		}
	}
	if len(matchers) == 0 {
		return Everything
	}
	slices.Sort(matchers)
	return "{" + strings.Join(matchers, ",") + "}"
}

// Containing is a LogQL line filter for a text, to the letter; none for the empty one.
func Containing(text string) string {
	if text == "" {
		return ""
	}
	return " |= " + strconv.Quote(text)
}

// Query are the lines that a LogQL query selects in [start, end), the oldest first, at most limit of them: the newest
// ones if newest is set, else the oldest.
func (c *Client) Query(ctx context.Context, query string, start, end time.Time, limit int, newest bool) ([]Entry, error) {
	direction := "forward"
	if newest {
		direction = "backward"
	}
	var answer struct {
		Data struct {
			ResultType string
			Result     []struct {
				Stream map[string]string
				Values [][2]string
			}
		}
	}
	err := c.get(ctx, "/loki/api/v1/query_range", url.Values{
		"query": {query}, "limit": {strconv.Itoa(limit)}, "direction": {direction},
		"start": {strconv.FormatInt(start.UnixNano(), 10)}, "end": {strconv.FormatInt(end.UnixNano(), 10)},
	}, &answer)
	if err != nil {
		return nil, err
	}
	if answer.Data.ResultType != "streams" {
		return nil, fmt.Errorf("query %s selects no lines but %.40q: ask for lines, not for a metric", query, answer.Data.ResultType)
	}
	var entries []Entry
	for _, stream := range answer.Data.Result {
		for _, v := range stream.Values {
			ns, err := strconv.ParseInt(v[0], 10, 64)
			if err != nil {
				return nil, fmt.Errorf("the Loki at %s answered with the time %.40q", c.URL, v[0])
			}
			entries = append(entries, Entry{At: time.Unix(0, ns), Line: v[1], Labels: stream.Stream})
		}
	}
	slices.SortStableFunc(entries, func(a, b Entry) int { return a.At.Compare(b.At) })
	return entries, nil
}

// Source is one container's log.
type Source struct {
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
	Container string `json:"container"`
}

// Delivered are the containers of a namespace of which lines arrived within the time before now. It asks for the streams
// alone: what that costs Loki depends on how many containers there are, and not on how much they write.
func (c *Client) Delivered(ctx context.Context, namespace string, within time.Duration) (map[Source]bool, error) {
	now := time.Now()
	var answer struct{ Data []map[string]string }
	err := c.get(ctx, "/loki/api/v1/series", url.Values{
		"match[]": {Selector(map[string]string{"namespace": namespace})},
		"start":   {strconv.FormatInt(now.Add(-within).UnixNano(), 10)}, "end": {strconv.FormatInt(now.UnixNano(), 10)},
	}, &answer)
	if err != nil {
		return nil, err
	}
	delivered := map[Source]bool{}
	for _, labels := range answer.Data {
		delivered[Source{labels["namespace"], labels["pod"], labels["container"]}] = true
	}
	return delivered, nil
}

func (c *Client) get(ctx context.Context, path string, parameters url.Values, into any) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(c.URL, "/")+path+"?"+parameters.Encode(), nil)
	if err != nil {
		return fmt.Errorf("ask Loki: %w", err)
	}
	client := c.HTTP
	if client == nil {
		client = http.DefaultClient
	}
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("ask Loki at %s: %w", c.URL, err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	switch {
	case err != nil:
		return fmt.Errorf("read the answer of Loki at %s: %w", c.URL, err)
	case len(text) > maxAnswer:
		return fmt.Errorf("the answer of Loki at %s is larger than %d MiB: ask for fewer lines", c.URL, maxAnswer>>20)
	case response.StatusCode != http.StatusOK:
		return fmt.Errorf("the Loki at %s answered %d to %s: %.300s", c.URL, response.StatusCode, parameters.Get("query")+parameters.Get("match[]"), said(text))
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("read the answer of Loki at %s: %w", c.URL, err)
	}
	return nil
}

// said is the message in an answer of the API server in Loki's place, or else the answer.
func said(text []byte) string {
	var status struct{ Kind, Message string }
	if err := json.Unmarshal(text, &status); err == nil && status.Kind == "Status" {
		return status.Message
	}
	return string(text)
}
