package front

import (
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
)

// One registry stands in for many: what a client calls /v2/NAME/… of a host is /v2/PREFIX/NAME/… of the
// server, where the prefix is the host's name. A registry's answers name repositories in headers, links
// and bodies, which are mapped back, so that the client never sees the prefix.

const (
	// https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pulling-manifests
	nameGrammar = `[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*`
	// A tag, digest or upload id: no slash, and not a dot segment, which a server might resolve.
	idGrammar = `[A-Za-z0-9_][A-Za-z0-9_.:+=~-]*`
)

var (
	nameOnly = regexp.MustCompile(`^` + nameGrammar + `$`)
	// The name is greedy: in /v2/a/tags/list/manifests/1 the repository is a/tags/list.
	repoPath = regexp.MustCompile(`^/v2/(` + nameGrammar + `)/(tags/list|(?:manifests|blobs/uploads|blobs|referrers)/` + idGrammar + `|blobs/uploads/?)$`)
)

// repoRequest is a path below /v2/ that names a repository.
type repoRequest struct {
	name string // as the client knows it
	tail string // such as manifests/latest
}

func parseRepoPath(path string) (repoRequest, error) {
	m := repoPath.FindStringSubmatch(path)
	if m == nil {
		return repoRequest{}, &problem{http.StatusNotFound, "UNSUPPORTED",
			fmt.Sprintf("%q is not a path of the registry API: want /v2/NAME/manifests|blobs|tags|referrers/…, NAME in lower case", abbreviate(path, 200))}
	}
	return repoRequest{name: m[1], tail: m[2]}, nil
}

func (r repoRequest) isTagList() bool { return r.tail == "tags/list" }

// serverPath is the request's path at the one registry.
func (r repoRequest) serverPath(prefix string) string {
	return "/v2/" + prefix + "/" + r.name + "/" + r.tail
}

// serverQuery maps the query: a cross-repository mount names its source, and ns is between the client and
// this front alone.
func serverQuery(prefix string, q url.Values) (url.Values, error) {
	q = cloneValues(q)
	q.Del("ns")
	if from := q.Get("from"); from != "" {
		if !nameOnly.MatchString(from) {
			return nil, &problem{http.StatusBadRequest, "NAME_INVALID", fmt.Sprintf("from=%q is not a repository name", abbreviate(from, 200))}
		}
		q.Set("from", prefix+"/"+from)
	}
	return q, nil
}

// clientLocation maps a Location (or the target of a Link) of the server to what the client may follow.
// A path outside the prefix is not ours to map and stays as it is.
func clientLocation(prefix, ns, location string) string {
	u, err := url.Parse(location)
	if err != nil {
		return location
	}
	rest, ok := strings.CutPrefix(u.EscapedPath(), "/v2/"+prefix+"/")
	if !ok {
		return location
	}
	query := u.RawQuery
	if ns != "" {
		// The client reached the edge by its address; without ns the next request would lose its host.
		q := u.Query()
		q.Set("ns", ns)
		query = q.Encode()
	}
	out := "/v2/" + rest
	if query != "" {
		out += "?" + query
	}
	return out
}

// clientLink maps a Link header such as `</v2/…>; rel="next"`.
func clientLink(prefix, ns, link string) string {
	target, params, ok := cutLink(link)
	if !ok {
		return link
	}
	return "<" + clientLocation(prefix, ns, target) + ">" + params
}

func cutLink(link string) (target, params string, ok bool) {
	rest, ok := strings.CutPrefix(link, "<")
	if !ok {
		return "", "", false
	}
	return strings.Cut(rest, ">")
}

// catalogQuery asks the server for what follows last among the repositories of one host. The server sorts
// by path components, so the host's repositories come right after the host's own name.
func catalogQuery(prefix string, q url.Values) url.Values {
	q = cloneValues(q)
	q.Del("ns")
	last := prefix
	if l := q.Get("last"); l != "" {
		last += "/" + l
	}
	q.Set("last", last)
	return q
}

// clientCatalog keeps a host's own repositories. more says whether the server may have further ones of it.
func clientCatalog(prefix string, repositories []string) (own []string, more bool) {
	own = []string{}
	for _, r := range repositories {
		if name, ok := strings.CutPrefix(r, prefix+"/"); ok {
			own = append(own, name)
		}
	}
	if n := len(repositories); n > 0 {
		more = strings.HasPrefix(repositories[n-1], prefix+"/")
	}
	return own, more
}

func cloneValues(q url.Values) url.Values {
	out := make(url.Values, len(q)+1)
	for k, v := range q {
		out[k] = append([]string(nil), v...)
	}
	return out
}

func abbreviate(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n] + "…"
}
