package redact

import (
	"strings"
	"testing"
)

func TestCredentialsAreMaskedAndTheRestStays(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"no credential":     {`{"level":"error","msg":"Xid 31 on GPU-0","max":3}`, `{"level":"error","msg":"Xid 31 on GPU-0","max":3}`},
		"words of them":     {"the token expired; a secret is missing", "the token expired; a secret is missing"},
		"a value":           {"db_password=hunter2 user=x", "db_password=(masked) user=x"},
		"JSON":              {`{"password":"a \"b\" c","user":"x"}`, `{"password":(masked),"user":"x"}`},
		"JSON in JSON":      {`{"msg":"{\"api_key\":\"abc\",\"n\":1}"}`, `{"msg":"{\"api_key\":(masked),\"n\":1}"}`},
		"YAML":              {"clientSecret: 'a b'", "clientSecret: (masked)"},
		"cut off":           {`{"token":"abc def`, `{"token":(masked)`},
		"a header":          {`Authorization: Bearer abcdefgh.ijk`, `Authorization: (masked)`},
		"a header in JSON":  {`{"authorization":"Basic dXNlcjpwYXNz","n":1}`, `{"authorization":"(masked)","n":1}`},
		"a bearer":          {"sent Bearer abcdefghijkl to it", "sent Bearer (masked) to it"},
		"a URL":             {"GET https://user:pa55@git.example.com/x", "GET https://(masked)@git.example.com/x"},
		"a URL without":     {"GET https://git.example.com:8443/@x", "GET https://git.example.com:8443/@x"},
		"a query":           {"GET /x?n=1&access_token=abc&m=2", "GET /x?n=1&access_token=(masked)&m=2"},
		"a JSON Web Token":  {"got eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2ln-x", "got (masked)"},
		"a maker's mark":    {"with ghp_abcdefghijklmnopqrstuvwxyz0123 and AKIAABCDEFGHIJKLMNOP", "with (masked) and (masked)"},
		"a webhook":         {"POST https://hooks.slack.com/services/T0/B0/xyz", "POST https://hooks.slack.com/services/(masked)"},
		"a private key":     {"key:\n-----BEGIN EC PRIVATE KEY-----\nabc\n-----END EC PRIVATE KEY-----\nend", "key:\n(masked)\nend"},
		"half a key":        {"-----BEGIN PRIVATE KEY-----\nabc", "(masked)"},
		"a signature":       {"X-Amz-Signature=abc123", "X-Amz-Signature=(masked)"},
		"two on their line": {"password: a token: b", "password: (masked) token: (masked)"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Text(c.text); got != c.want {
				t.Errorf("masked is\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

func FuzzSecretOfAKeyNeverShows(f *testing.F) {
	f.Add("msg=", " end")
	f.Add(`{"a":"`, `"}`)
	f.Fuzz(func(t *testing.T, before, after string) {
		const secret = "hunter2hunter2"
		got := Text(before + " password=" + secret + " " + after)
		if strings.Contains(got, secret) && !strings.Contains(before+after, secret) {
			t.Errorf("the secret shows in %q", got)
		}
	})
}
