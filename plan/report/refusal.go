package report

import "github.com/omnivision/omnivision/plan"

// Headline is the plan in half a line, such as "1 of 2 clusters changes".
func Headline(p *plan.Plan) string { return headline(p) }

// Refusal is the comment in place of a plan that there is none, and why.
func Refusal(reason string) string {
	if runes := []rune(reason); len(runes) > smallest/2 {
		reason = string(runes[:smallest/2]) + "…"
	}
	return Marker + "\n### Plan: there is none\n\nNothing is known of what this change does to the clusters:\n\n" + fence("", reason)
}
