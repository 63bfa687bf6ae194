package github

import (
	"crypto/sha1"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// fakeGitHub answers as https://docs.github.com/rest documents it, for one
// repository, as far as the driver goes. Each handler names the page.
type fakeGitHub struct {
	mu       sync.Mutex
	commits  map[string]fakeCommit
	branches map[string]string
	pulls    []*fakePull
	comments []map[string]any
	statuses map[string][]map[string]any
	runs     map[string][]map[string]any
	deploys  []map[string]any
	deployed map[int][]map[string]any // newest first
	protect  map[string]map[string]any
	hooks    []map[string]any
	secrets  map[int]string
	requests []string
	nextID   int
}

type fakeCommit struct {
	parent string
	files  map[string]string
}

type fakePull struct {
	number                     int
	title, body, head, base    string
	headRepo                   string
	state, mergedSHA, mergedAt string
	frozenHead                 string
}

const validToken = "ghs_valid"

func newFakeGitHub(t *testing.T) (*fakeGitHub, *httptest.Server) {
	f := &fakeGitHub{
		commits: map[string]fakeCommit{}, branches: map[string]string{}, statuses: map[string][]map[string]any{},
		runs: map[string][]map[string]any{}, deployed: map[int][]map[string]any{}, protect: map[string]map[string]any{}, secrets: map[int]string{},
	}
	f.branches["main"] = f.store("", map[string]string{"README.md": "hello"})
	mux := http.NewServeMux()
	const repo = "/repos/omnivision/gitops"
	for pattern, handler := range map[string]http.HandlerFunc{
		"GET /user":                                   f.user,
		"GET " + repo + "/branches/{branch...}":       f.getProtection,
		"GET " + repo + "/git/ref/heads/{branch...}":  f.ref,
		"PUT " + repo + "/branches/{branch...}":       f.updateProtection,
		"GET " + repo + "/contents/{path...}":         f.contents,
		"GET " + repo + "/pulls":                      f.listPulls,
		"POST " + repo + "/pulls":                     f.createPull,
		"GET " + repo + "/pulls/{number}":             f.getPull,
		"PATCH " + repo + "/pulls/{number}":           f.updatePull,
		"PUT " + repo + "/pulls/{number}/merge":       f.mergePull,
		"GET " + repo + "/issues/{n}/comments":        f.listComments,
		"POST " + repo + "/issues/{n}/comments":       f.createComment,
		"PATCH " + repo + "/issues/comments/{id}":     f.updateComment,
		"GET " + repo + "/commits/{ref...}":           f.combinedStatusOrRuns,
		"POST " + repo + "/statuses/{sha}":            f.createStatus,
		"GET " + repo + "/deployments":                f.listDeployments,
		"POST " + repo + "/deployments":               f.createDeployment,
		"GET " + repo + "/deployments/{id}/statuses":  f.listDeploymentStatuses,
		"POST " + repo + "/deployments/{id}/statuses": f.createDeploymentStatus,
		"GET " + repo + "/hooks":                      f.listHooks,
		"POST " + repo + "/hooks":                     f.createHook,
		"PATCH " + repo + "/hooks/{id}":               f.updateHook,
		"DELETE " + repo + "/hooks/{id}":              f.deleteHook,
	} {
		mux.HandleFunc(pattern, handler)
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { notFound(w) })
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.requests = append(f.requests, r.Method+" "+r.URL.Path)
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		w.Header().Set("X-RateLimit-Limit", "5000")
		w.Header().Set("X-RateLimit-Remaining", "4999")
		if r.Header.Get("Authorization") != "Bearer "+validToken {
			answer(w, http.StatusUnauthorized, map[string]any{"message": "Bad credentials", "documentation_url": "https://docs.github.com/rest", "status": "401"})
			return
		}
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	return f, server
}

func answer(w http.ResponseWriter, status int, body any) {
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

func notFound(w http.ResponseWriter) {
	answer(w, http.StatusNotFound, map[string]any{"message": "Not Found", "documentation_url": "https://docs.github.com/rest", "status": "404"})
}

func body(r *http.Request) map[string]any {
	var m map[string]any
	_ = json.NewDecoder(r.Body).Decode(&m)
	return m
}

func text(m map[string]any, key string) string {
	s, _ := m[key].(string)
	return s
}

func (f *fakeGitHub) id() int { f.nextID++; return f.nextID }

func (f *fakeGitHub) store(parent string, files map[string]string) string {
	data, _ := json.Marshal([]any{parent, files, len(f.commits)})
	sum := sha1.Sum(data)
	sha := hex.EncodeToString(sum[:])
	f.commits[sha] = fakeCommit{parent, files}
	return sha
}

// commit is git push.
func (f *fakeGitHub) commit(branch, path, content string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	parent, ok := f.branches[branch]
	if !ok {
		parent = f.branches["main"]
	}
	files := maps.Clone(f.commits[parent].files)
	files[path] = content
	f.branches[branch] = f.store(parent, files)
	return f.branches[branch]
}

func (f *fakeGitHub) resolve(ref string) (string, bool) {
	if sha, ok := f.branches[ref]; ok {
		return sha, true
	}
	_, ok := f.commits[ref]
	return ref, ok
}

// https://docs.github.com/rest/users/users#get-the-authenticated-user
func (f *fakeGitHub) user(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, map[string]any{"login": "omnivision-bot", "id": 1, "type": "User"})
}

// https://docs.github.com/rest/git/refs#get-a-reference
func (f *fakeGitHub) ref(w http.ResponseWriter, r *http.Request) {
	sha, ok := f.branches[r.PathValue("branch")]
	if !ok {
		notFound(w)
		return
	}
	answer(w, http.StatusOK, map[string]any{"ref": "refs/heads/" + r.PathValue("branch"), "object": map[string]any{"type": "commit", "sha": sha}})
}

// https://docs.github.com/rest/branches/branch-protection#get-branch-protection
func (f *fakeGitHub) getProtection(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimSuffix(r.PathValue("branch"), "/protection")
	if f.protect[name] == nil {
		answer(w, http.StatusNotFound, map[string]any{"message": "Branch not protected", "status": "404"})
		return
	}
	answer(w, http.StatusOK, f.protect[name])
}

// https://docs.github.com/rest/branches/branch-protection#update-branch-protection
func (f *fakeGitHub) updateProtection(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimSuffix(r.PathValue("branch"), "/protection")
	in := body(r)
	for _, required := range []string{"required_status_checks", "enforce_admins", "required_pull_request_reviews", "restrictions"} {
		if _, ok := in[required]; !ok {
			answer(w, http.StatusUnprocessableEntity, map[string]any{"message": "Invalid request.\n\n\"" + required + "\" wasn't supplied."})
			return
		}
	}
	out := map[string]any{"enforce_admins": map[string]any{"enabled": in["enforce_admins"]}}
	if checks, ok := in["required_status_checks"].(map[string]any); ok {
		contexts := []string{}
		list, _ := checks["checks"].([]any)
		for _, c := range list {
			contexts = append(contexts, text(c.(map[string]any), "context"))
		}
		out["required_status_checks"] = map[string]any{"strict": checks["strict"], "checks": list, "contexts": contexts}
	}
	if reviews, ok := in["required_pull_request_reviews"].(map[string]any); ok {
		out["required_pull_request_reviews"] = map[string]any{
			"dismiss_stale_reviews": reviews["dismiss_stale_reviews"], "required_approving_review_count": reviews["required_approving_review_count"],
		}
		if bypass, ok := reviews["bypass_pull_request_allowances"].(map[string]any); ok {
			users := []map[string]any{}
			for _, login := range bypass["users"].([]any) {
				users = append(users, map[string]any{"login": login})
			}
			out["required_pull_request_reviews"].(map[string]any)["bypass_pull_request_allowances"] = map[string]any{"users": users, "teams": []any{}, "apps": []any{}}
		}
	}
	f.protect[name] = out
	answer(w, http.StatusOK, out)
}

// https://docs.github.com/rest/repos/contents#get-repository-content
func (f *fakeGitHub) contents(w http.ResponseWriter, r *http.Request) {
	sha, ok := f.resolve(r.URL.Query().Get("ref"))
	path := r.PathValue("path")
	if !ok {
		answer(w, http.StatusNotFound, map[string]any{"message": "No commit found for the ref " + r.URL.Query().Get("ref"), "status": "404"})
		return
	}
	if content, ok := f.commits[sha].files[path]; ok {
		answer(w, http.StatusOK, map[string]any{
			"type": "file", "encoding": "base64", "size": len(content), "name": path[strings.LastIndex(path, "/")+1:], "path": path,
			"content": base64.StdEncoding.EncodeToString([]byte(content)), "sha": "0",
		})
		return
	}
	list := []map[string]any{}
	for name := range f.commits[sha].files {
		if strings.HasPrefix(name, path+"/") {
			list = append(list, map[string]any{"type": "file", "path": name, "name": name})
		}
	}
	if len(list) == 0 {
		notFound(w)
		return
	}
	answer(w, http.StatusOK, list)
}

func (f *fakeGitHub) render(p *fakePull) map[string]any {
	head := f.branches[p.head]
	if p.frozenHead != "" {
		head = p.frozenHead
	}
	out := map[string]any{
		"id": 1000 + p.number, "number": p.number, "state": p.state, "title": p.title, "body": p.body, "draft": false,
		"html_url":   fmt.Sprintf("https://github.com/omnivision/gitops/pull/%d", p.number),
		"user":       map[string]any{"login": "omnivision-bot"},
		"created_at": "2026-11-24T08:00:00Z", "updated_at": "2026-11-24T08:00:00Z", "merged_at": nil, "merge_commit_sha": nil,
		"head": map[string]any{"label": strings.Split(p.headRepo, "/")[0] + ":" + p.head, "ref": p.head, "sha": head, "repo": map[string]any{"full_name": p.headRepo}},
		"base": map[string]any{"label": "omnivision:" + p.base, "ref": p.base, "sha": f.branches[p.base], "repo": map[string]any{"full_name": "omnivision/gitops"}},
	}
	if p.mergedAt != "" {
		out["merged_at"], out["merge_commit_sha"] = p.mergedAt, p.mergedSHA
	}
	return out
}

func (f *fakeGitHub) pull(w http.ResponseWriter, r *http.Request) *fakePull {
	number, _ := strconv.Atoi(r.PathValue("number"))
	if number < 1 || number > len(f.pulls) {
		notFound(w)
		return nil
	}
	return f.pulls[number-1]
}

// https://docs.github.com/rest/pulls/pulls#list-pull-requests
func (f *fakeGitHub) listPulls(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	list := []map[string]any{}
	for _, p := range slices.Backward(f.pulls) {
		label := strings.Split(p.headRepo, "/")[0] + ":" + p.head
		if (q.Get("state") == "all" || q.Get("state") == p.state) && (q.Get("head") == "" || q.Get("head") == label) && (q.Get("base") == "" || q.Get("base") == p.base) {
			list = append(list, f.render(p))
		}
	}
	perPage, _ := strconv.Atoi(q.Get("per_page"))
	page := max(1, atoi(q.Get("page")))
	rest := list[min(len(list), (page-1)*perPage):]
	if len(rest) > perPage {
		rest = rest[:perPage]
		w.Header().Set("Link", fmt.Sprintf(`<http://%s%s?page=%d>; rel="next"`, r.Host, r.URL.Path, page+1))
	}
	answer(w, http.StatusOK, rest)
}

func atoi(s string) int { n, _ := strconv.Atoi(s); return n }

// https://docs.github.com/rest/pulls/pulls#create-a-pull-request
func (f *fakeGitHub) createPull(w http.ResponseWriter, r *http.Request) {
	in := body(r)
	for _, p := range f.pulls {
		if p.state == "open" && p.head == text(in, "head") && p.base == text(in, "base") {
			answer(w, http.StatusUnprocessableEntity, map[string]any{
				"message": "Validation Failed", "status": "422",
				"errors": []map[string]any{{"resource": "PullRequest", "code": "custom", "message": "A pull request already exists for omnivision:" + p.head + "."}},
			})
			return
		}
	}
	p := &fakePull{number: len(f.pulls) + 1, title: text(in, "title"), body: text(in, "body"), head: text(in, "head"), base: text(in, "base"), state: "open", headRepo: "omnivision/gitops"}
	f.pulls = append(f.pulls, p)
	answer(w, http.StatusCreated, f.render(p))
}

// https://docs.github.com/rest/pulls/pulls#get-a-pull-request
func (f *fakeGitHub) getPull(w http.ResponseWriter, r *http.Request) {
	if p := f.pull(w, r); p != nil {
		answer(w, http.StatusOK, f.render(p))
	}
}

// https://docs.github.com/rest/pulls/pulls#update-a-pull-request
func (f *fakeGitHub) updatePull(w http.ResponseWriter, r *http.Request) {
	p := f.pull(w, r)
	if p == nil {
		return
	}
	in := body(r)
	for key, field := range map[string]*string{"title": &p.title, "body": &p.body, "state": &p.state} {
		if value, ok := in[key].(string); ok {
			*field = value
		}
	}
	answer(w, http.StatusOK, f.render(p))
}

// https://docs.github.com/rest/pulls/pulls#merge-a-pull-request
func (f *fakeGitHub) mergePull(w http.ResponseWriter, r *http.Request) {
	p := f.pull(w, r)
	if p == nil {
		return
	}
	in := body(r)
	head := f.branches[p.head]
	refuse := func(status int, message string) {
		answer(w, status, map[string]any{"message": message, "documentation_url": "https://docs.github.com/rest/pulls/pulls#merge-a-pull-request", "status": strconv.Itoa(status)})
	}
	if sha := text(in, "sha"); sha != "" && sha != head {
		refuse(http.StatusConflict, "Head branch was modified. Review and try the merge again.")
		return
	}
	if missing := f.missingCheck(p.base, head); missing != "" {
		refuse(http.StatusMethodNotAllowed, "Required status check \""+missing+"\" is expected.")
		return
	}
	merged, ok := f.merge(f.branches[p.base], head)
	if !ok {
		refuse(http.StatusMethodNotAllowed, "Pull Request is not mergeable")
		return
	}
	p.frozenHead = head
	f.branches[p.base] = merged
	p.state, p.mergedSHA, p.mergedAt = "closed", merged, "2026-11-24T09:00:00Z"
	answer(w, http.StatusOK, map[string]any{"sha": merged, "merged": true, "message": "Pull Request successfully merged"})
}

func (f *fakeGitHub) missingCheck(branch, sha string) string {
	checks, _ := f.protect[branch]["required_status_checks"].(map[string]any)
	contexts, _ := checks["contexts"].([]string)
	for _, context := range contexts {
		if s := f.latest(sha)[context]; s == nil || s["state"] != "success" {
			return context
		}
	}
	return ""
}

// merge takes the files that the head changed since the branches parted.
func (f *fakeGitHub) merge(base, head string) (string, bool) {
	ancestors := map[string]bool{}
	for at := base; at != ""; at = f.commits[at].parent {
		ancestors[at] = true
	}
	common := head
	for !ancestors[common] {
		common = f.commits[common].parent
	}
	files := maps.Clone(f.commits[base].files)
	for path, content := range f.commits[head].files {
		old := f.commits[common].files[path]
		if content == old {
			continue
		}
		if files[path] != old && files[path] != content {
			return "", false
		}
		files[path] = content
	}
	return f.store(base, files), true
}

// https://docs.github.com/rest/issues/comments#list-issue-comments
func (f *fakeGitHub) listComments(w http.ResponseWriter, r *http.Request) {
	list := []map[string]any{}
	for _, c := range f.comments {
		if c["issue"] == r.PathValue("n") {
			list = append(list, c)
		}
	}
	answer(w, http.StatusOK, list)
}

// https://docs.github.com/rest/issues/comments#create-an-issue-comment
func (f *fakeGitHub) createComment(w http.ResponseWriter, r *http.Request) {
	answer(w, http.StatusCreated, f.addComment(r.PathValue("n"), "omnivision-bot", text(body(r), "body")))
}

func (f *fakeGitHub) addComment(issue, login, text string) map[string]any {
	id := f.id()
	c := map[string]any{
		"id": id, "body": text, "user": map[string]any{"login": login}, "issue": issue,
		"html_url": fmt.Sprintf("https://github.com/omnivision/gitops/pull/%s#issuecomment-%d", issue, id),
	}
	f.comments = append(f.comments, c)
	return c
}

// https://docs.github.com/rest/issues/comments#update-an-issue-comment
func (f *fakeGitHub) updateComment(w http.ResponseWriter, r *http.Request) {
	for _, c := range f.comments {
		if c["id"] == atoi(r.PathValue("id")) {
			c["body"] = text(body(r), "body")
			answer(w, http.StatusOK, c)
			return
		}
	}
	notFound(w)
}

func (f *fakeGitHub) latest(sha string) map[string]map[string]any {
	latest := map[string]map[string]any{}
	for _, s := range f.statuses[sha] {
		latest[text(s, "context")] = s
	}
	return latest
}

// https://docs.github.com/rest/commits/statuses#get-the-combined-status-for-a-specific-reference
// and https://docs.github.com/rest/checks/runs#list-check-runs-for-a-git-reference
func (f *fakeGitHub) combinedStatusOrRuns(w http.ResponseWriter, r *http.Request) {
	ref, status := strings.CutSuffix(r.PathValue("ref"), "/status")
	if !status {
		ref = strings.TrimSuffix(ref, "/check-runs")
	}
	sha, ok := f.resolve(ref)
	switch {
	case !ok:
		answer(w, http.StatusUnprocessableEntity, map[string]any{"message": "No commit found for SHA: " + ref, "status": "422"})
	case status:
		list := []map[string]any{}
		for _, s := range f.latest(sha) {
			list = append(list, s)
		}
		slices.SortFunc(list, func(a, b map[string]any) int { return strings.Compare(text(a, "context"), text(b, "context")) })
		answer(w, http.StatusOK, map[string]any{"state": "pending", "statuses": list, "sha": sha, "total_count": len(list)})
	default:
		answer(w, http.StatusOK, map[string]any{"total_count": len(f.runs[sha]), "check_runs": append([]map[string]any{}, f.runs[sha]...)})
	}
}

// https://docs.github.com/rest/commits/statuses#create-a-commit-status
func (f *fakeGitHub) createStatus(w http.ResponseWriter, r *http.Request) {
	in := body(r)
	if len([]rune(text(in, "description"))) > 140 {
		answer(w, http.StatusUnprocessableEntity, map[string]any{"message": "Validation Failed", "errors": []map[string]any{{"resource": "Status", "code": "custom", "field": "description", "message": "description is too long (maximum is 140 characters)"}}})
		return
	}
	in["id"] = f.id()
	f.statuses[r.PathValue("sha")] = append(f.statuses[r.PathValue("sha")], in)
	answer(w, http.StatusCreated, in)
}

// https://docs.github.com/rest/deployments/deployments#list-deployments
func (f *fakeGitHub) listDeployments(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	list := []map[string]any{}
	for _, d := range slices.Backward(f.deploys) {
		if (q.Get("sha") == "" || q.Get("sha") == d["sha"]) && (q.Get("environment") == "" || q.Get("environment") == d["environment"]) {
			list = append(list, d)
		}
	}
	answer(w, http.StatusOK, list)
}

// https://docs.github.com/rest/deployments/deployments#create-a-deployment
func (f *fakeGitHub) createDeployment(w http.ResponseWriter, r *http.Request) {
	in := body(r)
	// The default demands that all statuses of the commit are successful.
	if contexts, ok := in["required_contexts"].([]any); !ok || len(contexts) > 0 || in["auto_merge"] != false {
		answer(w, http.StatusConflict, map[string]any{"message": "Conflict: Commit status checks failed for " + text(in, "ref")})
		return
	}
	d := map[string]any{"id": f.id(), "sha": text(in, "ref"), "ref": text(in, "ref"), "environment": text(in, "environment"), "task": "deploy"}
	f.deploys = append(f.deploys, d)
	answer(w, http.StatusCreated, d)
}

// https://docs.github.com/rest/deployments/statuses#list-deployment-statuses
func (f *fakeGitHub) listDeploymentStatuses(w http.ResponseWriter, r *http.Request) {
	answer(w, http.StatusOK, append([]map[string]any{}, f.deployed[atoi(r.PathValue("id"))]...))
}

// https://docs.github.com/rest/deployments/statuses#create-a-deployment-status
func (f *fakeGitHub) createDeploymentStatus(w http.ResponseWriter, r *http.Request) {
	in, id := body(r), atoi(r.PathValue("id"))
	in["id"] = f.id()
	f.deployed[id] = append([]map[string]any{in}, f.deployed[id]...)
	answer(w, http.StatusCreated, in)
}

// https://docs.github.com/rest/repos/webhooks#list-repository-webhooks
func (f *fakeGitHub) listHooks(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, append([]map[string]any{}, f.hooks...))
}

