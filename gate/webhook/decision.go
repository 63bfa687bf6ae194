package webhook

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/omnivision/omnivision/gate"
	"github.com/omnivision/omnivision/internal/terminal"
)

// decision is the answer to one review, and what the audit line tells of it.
type decision struct {
	webhook  string
	took     time.Duration
	review   *request
	verdicts []gate.Verdict // that decide
	resolved []gate.Verdict // that only told a digest
	patch    []operation
	skipped  error    // why an injection was left out
	refused  *refusal // nil if the review could be judged
	status   int      // of HTTP, when refused and there is no id to answer to
}

func (d *decision) allowed() bool {
	if d.refused != nil {
		return false
	}
	for _, v := range d.verdicts {
		if !v.Allowed {
			return false
		}
	}
	return true
}

// Sizes of what people are told. The API server cuts all warnings together at 4096 bytes.
const (
	maxMessage  = 4 << 10
	maxWarning  = 256
	maxWarnings = 10
)

// message says image, digest, policy, what is missing and how to find out more, for each denial.
func (d *decision) message() string {
	if d.refused != nil {
		return line(d.refused.Error(), maxMessage)
	}
	var parts []string
	for _, v := range d.verdicts {
		for _, denial := range v.Denials {
			parts = append(parts, explain(v, denial, "refuses"))
		}
	}
	return line(strings.Join(parts, "; "), maxMessage)
}

func (d *decision) warnings() []string {
	var warnings []string
	for _, v := range d.verdicts {
		for _, w := range v.Warnings {
			warnings = append(warnings, line(explain(v, w, "would refuse"), maxWarning))
		}
	}
	if d.skipped != nil {
		warnings = append(warnings, line("omnivision gate: nothing was injected into this Pod: "+d.skipped.Error(), maxWarning))
	}
	return warnings[:min(len(warnings), maxWarnings)]
}

func explain(v gate.Verdict, d gate.Denial, verb string) string {
	who := "the gate"
	if d.Policy != "" {
		who = "policy " + d.Policy
	}
	image := v.Image
	if v.Digest != "" && !strings.Contains(image, v.Digest) {
		image += " (" + v.Digest + ")"
	}
	text := fmt.Sprintf("%s %s image %s: %s", who, verb, image, d.Message)
	if d.Reason != "" {
		text += " [" + string(d.Reason) + "]"
	}
	if next := next(v, d); next != "" {
		text += "; see: " + next
	}
	return text
}

// plainReference has nothing that a shell would act upon.
var plainReference = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/:@-]*$`)

func next(v gate.Verdict, d gate.Denial) string {
	switch {
	case d.Next != "":
		return d.Next
	case plainReference.MatchString(v.Image):
		return "omnivision verify " + v.Image
	}
	return ""
}

// line makes one line of text from outside: no control character reaches a terminal.
func line(text string, limit int) string {
	text = terminal.Line(text)
	if len(text) > limit {
		text = strings.ToValidUTF8(text[:limit-3], "") + "..."
	}
	return text
}

const (
	head = `{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","response":{"uid":`
	tail = "}}\n"
)

// write sends the AdmissionReview. Nearly all of them say yes and nothing else, so it is put together by hand.
func (d *decision) write(rw http.ResponseWriter) {
	b := buffers.get()
	defer buffers.put(b)
	b.WriteString(head)
	b.Write(strconv.AppendQuote(b.AvailableBuffer(), plainUID(d.review.UID)))
	b.WriteString(`,"allowed":`)
	b.Write(strconv.AppendBool(b.AvailableBuffer(), d.allowed()))
	if !d.allowed() {
		b.WriteString(`,"status":{"status":"Failure","reason":"Forbidden","code":403,"message":`)
		b.Write(quoted(d.message()))
		b.WriteByte('}')
	}
	if warnings := d.warnings(); len(warnings) > 0 {
		b.WriteString(`,"warnings":`)
		b.Write(quoted(warnings))
	}
	if len(d.patch) > 0 {
		b.WriteString(`,"patchType":"JSONPatch","patch":"`)
		patch := buffers.get()
		defer buffers.put(patch)
		patch.Write(appendPatch(patch.AvailableBuffer(), d.patch))
		b.Write(base64.StdEncoding.AppendEncode(b.AvailableBuffer(), patch.Bytes()))
		b.WriteByte('"')
	}
	b.WriteString(tail)
	h := rw.Header()
	h["Content-Type"] = jsonContent
	h["Content-Length"] = []string{strconv.Itoa(b.Len())}
	if d.review.UID == "" && d.status != 0 {
		rw.WriteHeader(d.status)
	}
	_, _ = rw.Write(b.Bytes()) // the API server may have given up; it then refuses by failurePolicy
}

var jsonContent = []string{"application/json"}

// plainUID is the uid as the API server writes it: letters, digits and dashes. Another one is not echoed, and then refused
// by it.
func plainUID(uid string) string {
	for _, c := range []byte(uid) {
		if c != '-' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return ""
		}
	}
	if len(uid) > 64 {
		return ""
	}
	return uid
}

func quoted(value any) []byte {
	text, err := json.Marshal(value)
	if err != nil { // strings and JSON values always can
		return []byte(`""`)
	}
	return text
}
