package webhook

import (
	"context"
	"log/slog"
	"strconv"

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
	case d.webhook == judging || len(d.patch) > 0:
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
			attrs = append(attrs, slog.Any("images", imageLines(v)))
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

// imageLines are the images of an audit line. They are put into JSON by hand, since that is done with every Pod.
type imageLines []gate.Verdict

// MarshalJSON implements json.Marshaler.
func (v imageLines) MarshalJSON() ([]byte, error) {
	b := append(make([]byte, 0, 512*len(v)), '[')
	for i, verdict := range v {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendVerdict(b, verdict)
	}
	return append(b, ']'), nil
}

func appendVerdict(b []byte, v gate.Verdict) []byte {
	b = appendString(append(b, `{"image":`...), v.Image)
	b = appendMember(b, "digest", v.Digest)
	b = strconv.AppendBool(append(b, `,"allowed":`...), v.Allowed)
	b = appendMember(b, "source", string(v.Source))
	b = appendList(b, "policies", v.Policies, appendString)
	b = appendList(b, "denials", v.Denials, appendDenial)
	b = appendList(b, "warnings", v.Warnings, appendDenial)
	return append(b, '}')
}

func appendDenial(b []byte, d gate.Denial) []byte {
	b = append(b, '{')
	if d.Policy != "" {
		b = append(appendString(append(b, `"policy":`...), d.Policy), ',')
	}
	b = appendString(append(b, `"reason":`...), string(d.Reason))
	b = appendString(append(b, `,"message":`...), line(d.Message, maxMessage))
	return append(b, '}')
}

// appendMember appends what is not empty.
func appendMember(b []byte, key, value string) []byte {
	if value == "" {
		return b
	}
	return appendString(append(append(append(b, `,"`...), key...), `":`...), value)
}

func appendList[T any](b []byte, key string, list []T, element func(b []byte, value T) []byte) []byte {
	for i, value := range list {
		if i == 0 {
			b = append(append(append(b, `,"`...), key...), `":[`...)
		} else {
			b = append(b, ',')
		}
		b = element(b, value)
	}
	if len(list) > 0 {
		b = append(b, ']')
	}
	return b
}