// https://docs.github.com/rest/repos/webhooks#create-a-repository-webhook
func (f *fakeGitHub) createHook(w http.ResponseWriter, r *http.Request) {
	h := map[string]any{"id": f.id(), "type": "Repository", "name": "web"}
	f.hooks = append(f.hooks, h)
	f.writeHook(h, body(r))
	answer(w, http.StatusCreated, h)
}

// https://docs.github.com/rest/repos/webhooks#update-a-repository-webhook
func (f *fakeGitHub) updateHook(w http.ResponseWriter, r *http.Request) {
	for _, h := range f.hooks {
		if h["id"] == atoi(r.PathValue("id")) {
			f.writeHook(h, body(r))
			answer(w, http.StatusOK, h)
			return
		}
	}
	notFound(w)
}

func (f *fakeGitHub) writeHook(h, in map[string]any) {
	config := in["config"].(map[string]any)
	f.secrets[h["id"].(int)] = text(config, "secret")
	h["active"], h["events"] = in["active"], in["events"]
	h["config"] = map[string]any{"url": config["url"], "content_type": config["content_type"], "insecure_ssl": config["insecure_ssl"], "secret": "********"}
}

// https://docs.github.com/rest/repos/webhooks#delete-a-repository-webhook
func (f *fakeGitHub) deleteHook(w http.ResponseWriter, r *http.Request) {
	for i, h := range f.hooks {
		if h["id"] == atoi(r.PathValue("id")) {
			f.hooks = slices.Delete(f.hooks, i, i+1)
			w.WriteHeader(http.StatusNoContent)
			return
		}
	}
	notFound(w)
}
