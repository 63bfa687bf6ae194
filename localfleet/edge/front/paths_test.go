package front

import (
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/omnivision/omnivision/localfleet/edge/target"
)

func TestRepositoryPathsAreMappedBelowTheHost(t *testing.T) {
	for client, server := range map[string]string{
		"/v2/argoproj/argocd/manifests/v3.6.1":                "/v2/quay.io/argoproj/argocd/manifests/v3.6.1",
		"/v2/pause/blobs/sha256:" + strings.Repeat("a", 64):   "/v2/quay.io/pause/blobs/sha256:" + strings.Repeat("a", 64),
		"/v2/a/b/blobs/uploads/":                              "/v2/quay.io/a/b/blobs/uploads/",
		"/v2/a/b/blobs/uploads":                               "/v2/quay.io/a/b/blobs/uploads",
		"/v2/a/blobs/uploads/0b5c-1_x=":                       "/v2/quay.io/a/blobs/uploads/0b5c-1_x=",
		"/v2/a/tags/list":                                     "/v2/quay.io/a/tags/list",
		"/v2/a/referrers/sha256:" + strings.Repeat("0", 64):   "/v2/quay.io/a/referrers/sha256:" + strings.Repeat("0", 64),
		"/v2/a/tags/list/manifests/1":                         "/v2/quay.io/a/tags/list/manifests/1",
		"/v2/manifests/blobs/manifests/sha256-00.sig":         "/v2/quay.io/manifests/blobs/manifests/sha256-00.sig",
		"/v2/a/manifests/sha256-" + strings.Repeat("0", 64):   "/v2/quay.io/a/manifests/sha256-" + strings.Repeat("0", 64),
		"/v2/omnivision/charts/omnivision-platform/tags/list": "/v2/quay.io/omnivision/charts/omnivision-platform/tags/list",
		"/v2/../quay.io/a/manifests/1":                        "",
		"/v2/a/../b/manifests/1":                              "",
		"/v2/a/manifests/..":                                  "",
		"/v2/a/blobs/uploads/../../b":                         "",
		"/v2/a//b/manifests/1":                                "",
		"/v2/A/manifests/1":                                   "",
		"/v2/a/manifests/":                                    "",
		"/v2/manifests/1":                                     "",
		"/v2//manifests/1":                                    "",
		"/v2/a/manifests/1/":                                  "",
		"/v2/a/manifests/1\n":                                 "",
		"/v1/a/manifests/1":                                   "",
		"/":                                                   "",
	} {
		got, err := parseRepoPath(client)
		switch {
		case server == "" && err == nil:
			t.Errorf("%q was accepted as %+v", client, got)
		case server != "" && err != nil:
			t.Errorf("%q: %v", client, err)
		case server != "" && got.serverPath("quay.io") != server:
			t.Errorf("%q became %q, want %q", client, got.serverPath("quay.io"), server)
		}
	}
}

func TestLocationsAndLinksAreMappedBack(t *testing.T) {
	for _, tc := range []struct{ name, ns, in, want string }{
		{"relative", "", "/v2/quay.io/a/blobs/uploads/1?_state=x%3D", "/v2/a/blobs/uploads/1?_state=x%3D"},
		{"absolute of the server", "", "http://127.0.0.1:5000/v2/quay.io/a/blobs/sha256:0", "/v2/a/blobs/sha256:0"},
		{"through a mirror", "quay.io", "/v2/quay.io/a/blobs/uploads/1?_state=x", "/v2/a/blobs/uploads/1?_state=x&ns=quay.io"},
		{"another registry's", "", "/v2/quay.io.evil/a/blobs/sha256:0", "/v2/quay.io.evil/a/blobs/sha256:0"},
		{"a store elsewhere", "", "https://cdn.example/blob?sig=1", "https://cdn.example/blob?sig=1"},
	} {
		if got := clientLocation("quay.io", tc.ns, tc.in); got != tc.want {
			t.Errorf("%s: %q became %q, want %q", tc.name, tc.in, got, tc.want)
		}
	}
	if got, want := clientLink("quay.io", "", `</v2/quay.io/a/tags/list?last=v1&n=1>; rel="next"`), `</v2/a/tags/list?last=v1&n=1>; rel="next"`; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := clientLink("quay.io", "", "nonsense"); got != "nonsense" {
		t.Errorf("got %q", got)
	}
}

