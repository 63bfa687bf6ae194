// Package notify posts what a steward does to a chat, in the format of Slack's incoming
// webhooks, which other chats understand as well:
// https://api.slack.com/messaging/webhooks
package notify

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/omnivision/omnivision/forge"
	"github.com/omnivision/omnivision/steward"
)

// Webhook is an address to post to. The address is a secret: no error shows it.
type Webhook struct {
	URL    func(ctx context.Context) (string, error)
	Client *http.Client // nil is one of ten seconds
}

// Notify implements steward.Notifier.
func (w Webhook) Notify(ctx context.Context, action steward.Action) error {
	text := message(action)
	if text == "" {
		return nil
	}
	address, err := w.URL(ctx)
	if err != nil {
		return fmt.Errorf("getting the address to notify: %w", err)
	}
	body, err := json.Marshal(map[string]string{"text": text})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSpace(address), bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("the address to notify is no URL: write a chat's webhook there")
	}
	req.Header.Set("Content-Type", "application/json")
	client := w.Client
	if client == nil {
		client = http.DefaultClient
	}
	resp, err := client.Do(req)
	if err != nil {
		return forge.FromTransport("notify", unaddressed(err))
	}
	defer resp.Body.Close() //nolint:errcheck // read as far as needed
	if resp.StatusCode/100 != 2 {
		said, _ := io.ReadAll(io.LimitReader(resp.Body, 200))
		return forge.FromHTTP("notify", resp.StatusCode, 0, fmt.Errorf("HTTP %d: %s", resp.StatusCode, strings.TrimSpace(string(said))))
	}
	return nil
}

// message is what people read; empty for what nobody has to.
func message(action steward.Action) string {
	switch a := action.(type) {
	case steward.Tell:
		text := fmt.Sprintf("%s *%s %s* in *%s*: %s", mark(a.Report.State), escape(a.App), escape(a.Release.Tag), escape(a.Cluster), escape(a.Report.String()))
		if a.URL != "" {
			text += " (<" + escape(a.URL) + "|pull request>)"
		}
		return text
	case steward.TellDone:
		return fmt.Sprintf("Deployment successful: *%s %s* runs in %s", escape(a.App), escape(a.Release.Tag), escape(strings.Join(a.Clusters, ", ")))
	case steward.Isolate:
		return fmt.Sprintf("Node *%s* is taken out of service: its GPU reported Xid %s under %s", escape(a.Fault.Node), escape(a.Fault.Xid), escape(a.Fault.Pod))
	case steward.Resume:
		return fmt.Sprintf("The canary of *%s* goes on", escape(a.App))
	}
	return ""
}

func mark(s steward.State) string {
	switch s {
	case steward.StateAborted:
		return "[ABORTED]"
	case steward.StateDegraded:
		return "[DEGRADED]"
	case steward.StatePaused:
		return "[WAITS FOR A PERSON]"
	}
	return "[OK]"
}

// escape is https://api.slack.com/reference/surfaces/formatting#escaping: without it a text
// from outside could mention everybody.
func escape(text string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(text)
}
