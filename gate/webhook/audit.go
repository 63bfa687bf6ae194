package webhook

import (
	"context"
	"log/slog"

	"github.com/omnivision/omnivision/gate"
)

// record tells the audit log and, of a denial, the namespace. Neither holds anything of the Pod but its name
// and its images.
func (w *Webhook) record(d *decision) {
	switch {
	case !d.allowed():
		w.line(slog.LevelWarn, d)
		if w.events != nil && !d.review.DryRun && d.review.Object != nil {
			w.events.Denied(subject(d.review), d.message())
		}
	case d.skipped != nil:
		w.line(slog.LevelError, d)
	case d.webhook == "validate" || len(d.patch) > 0:
		w.line(slog.LevelInfo, d)
	default:
		w.line(slog.LevelDebug, d) // a mutation that changed nothing
	}
}

func (w *Webhook) line(level slog.Level, d *decision) {
	ctx := context.Background()
	if !w.audit.Enabled(ctx, level) {
		return
	}
	q := d.review
	attrs := make([]slog.Attr, 0, 16)
	attrs = append(attrs,
		slog.String("webhook", d.webhook), slog.Bool("allowed", d.allowed()), slog.String("uid", plainUID(q.UID)),
		slog.String("operation", q.Operation), slog.String("namespace", q.Namespace), slog.String("pod", q.podName()),
		slog.String("user", q.UserInfo.Username), slog.Bool("dry_run", q.DryRun), slog.Float64("seconds", d.took.Seconds()))
	if q.SubResource != "" {
		attrs = append(attrs, slog.String("subresource", q.SubResource))
	}
	if len(d.patch) > 0 {
		attrs = append(attrs, slog.Int("changes", len(d.patch)))
	}
	for _, v := range [][]gate.Verdict{d.verdicts, d.resolved} {
		if len(v) > 0 {
			attrs = append(attrs, slog.Any("images", lines(v)))
		}
	}
	if d.skipped != nil {
		attrs = append(attrs, slog.String("error", d.skipped.Error()))
	}
	if d.refused != nil {
		attrs = append(attrs, slog.String("reason", string(d.refused.reason)), slog.String("error", d.refused.Error()))
	}
	w.audit.LogAttrs(ctx, level, "admission", attrs...)
}

func (q *request) podName() string {
	switch p := q.Object; {
	case q.Name != "":
		return q.Name
	case p == nil:
		return ""
	case p.Metadata.Name != "":
		return p.Metadata.Name
	default:
		return p.Metadata.GenerateName
	}
}

// imageLine is an image in an audit line.
type imageLine struct {
	Image    string       `json:"image"`
	Digest   string       `json:"digest,omitempty"`
	Allowed  bool         `json:"allowed"`
	Source   gate.Source  `json:"source,omitempty"`
	Policies []string     `json:"policies,omitempty"`
	Denials  []denialLine `json:"denials,omitempty"`
	Warnings []denialLine `json:"warnings,omitempty"`
}

type denialLine struct {
	Policy  string      `json:"policy,omitempty"`
	Reason  gate.Reason `json:"reason"`
	Message string      `json:"message"`
}

func lines(verdicts []gate.Verdict) []imageLine {
	all := make([]imageLine, len(verdicts))
	for i, v := range verdicts {
		all[i] = imageLine{v.Image, v.Digest, v.Allowed, v.Source, v.Policies, denialLines(v.Denials), denialLines(v.Warnings)}
	}
	return all
}

func denialLines(denials []gate.Denial) (all []denialLine) {
	for _, d := range denials {
		all = append(all, denialLine{d.Policy, d.Reason, line(d.Message, maxMessage)})
	}
	return all
}
