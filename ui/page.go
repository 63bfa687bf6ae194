package ui

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"html/template"
	"io"
	"net/http"

	"github.com/omnivision/omnivision/worker/api"
	"github.com/omnivision/omnivision/worker/serve"
)

//go:embed page
var files embed.FS

// page is everything that a browser gets from the ui itself. The index is
// rendered once: nothing in it changes while the process lives.
type page struct {
	policy    string
	etag      string
	html      []byte
	icon      []byte
	problemed *template.Template
	common    common
}

// common is what both templates show.
type common struct {
	Identity api.Identity
	Style    template.CSS
	Script   template.JS
	Limits   api.Limits
	Defaults defaults
	Action   string
	Problem  *api.Problem
}

type defaults struct{ Side, Frames, FPS int }

func newPage(id api.Identity) (*page, error) {
	read := func(name string) ([]byte, error) { return files.ReadFile("page/" + name) }
	style, err := read("style.css")
	if err != nil {
		return nil, err
	}
	script, err := read("app.js")
	if err != nil {
		return nil, err
	}
	icon, err := read("favicon.svg")
	if err != nil {
		return nil, err
	}
	templates, err := template.ParseFS(files, "page/*.html")
	if err != nil {
		return nil, fmt.Errorf("reading the page: %w", err)
	}
	c := common{
		Identity: id, Style: template.CSS(style), Script: template.JS(script), Action: api.GenerationsPath,
		Limits: api.DefaultLimits(), Defaults: defaults{api.DefaultSide, api.DefaultFrames, api.DefaultFPS},
	}
	var html bytes.Buffer
	if err := templates.ExecuteTemplate(&html, "index.html", c); err != nil {
		return nil, fmt.Errorf("rendering the page: %w", err)
	}
	sum := sha256.Sum256(html.Bytes())
	return &page{
		policy: policy(style, script), etag: `"` + hex.EncodeToString(sum[:16]) + `"`,
		html: html.Bytes(), icon: icon, problemed: templates.Lookup("problem.html"), common: c,
	}, nil
}

// policy allows this page's style and script and nothing else that could run.
// blob: is the finished animation, which the script puts together.
func policy(style, script []byte) string {
	hash := func(b []byte) string {
		sum := sha256.Sum256(b)
		return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
	}
	return "default-src 'none'; script-src " + hash(script) + "; style-src " + hash(style) +
		"; img-src 'self' blob:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
}

func (p *page) index(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-cache") // ask each time: a new version must be seen at once
	h.Set("ETag", p.etag)
	if r.Header.Get("If-None-Match") == p.etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	_, _ = w.Write(p.html)
}

func (p *page) favicon(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "image/svg+xml")
	w.Header().Set("Cache-Control", "public, max-age=86400")
	_, _ = w.Write(p.icon)
}

// problem tells somebody without JavaScript what went wrong.
func (p *page) problem(w http.ResponseWriter, problem *api.Problem) {
	c := p.common
	c.Problem = problem
	var html bytes.Buffer
	if err := p.problemed.Execute(&html, c); err != nil {
		http.Error(w, problem.Error(), problem.Status)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	serve.SetRetryAfter(h, problem.RetryAfter)
	w.WriteHeader(problem.Status)
	_, _ = io.Copy(w, &html)
}