func TestMountSourceIsMapped(t *testing.T) {
	q, err := serverQuery("ghcr.io", url.Values{"mount": {"sha256:0"}, "from": {"omnivision/base"}, "ns": {"ghcr.io"}})
	if err != nil || q.Encode() != "from=ghcr.io%2Fomnivision%2Fbase&mount=sha256%3A0" {
		t.Errorf("got %q, %v", q.Encode(), err)
	}
	if _, err := serverQuery("ghcr.io", url.Values{"from": {"../quay.io/secret"}}); err == nil {
		t.Error("a source outside the host was accepted")
	}
}

func TestHostNamesAreCheckedWhenConfigured(t *testing.T) {
	for host, ok := range map[string]bool{
		"ghcr.io": true, "localhost": true, "123456789012.dkr.ecr.us-west-2.amazonaws.com": true,
		"GHCR.io": false, "ghcr.io.": false, "ghcr.io:443": false, "*.pkg.dev": false, "10.111.0.1": false, "": false, "a/b": false,
	} {
		if err := validateHost(host); (err == nil) != ok {
			t.Errorf("%q: %v", host, err)
		}
	}
}

// FuzzMapping proves, for whatever a client sends, that it reaches only the repositories of its own host,
// and that what is mapped there comes back as what was sent.
func FuzzMapping(f *testing.F) {
	f.Add("/v2/a/manifests/1", "from=b&mount=sha256:0", "ghcr.io:443")
	f.Add("/v2/a/../../quay.io/x/blobs/uploads/?", "from=../x", "GHCR.IO.")
	f.Add("/v2/_catalog", "n=10&last=zz&ns=quay.io", "[::1]:443")
	f.Add("/v2/", ";", "")
	f.Add("/v2/ghcr.io/ghcr.io/tags/list", "last=%2e%2e%2f", "a:b:c")
	const prefix = "ghcr.io"
	f.Fuzz(func(t *testing.T, path, query, host string) {
		if h := normalHost(host); normalHost(strings.ToUpper(h)) != normalHost(h) {
			// Folding must not depend on the spelling that it starts from, or two spellings of a host
			// would take different routes. Outside ASCII it may: no configured host is.
			if isASCII(h) {
				t.Errorf("host %q is not folded", host)
			}
		}
		var x exchange
		gotPath, gotQuery, err := x.mapRequest(prefix, &url.URL{Path: path, RawQuery: query})
		if err != nil {
			return
		}
		q, err := url.ParseQuery(gotQuery)
		if err != nil {
			t.Fatalf("%q: query %q does not parse: %v", path, gotQuery, err)
		}
		if q.Has("ns") {
			t.Errorf("ns was passed on: %q", gotQuery)
		}
		switch gotPath {
		case "/v2/":
			return
		case "/v2/_catalog":
			if l := q.Get("last"); l != prefix && !strings.HasPrefix(l, prefix+"/") {
				t.Errorf("the catalog begins outside the host: %q", gotQuery)
			}
			return
		}
		if !strings.HasPrefix(gotPath, "/v2/"+prefix+"/") || strings.Contains(gotPath, "..") && slices.Contains(strings.Split(gotPath, "/"), "..") {
			t.Errorf("%q left the host's repositories: %q", path, gotPath)
		}
		if u, err := url.Parse(gotPath); err != nil || u.Path != gotPath {
			t.Errorf("%q does not survive a URL: %q", path, gotPath)
		}
		if from := q.Get("from"); from != "" && (!strings.HasPrefix(from, prefix+"/") || strings.Contains(from, "..")) {
			t.Errorf("mount from outside the host: %q", from)
		}
		if back := clientLocation(prefix, "", gotPath); back != path {
			t.Errorf("%q came back as %q", path, back)
		}
	})
}

func isASCII(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r > 127 })
}

func TestRoutesHoldEachNameOnceAndDockersNamesTogether(t *testing.T) {
	forge, registry := target.Target{Address: "127.0.0.1:1"}, target.Target{Address: "127.0.0.1:2"}
	routes := Routes([]string{"github.com", "github.com"}, []string{"ghcr.io", "registry-1.docker.io", "docker.io", "ghcr.io", "registry.example.org"}, forge, registry)
	var got []string
	for _, r := range routes {
		if err := r.Validate(); err != nil {
			t.Error(err)
		}
		got = append(got, string(r.Kind)+" "+r.prefix()+" "+strings.Join(r.Hosts, ","))
	}
	want := []string{
		"proxy github.com github.com",
		"registry ghcr.io ghcr.io",
		"registry docker.io docker.io,registry-1.docker.io,index.docker.io",
		"registry registry.example.org registry.example.org",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
