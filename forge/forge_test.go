package forge

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestParseURL(t *testing.T) {
	for _, tt := range []struct{ in, root, name string }{
		{"https://github.com/omnivision/omnivision-gitops.git", "https://github.com/", "omnivision/omnivision-gitops"},
		{"https://github.com/omnivision/omnivision", "https://github.com/", "omnivision/omnivision"},
		{"https://git.example.com/forge/omnivision/gitops/", "https://git.example.com/forge", "omnivision/gitops"},
	} {
		root, name, err := ParseURL(tt.in)
		if err != nil {
			t.Errorf("%s: %v", tt.in, err)
			continue
		}
		if strings.TrimSuffix(root.String(), "/") != strings.TrimSuffix(tt.root, "/") || name.String() != tt.name {
			t.Errorf("%s is %s at %s, want %s at %s", tt.in, name, root, tt.name, tt.root)
		}
	}
	for _, in := range []string{"git@github.com:omnivision/omnivision.git", "https://github.com/omnivision", "https://github.com//x", "file:///tmp/x/y", "", "https://:443/a/b",
		"https://github.com/../user", "https://github.com/a/..", "https://github.com/a/.git", "https://github.com/a%3Fx=1/b", "https://github.com/a/b c", "https://github.com/a/%00"} {
		if _, _, err := ParseURL(in); err == nil {
			t.Errorf("%q was taken", in)
		}
	}
}

func TestCredentialsInAnAddressAreInNoError(t *testing.T) {
	for _, in := range []string{"https://bot:s3cret@github.com/omnivision", "https://bot:s3cret@github.com/a/%zz", "ssh://s3cret@github.com/a/b", "https://bot:s3@cret@[::1/a/b"} {
		_, _, err := ParseURL(in)
		if err == nil {
			t.Errorf("%q was taken", in)
			continue
		}
		for _, secret := range []string{"s3cret", "cret@"} {
			if strings.Contains(err.Error(), secret) {
				t.Errorf("the error shows the password: %v", err)
			}
		}
	}
	root, _, err := ParseURL("https://bot:s3cret@github.com/a/b.git")
	if err != nil || root.User != nil {
		t.Errorf("root %v, err %v; want no credentials", root, err)
	}
}

// FuzzParseURL looks for an address whose names would lead elsewhere in a
// forge's API, and for one that does not mean the same when it is put together
// again.
func FuzzParseURL(f *testing.F) {
	for _, seed := range []string{
		"https://github.com/omnivision/omnivision-gitops.git", "http://127.0.0.1:3000/a/b/", "https://git.example.com/forge/omnivision/gitops",
		"https://u:p@h/a/b", "git@github.com:a/b.git", "https://h/../b", "https://h/a/b%2Fc", "https://h/a/b?x#y", "https://[::1]:80/a/b.git.git", "https://h//a//b", "\x00",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, address string) {
		root, name, err := ParseURL(address)
		if err != nil {
			if !strings.Contains(err.Error(), "OWNER/REPOSITORY") {
				t.Fatalf("%q is refused without the next step: %v", address, err)
			}
			return
		}
		for _, part := range []string{name.Owner, name.Repository} {
			if part == "" || part == "." || part == ".." || strings.ContainsAny(part, "/?#%\\ \x00") {
				t.Fatalf("%q has the name %q", address, name)
			}
		}
		if root.User != nil || root.RawQuery != "" || root.Fragment != "" || root.Hostname() == "" {
			t.Fatalf("%q is on the forge %q", address, root)
		}
		again := strings.TrimSuffix(root.String(), "/") + "/" + name.String() + ".git"
		root2, name2, err := ParseURL(again)
		if err != nil || name2 != name || strings.Trim(root2.Path, "/") != strings.Trim(root.Path, "/") {
			t.Fatalf("%q became %q, which is %v at %v (%v)", address, again, name2, root2, err)
		}
	})
}

func TestErrorSaysWhatHappenedAndWhatToDo(t *testing.T) {
	err := fmt.Errorf("step \"propose\": %w", FromHTTP("open pull request in omnivision/gitops", http.StatusTooManyRequests, 30*time.Second, errors.New("429: slow down")))
	if !errors.Is(err, RateLimited) || errors.Is(err, NotFound) {
		t.Errorf("%v is not classified as rate limited alone", err)
	}
	if wait, ok := RetryAfter(err); !ok || wait != 30*time.Second {
		t.Errorf("retry after %s, %t", wait, ok)
	}
	want := `step "propose": open pull request in omnivision/gitops: rate limited: 429: slow down (again in 30s); wait as long as the forge asks for`
	if err.Error() != want {
		t.Errorf("error reads\n%s\nwant\n%s", err, want)
	}
}

func TestMarkerCannotEndItsComment(t *testing.T) {
	text := Mark("plan --> <script>", "body")
	if first, _, _ := strings.Cut(text, "\n"); strings.Count(first, "-->") != 1 {
		t.Errorf("marker line is %s", first)
	}
	if !Marked("plan --> <script>", text) || Marked("plan", text) || Marked("plan --> <script>", "x\n"+text) {
		t.Error("the marker is not recognised where it was set, or elsewhere")
	}
	if !Marked("plan", strings.ReplaceAll(Mark("plan", "a\nb"), "\n", "\r\n")) {
		t.Error("the marker is not recognised after a forge changed the line ends")
	}
}

func TestTokenFileIsReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	source := TokenFile(path)
	if _, err := source(t.Context()); err == nil {
		t.Error("a missing file gave a token")
	}
	for _, token := range []string{"one", "two"} {
		if err := os.WriteFile(path, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := source(t.Context()); err != nil || got != token {
			t.Errorf("token is %q, %v; want %q", got, err, token)
		}
	}
}

func TestDescriptionIsCutByCharacters(t *testing.T) {
	s := Status{Description: "first\nline " + strings.Repeat("é", 200)}.Trimmed()
	if n := len([]rune(s.Description)); n != 140 || strings.Contains(s.Description, "\n") || !strings.HasSuffix(s.Description, "é…") {
		t.Errorf("description has %d characters: %s", n, s.Description)
	}
}
