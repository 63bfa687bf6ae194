// Package redact masks what looks like a credential in log lines, before they are shown where
// more people read than may read the logs.
//
// It knows the common shapes: values of keys that are called password, token, secret and the
// like, authorization headers, private keys, passwords in URLs, JSON Web Tokens, and tokens
// with a maker's mark. A secret that looks like nothing is not found: applications must not
// log theirs.
package redact

import "regexp"

// Mask is shown in the place of what was masked.
const Mask = "(masked)"

// A key may be part of a name (db_password), quoted, and quoted again within a string of JSON.
const (
	key   = `(?i)([a-z0-9_.-]*(?:passw(?:or)?d|passphrase|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|credentials?|signature)\\*["']?\s*[:=]\s*)`
	value = `(?:\\+"[^"]*"|"(?:[^"\\]|\\.)*"?|'[^']*'?|[^\s,;&"'}\]]+)`
)

var shapes = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|$)`), Mask},
	{regexp.MustCompile(`(?i)(authorization\\*["']?\s*[:=]\s*\\*["']?)(?:(?:bearer|basic|token|negotiate|digest)\s+)?[^\s"'\\,}]+`), "${1}" + Mask},
	{regexp.MustCompile(`(?i)\b((?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{8,}`), "${1}" + Mask},
	{regexp.MustCompile(key + value), "${1}" + Mask},
	{regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://)[^\s/@:"']*:[^\s/@"']+@`), "${1}" + Mask + "@"},
	{regexp.MustCompile(`\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*`), Mask},
	{regexp.MustCompile(`\b(?:(?:AKIA|ASIA)[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{20,}|xox[abeprs]-[A-Za-z0-9-]{10,}|sk-[A-Za-z0-9_-]{20,}|hf_[A-Za-z0-9]{20,}|AIza[A-Za-z0-9_-]{35})`), Mask},
	{regexp.MustCompile(`(hooks\.slack\.com/services/)[A-Za-z0-9/_-]+`), "${1}" + Mask},
}

// Text returns a text with its credentials masked. It may have several lines.
func Text(text string) string {
	for _, shape := range shapes {
		text = shape.pattern.ReplaceAllString(text, shape.with)
	}
	return text
}
