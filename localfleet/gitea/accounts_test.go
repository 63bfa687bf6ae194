package gitea

import "testing"

func TestTokenIsFoundAmongLinesOfTheLog(t *testing.T) {
	const token = "5afd6cd75c3cadb15028262f5d2d0f3e05304ed0"
	const log = "2026/01/02 14:18:29 modules/setting/picture.go:66:loadAvatarsFrom() [E] Deprecation: config option\n"
	for name, test := range map[string]struct{ printed, want string }{
		"alone":             {token + "\n", token},
		"before the log":    {token + "\n" + log, token},
		"behind the log":    {log + token + "\n", token},
		"none":              {log, ""},
		"nothing":           {"", ""},
		"inside a sentence": {"was made: " + token + "\n", ""},
		"longer":            {token + "0\n", ""},
	} {
		if got := accessToken.FindString(test.printed); got != test.want {
			t.Errorf("%s: found %q, want %q", name, got, test.want)
		}
	}
}
