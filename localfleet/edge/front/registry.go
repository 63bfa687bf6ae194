package front

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// bodyLimit bounds the answers that are held in memory to be mapped: lists and errors, never blobs.
const bodyLimit = 16 << 20

// exchange is what the response's mapping must know of its request.
type exchange struct {
	ns      string
	tagList bool
	catalog bool
}

type exchangeKey struct{}

// registryHandler serves one registry host out of the shared registry.
func (f *Front) registryHandler(rt *route, base *url.URL) func(http.ResponseWriter, *http.Request, string) error {
	rt.proxy.Rewrite = func(p *httputil.ProxyRequest) {
		p.Out.URL.Scheme, p.Out.URL.Host = base.Scheme, base.Host
		p.Out.Host = ""
		p.SetXForwarded()
		// Credentials for the production registry are of no use to this one and must not end up in its log.
		p.Out.Header.Del("Authorization")
		p.Out.Header.Del("Cookie")
		// Bodies that are mapped must not arrive compressed.
		p.Out.Header.Del("Accept-Encoding")
	}
	rt.proxy.ModifyResponse = func(resp *http.Response) error {
		x, _ := resp.Request.Context().Value(exchangeKey{}).(exchange)
		return mapResponse(rt.prefix, x, resp)
	}
	return func(w http.ResponseWriter, r *http.Request, ns string) error {
		if err := f.mayWrite(r, rt.host); err != nil {
			return err
		}
		x := exchange{ns: ns}
		path, query, err := x.mapRequest(rt.prefix, r.URL)
		if err != nil {
			return err
		}
		out := r.WithContext(context.WithValue(r.Context(), exchangeKey{}, x))
		out.URL = &url.URL{Path: path, RawQuery: query}
		rt.proxy.ServeHTTP(w, out)
		return nil
	}
}

// mayWrite refuses pushes from the clusters.
func (f *Front) mayWrite(r *http.Request, host string) error {
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return nil
	}
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err == nil {
		for _, prefix := range f.opts.Writers {
			if prefix.Contains(peer.Addr().Unmap()) {
				return nil
			}
		}
	}
	return &problem{http.StatusForbidden, "DENIED",
		fmt.Sprintf("%s may read from %s and not write to it: only the addresses in the edge's `writers` may push, as in production only the release pipeline may", r.RemoteAddr, host)}
}

func (x *exchange) mapRequest(prefix string, u *url.URL) (path, query string, err error) {
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return "", "", &problem{http.StatusBadRequest, "UNSUPPORTED", fmt.Sprintf("the query of the request: %v", err)}
	}
	switch u.Path {
	case "/v2", "/v2/":
		return "/v2/", "", nil
	case "/v2/_catalog":
		x.catalog = true
		return u.Path, catalogQuery(prefix, q).Encode(), nil
	}
	repo, err := parseRepoPath(u.Path)
	if err != nil {
		return "", "", err
	}
	x.tagList = repo.isTagList()
	q, err = serverQuery(prefix, q)
	if err != nil {
		return "", "", err
	}
	return repo.serverPath(prefix), q.Encode(), nil
}

func mapResponse(prefix string, x exchange, resp *http.Response) error {
	if l := resp.Header.Get("Location"); l != "" {
		resp.Header.Set("Location", clientLocation(prefix, x.ns, l))
	}
	if l := resp.Header.Get("Link"); l != "" && !x.catalog {
		resp.Header.Set("Link", clientLink(prefix, x.ns, l))
	}
	if resp.Request.Method == http.MethodHead || !strings.Contains(resp.Header.Get("Content-Type"), "json") {
		return nil
	}
	switch {
	case resp.StatusCode >= 400:
		return mapBody(resp, func(body []byte) ([]byte, error) {
			// Messages and details name the repository in several ways; the prefix is a host name and
			// stands in an error for nothing else.
			return bytes.ReplaceAll(body, []byte(prefix+"/"), nil), nil
		})
	case resp.StatusCode == http.StatusOK && x.catalog:
		return mapCatalog(prefix, x, resp)
	case resp.StatusCode == http.StatusOK && x.tagList:
		return mapBody(resp, func(body []byte) ([]byte, error) {
			var list struct {
				Name string   `json:"name"`
				Tags []string `json:"tags"`
			}
			if err := json.Unmarshal(body, &list); err != nil {
				return nil, err
			}
			list.Name = strings.TrimPrefix(list.Name, prefix+"/")
			return json.Marshal(list)
		})
	}
	return nil
}

func mapCatalog(prefix string, x exchange, resp *http.Response) error {
	link := resp.Header.Get("Link")
	resp.Header.Del("Link")
	return mapBody(resp, func(body []byte) ([]byte, error) {
		var list struct {
			Repositories []string `json:"repositories"`
		}
		if err := json.Unmarshal(body, &list); err != nil {
			return nil, err
		}
		own, more := clientCatalog(prefix, list.Repositories)
		if target, params, ok := cutLink(link); ok && more && len(own) > 0 {
			if u, err := url.Parse(target); err == nil {
				q := u.Query()
				q.Set("last", own[len(own)-1])
				if x.ns != "" {
					q.Set("ns", x.ns)
				}
				resp.Header.Set("Link", "</v2/_catalog?"+q.Encode()+">"+params)
			}
		}
		list.Repositories = own
		return json.Marshal(list)
	})
}

func mapBody(resp *http.Response, mapper func([]byte) ([]byte, error)) error {
	body, err := io.ReadAll(io.LimitReader(resp.Body, bodyLimit+1))
	_ = resp.Body.Close() // read to its end, or given up
	if err != nil {
		return fmt.Errorf("reading the registry's answer: %w", err)
	}
	if len(body) > bodyLimit {
		return &problem{http.StatusBadGateway, "UNKNOWN", fmt.Sprintf("the registry's list is larger than %d MiB: ask for pages (?n=1000)", bodyLimit>>20)}
	}
	body, err = mapper(body)
	if err != nil {
		return fmt.Errorf("reading the registry's answer: %w", err)
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	resp.ContentLength = int64(len(body))
	resp.Header.Set("Content-Length", strconv.Itoa(len(body)))
	return nil
}
