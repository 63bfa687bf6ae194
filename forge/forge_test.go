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
	for _, in := range []string{"git@github.com:omnivision/omnivision.git", "https://github.com/omnivision", "https://github.com//x", "file:///tmp/x/y", ""} {
		if _, _, err := ParseURL(in); err == nil {
			t.Errorf("%q was taken", in)
		}
	}
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
