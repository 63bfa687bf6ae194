package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// checkTimeout is how long one address may take to answer.
const checkTimeout = 5 * time.Second

// addresses are what --check was given, one for each time.
type addresses []string

func (a *addresses) String() string { return strings.Join(*a, " ") }

func (a *addresses) Set(address string) error {
	u, err := url.Parse(address)
	if err != nil {
		return err
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		return errors.New("want a whole URL, such as http://omnivision-platform-ui:8080/readyz")
	}
	*a = append(*a, address)
	return nil
}

// checkAll asks every address at the same time, and names those that did not
// answer with 2xx, in the order in which they were given.
func checkAll(ctx context.Context, asked addresses, timeout time.Duration) error {
	client := &http.Client{
		// A proxy of the environment is for the way out; what is asked here is inside.
		Transport: &http.Transport{DisableKeepAlives: true},
		// Where a redirect leads is not what was asked for, and says nothing about it.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       timeout,
	}
	answers := make([]chan error, len(asked))
	for i, address := range asked {
		answers[i] = make(chan error, 1)
		go func() { answers[i] <- check(ctx, client, address) }()
	}
	var failures []error
	for _, answer := range answers {
		failures = append(failures, <-answer)
	}
	return errors.Join(failures...)
}

func check(ctx context.Context, client *http.Client, address string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return fmt.Errorf("checking %s: %w", address, err)
	}
	response, err := client.Do(request)
	if err != nil { // it names method and address itself
		return fmt.Errorf("checking: %w; see whether the Service has Pods that are ready, and a NetworkPolicy lets this Pod reach them", err)
	}
	defer response.Body.Close() //nolint:errcheck // read only
	if response.StatusCode >= 200 && response.StatusCode < 300 {
		return nil
	}
	return fmt.Errorf("checking %s: answered %s%s; see the log of the Pods that serve it", address, response.Status, reason(response))
}

// reason is what an answer says of itself: where it redirects to, or its text.
func reason(response *http.Response) string {
	if to := response.Header.Get("Location"); to != "" {
		return fmt.Sprintf(", redirecting to %q, which was not followed", to)
	}
	const shown = 300
	text, err := io.ReadAll(io.LimitReader(response.Body, shown))
	if err != nil || len(text) == 0 {
		return ""
	}
	return fmt.Sprintf(": %q", strings.TrimSpace(string(text)))
}
