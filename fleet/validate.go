package fleet

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// Validate looks for everything in a tree that a cluster would choke on, or that one of
// the fleet's rules forbids: YAML that does not parse, a cluster without its files, an
// image without a digest, an Application that may prune everything (P8), would wait for
// the poll instead of the webhook, or is refreshed by another cluster's change. A tree
// without Problems renders in every cluster.
func Validate(tree fs.FS) []Problem {
	v := &validator{tree: tree, index: map[string][]place{}}
	// Nothing can be said of what a file means while a file does not parse.
	if v.files(); len(v.problems) > 0 {
		return v.sorted()
	}
	f, err := Load(tree)
	if err != nil {
		v.add(err)
		return v.sorted()
	}
	v.fleet = f
	v.directories()
	for _, c := range f.Clusters {
		v.releases(c)
		v.overrides(c)
		v.cluster(c)
	}
	v.quarantined()
	return v.sorted()
}

// CheckFiles is the part of Validate that looks at each file by itself: YAML that does not
// parse, secrets, and kustomizations that fetch. A tree that passes can be rendered
// without a network, whoever wrote it.
func CheckFiles(tree fs.FS) []Problem {
	v := &validator{tree: tree, index: map[string][]place{}}
	v.files()
	return v.sorted()
}

type validator struct {
	tree     fs.FS
	fleet    *Fleet
	index    map[string][]place // "Kind/name" to where it is written
	problems []Problem
}

type place struct {
	file string
	node *yaml.Node
}

func (v *validator) add(err error) {
	var p Problem
	if !errors.As(err, &p) {
		p = Problem{Message: err.Error()}
	}
	if !slices.Contains(v.problems, p) { // the same shared file, seen from two clusters
		v.problems = append(v.problems, p)
	}
}

func (v *validator) sorted() []Problem {
	slices.SortStableFunc(v.problems, func(a, b Problem) int {
		if c := strings.Compare(a.File, b.File); c != 0 {
			return c
		}
		return a.Line - b.Line
	})
	return v.problems
}

// secretPatterns are of things that must never be in Git (P6).
var secretPatterns = []struct {
	what    string
	pattern *regexp.Regexp
}{
	{"a private key", regexp.MustCompile(`-----BEGIN [A-Z ]*PRIVATE KEY`)},
	{"an AWS access key", regexp.MustCompile(`\bAKIA[0-9A-Z]{16}\b`)},
	{"a GitHub token", regexp.MustCompile(`\b(ghp|gho|ghs|ghr)_[A-Za-z0-9]{36}\b|\bgithub_pat_[A-Za-z0-9_]{40,}`)},
	{"a Google API key", regexp.MustCompile(`\bAIza[0-9A-Za-z_-]{35}\b`)},
	{"a Google service account's key", regexp.MustCompile(`"private_key_id"`)},
}

// files parses every YAML file of the tree.
func (v *validator) files() {
	err := fs.WalkDir(v.tree, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && d.Name() == ".git":
			return fs.SkipDir
		case d.IsDir():
			return nil
		case !d.Type().IsRegular():
			v.add(Problem{File: name, Message: "is no regular file", Fix: "Argo CD refuses links that leave the repository: put the content here"})
			return nil
		}
		src, err := fs.ReadFile(v.tree, name)
		if err != nil {
			return err
		}
		for i, line := range strings.Split(string(src), "\n") {
			for _, s := range secretPatterns {
				if s.pattern.MatchString(line) {
					v.add(Problem{File: name, Line: i + 1, Message: "holds " + s.what, Fix: "revoke it, and refer to a secret store instead"})
				}
			}
		}
		if ext := path.Ext(name); ext != ".yaml" && ext != ".yml" && path.Base(name) != "Kustomization" {
			return nil
		}
		docs, err := parseAll(name, src)
		if err != nil {
			v.add(err)
			return nil
		}
		if stem, _, _ := strings.Cut(path.Base(name), "."); strings.EqualFold(stem, "kustomization") && len(docs) > 0 {
			v.remote(name, docs[0])
		}
		for _, doc := range docs {
			kind, object := find(doc, "kind"), find(doc, "metadata", "name")
			if kind == nil || object == nil {
				continue
			}
			if kind.Value == "Secret" {
				v.add(Problem{File: name, Line: kind.Line, Message: "is a Secret", Fix: "refer to one of the cluster's secret store (ExternalSecret)"})
			}
			key := kind.Value + "/" + object.Value
			v.index[key] = append(v.index[key], place{name, doc})
		}
		return nil
	})
	if err != nil {
		v.add(fmt.Errorf("reading the tree: %w", err))
	}
}

// remote refuses kustomizations that fetch: what a commit means would depend on somebody
// else's server, and reading a proposed change would run Git against it.
func (v *validator) remote(file string, doc *yaml.Node) {
	for _, key := range []string{"resources", "components", "bases", "crds", "generators", "transformers", "validators", "configurations"} {
		list := find(doc, key)
		if list == nil {
			continue
		}
		for _, entry := range list.Content {
			if remotePattern.MatchString(entry.Value) {
				v.fetches(file, entry)
			}
		}
	}
	v.remoteFiles(file, doc)
	if chart := find(doc, "helmCharts"); chart != nil {
		v.add(Problem{File: file, Line: chart.Line, Message: "inflates charts in kustomize", Fix: "an Application of its own takes the chart"})
	}
}

func (v *validator) fetches(file string, n *yaml.Node) {
	v.add(Problem{File: file, Line: n.Line, Message: fmt.Sprintf("fetches %s", n.Value), Fix: "an Application of its own takes it from there, at a tag"})
}

// remoteFiles finds URLs in the place of files, which kustomize would get: of patches,
// replacements, generators and schemas, at any depth.
func (v *validator) remoteFiles(file string, n *yaml.Node) {
	if n.Kind == yaml.ScalarNode {
		_, value, named := strings.Cut(n.Value, "=") // name=file in a generator
		if urlPattern.MatchString(n.Value) || (named && urlPattern.MatchString(value)) {
			v.fetches(file, n)
		}
		return
	}
	if n.Kind != yaml.MappingNode {
		for _, item := range n.Content {
			v.remoteFiles(file, item)
		}
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if !textKeys[n.Content[i].Value] {
			v.remoteFiles(file, n.Content[i+1])
		}
	}
}

var urlPattern = regexp.MustCompile(`^(?i)https?:`)

// textKeys are the keys of a kustomization below which a URL is text and names no file.
var textKeys = map[string]bool{
	"literals": true, "patch": true, "options": true, "commonAnnotations": true, "annotations": true,
	"buildMetadata": true, "images": true,
}

var remotePattern = regexp.MustCompile(`://|^git@|^github\.com[:/]|\?ref=|\.git(//|$)`)

// directories finds clusters and apps that fleet.yaml does not name: nothing would tell
// that a release passes them by.
func (v *validator) directories() {
	check := func(dir, what string, known func(string) bool) {
		entries, err := fs.ReadDir(v.tree, dir)
		if err != nil {
			v.add(Problem{File: dir, Message: "cannot be read: " + reason(err)})
			return
		}
		for _, e := range entries {
			if e.IsDir() && !known(e.Name()) {
				v.add(Problem{File: path.Join(dir, e.Name()), Message: fmt.Sprintf("belongs to no %s of %s", what, File), Fix: "name it there or remove it"})
			}
		}
	}
	check("infrastructure", "cluster", func(n string) bool {
		return slices.ContainsFunc(v.fleet.Clusters, func(c Cluster) bool { return c.Name == n })
	})
	check("apps", "app", func(n string) bool {
		return slices.ContainsFunc(v.fleet.Apps, func(a App) bool { return a.Name == n })
	})
}

func (v *validator) releases(c Cluster) {
	for _, app := range v.fleet.Apps {
		if _, err := ReadRelease(v.tree, app, c.Name); err != nil {
			v.add(err)
		}
		file := app.ReleaseFile(c.Name)
		src, err := fs.ReadFile(v.tree, file)
		if err != nil {
			continue
		}
		// What else is in there would be overlooked by whoever reviews a release.
		doc, err := parse(file, src)
		if err != nil {
			continue
		}
		allowed := []string{strings.Join(app.keys("tag"), "."), strings.Join(app.keys("digest"), ".")}
		leaves(doc, nil, func(keys []string, n *yaml.Node) {
			if key := strings.Join(keys, "."); !slices.Contains(allowed, key) {
				v.add(Problem{File: file, Line: n.Line, Message: key + " is not what a release changes", Fix: "move it to " + app.ValuesFile() + " or " + c.OverridesFile()})
			}
		})
	}
}

func leaves(n *yaml.Node, keys []string, visit func([]string, *yaml.Node)) {
	if n.Kind != yaml.MappingNode {
		visit(keys, n)
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		leaves(n.Content[i+1], append(slices.Clone(keys), n.Content[i].Value), visit)
	}
}

// overrides compares what fleet.yaml and the chart's values both say of a cluster.
func (v *validator) overrides(c Cluster) {
	file := c.OverridesFile()
	src, err := fs.ReadFile(v.tree, file)
	if err != nil {
		v.add(Problem{File: file, Message: "cannot be read: " + reason(err), Fix: "every cluster has one"})
		return
	}
	doc, err := parse(file, src)
	if err != nil {
		v.add(err)
		return
	}
	for _, want := range []struct{ key, value string }{
		{"cloudProvider", c.Cloud}, {"region", c.Region}, {"cluster", c.Name}, {"imageRegistry", c.ImageRegistry},
	} {
		node := find(doc, "global", want.key)
		if node == nil || node.Value != want.value {
			v.add(Problem{File: file, Line: nearest(doc, "global", want.key), Message: fmt.Sprintf("global.%s is not %q", want.key, want.value), Fix: File + " says so of " + c.Name})
		}
	}
	for _, app := range v.fleet.Apps {
		for _, key := range []string{"tag", "digest"} {
			if node := find(doc, app.keys(key)...); node != nil {
				v.add(Problem{File: file, Line: node.Line, Message: fmt.Sprintf("%s would override every release", strings.Join(app.keys(key), ".")), Fix: "move it to " + app.ReleaseFile(c.Name)})
			}
		}
	}
}

// at finds where an object is written, first in the cluster's own files.
func (v *validator) at(c Cluster, kind, name string, keys ...string) Problem {
	places := slices.Clone(v.index[kind+"/"+name])
	own := func(p place) int {
		switch {
		case strings.HasPrefix(p.file, c.Dir()+"/"):
			return 0
		case strings.HasPrefix(p.file, "components/"):
			return 1
		}
		return 2
	}
	slices.SortStableFunc(places, func(a, b place) int { return own(a) - own(b) })
	for _, p := range places {
		if own(p) < 2 && find(p.node, keys...) != nil {
			return Problem{File: p.file, Line: nearest(p.node, keys...)}
		}
	}
	for _, p := range places {
		if own(p) < 2 {
			return Problem{File: p.file, Line: nearest(p.node, keys...)}
		}
	}
	return Problem{File: c.Dir()}
}

func (v *validator) cluster(c Cluster) {
	objects, read, err := renderSource(v.tree, Source{Path: c.Dir()}, "")
	if err != nil {
		v.add(err)
		return
	}
	projects := map[string]*unstructured.Unstructured{}
	apps := map[string]Application{}
	for _, o := range objects {
		switch {
		case o.GetKind() == "AppProject":
			projects[o.GetName()] = o
		case IsApplication(o):
			app, err := ParseApplication(o)
			if err != nil {
				v.add(err)
				continue
			}
			apps[app.Name()] = app
		case o.GetKind() == "Namespace" || o.GetKind() == "PersistentVolumeClaim":
			if !strings.Contains(o.GetAnnotations()["argocd.argoproj.io/sync-options"], "Prune=confirm") {
				p := v.at(c, o.GetKind(), o.GetName(), "metadata", "annotations")
				p.Message, p.Fix = fmt.Sprintf("%s %s can be pruned without a question (P8)", o.GetKind(), o.GetName()), "annotate it with argocd.argoproj.io/sync-options: Prune=confirm"
				v.add(p)
			}
		}
	}
	for _, name := range []string{RootApplication, PlatformApplication} {
		if _, ok := apps[name]; !ok {
			v.add(Problem{File: c.Dir() + "/kustomization.yaml", Message: "brings no Application " + name})
		}
	}
	for _, app := range apps {
		v.application(c, app, projects[app.Spec.Project])
		switch app.Name() {
		case RootApplication:
			v.root(c, app)
			v.refreshed(c, app, read)
		case PlatformApplication:
			v.platform(c, app)
		}
		v.ownManifests(c, app)
	}
}

func (v *validator) application(c Cluster, app Application, project *unstructured.Unstructured) {
	report := func(message, fix string, keys ...string) {
		p := v.at(c, "Application", app.Name(), keys...)
		p.Message, p.Fix = fmt.Sprintf("Application %s %s", app.Name(), message), fix
		v.add(p)
	}
	auto := app.Spec.SyncPolicy.Automated
	switch {
	case auto == nil || (auto.Enabled != nil && !*auto.Enabled):
		report("does not follow Git by itself", "set syncPolicy.automated", "spec", "syncPolicy")
	case app.Name() == CRDsApplication && auto.Prune:
		report("may delete every object of a kind, as a CRD takes all of them along (P8)", "say prune: false", "spec", "syncPolicy", "automated")
	case !auto.SelfHeal || !auto.Prune && app.Name() != CRDsApplication:
		report("leaves behind what Git does not say", "set prune and selfHeal", "spec", "syncPolicy", "automated")
	case auto.AllowEmpty == nil || *auto.AllowEmpty:
		report("may delete everything when a rendering is empty (P8)", "say allowEmpty: false", "spec", "syncPolicy", "automated")
	}
	for _, option := range []struct{ name, why string }{
		{"ServerSideApply=true", "(P9)"}, {"RespectIgnoreDifferences=true", "(P9)"},
		{"ApplyOutOfSyncOnly=true", "and applies everything for each change of one thing"},
	} {
		if !slices.Contains(app.Spec.SyncPolicy.SyncOptions, option.name) {
			report("lacks the sync option "+option.name+" "+option.why, "", "spec", "syncPolicy", "syncOptions")
		}
	}
	if app.Spec.SyncPolicy.Retry == nil || app.Spec.SyncPolicy.Retry.Backoff == nil {
		report("gives up after one failure", "set syncPolicy.retry with a backoff", "spec", "syncPolicy")
	}
	if _, ok := app.Metadata.Annotations["argocd.argoproj.io/sync-wave"]; !ok {
		report("has no sync wave (P7)", "", "metadata", "annotations")
	}
	if len(app.Metadata.Finalizers) > 0 {
		report("deletes what it brought when it is deleted (P8)", "remove the finalizer", "metadata", "finalizers")
	}
	if app.Metadata.Namespace != "argocd" {
		report("is not in namespace argocd", "Argo CD looks there only", "metadata", "namespace")
	}
	sources := app.AllSources()
	if len(sources) == 0 {
		report("has no source", "", "spec")
	}
	for i, s := range sources {
		where := []string{"spec", "source"}
		if len(app.Spec.Sources) > 0 {
			where = []string{"spec", "sources", fmt.Sprint(i)}
		}
		moving := s.TargetRevision == "" || s.TargetRevision == "HEAD" || s.TargetRevision == "latest" || strings.ContainsAny(s.TargetRevision, "*<>=^~ ")
		switch {
		case s.RepoURL == v.fleet.Repository && s.TargetRevision != v.fleet.Branch:
			report(fmt.Sprintf("follows %q of this repository", s.TargetRevision), "clusters follow "+v.fleet.Branch, append(where, "targetRevision")...)
		case s.RepoURL != v.fleet.Repository && (moving || s.TargetRevision == "main" || s.TargetRevision == "master"):
			report(fmt.Sprintf("takes %q of %s, which moves", s.TargetRevision, s.RepoURL), "pin a tag or a version", append(where, "targetRevision")...)
		}
		if project != nil && !permits(project, "sourceRepos", s.RepoURL) {
			report(fmt.Sprintf("may not use %s: project %s does not list it", s.RepoURL, app.Spec.Project), "", append(where, "repoURL")...)
		}
	}
	switch {
	case project == nil:
		report(fmt.Sprintf("is in project %q, which this cluster does not have", app.Spec.Project), "", "spec", "project")
	case !permitsDestination(project, app.Spec.Destination):
		report(fmt.Sprintf("may not write to namespace %s: project %s does not list it", app.Spec.Destination.Namespace, app.Spec.Project), "", "spec", "destination")
	}
	// P2: a file of one cluster's is no other cluster's business.
	for _, other := range v.fleet.Clusters {
		if other.Name == c.Name {
			continue
		}
		files := []string{other.RootFile(), other.OverridesFile(), other.PlatformFile()}
		for _, a := range v.fleet.Apps {
			files = append(files, a.ReleaseFile(other.Name))
		}
		for _, file := range files {
			if app.Refreshes(v.fleet.Repository, file) {
				report(fmt.Sprintf("of %s is refreshed by every change of %s", c.Name, file), "name its own files in the annotation "+PathsAnnotation, "metadata", "annotations", PathsAnnotation)
				break
			}
		}
	}
}

func permits(project *unstructured.Unstructured, field, value string) bool {
	list, _, _ := unstructured.NestedStringSlice(project.Object, "spec", field)
	return slices.Contains(list, value) || slices.Contains(list, "*")
}

func permitsDestination(project *unstructured.Unstructured, d Destination) bool {
	list, _, _ := unstructured.NestedSlice(project.Object, "spec", "destinations")
	return slices.ContainsFunc(list, func(item any) bool {
		m, ok := item.(map[string]any)
		return ok && m["server"] == d.Server && m["namespace"] == d.Namespace
	})
}

func (v *validator) root(c Cluster, app Application) {
	sources := app.AllSources()
	if len(sources) != 1 || sources[0].Path != c.Dir() || sources[0].RepoURL != v.fleet.Repository {
		p := v.at(c, "Application", app.Name(), "spec", "source", "path")
		p.Message = fmt.Sprintf("the root Application of %s does not render %s of %s", c.Name, c.Dir(), v.fleet.Repository)
		v.add(p)
	}
	if app.Refreshes(v.fleet.Repository, c.OverridesFile()) {
		p := v.at(c, "Application", app.Name(), "metadata", "annotations", PathsAnnotation)
		p.Message, p.Fix = "the root Application is refreshed by "+c.OverridesFile()+", which it does not read", "that is the platform's"
		v.add(p)
	}
}

// refreshed checks that the paths annotation covers every file that a rendering reads:
// what it does not cover arrives with the next poll.
func (v *validator) refreshed(c Cluster, app Application, files []string) {
	for _, file := range files {
		if !app.Refreshes(v.fleet.Repository, file) {
			p := v.at(c, "Application", app.Name(), "metadata", "annotations", PathsAnnotation)
			p.Message, p.Fix = fmt.Sprintf("Application %s reads %s and is not refreshed by it", app.Name(), file), "add it to the annotation "+PathsAnnotation
			v.add(p)
		}
	}
}

func (v *validator) platform(c Cluster, app Application) {
	report := func(message, fix string, keys ...string) {
		p := v.at(c, "Application", app.Name(), keys...)
		p.Message, p.Fix = message, fix
		v.add(p)
	}
	chart, ok := app.Chart()
	if !ok || chart.RepoURL != v.fleet.Chart.Registry || chart.Chart != v.fleet.Chart.Name {
		report(fmt.Sprintf("the platform of %s is not the chart %s/%s", c.Name, v.fleet.Chart.Registry, v.fleet.Chart.Name), File+" names it", "spec", "sources")
		return
	}
	files, err := app.ValueFiles(v.fleet.Repository)
	if err != nil {
		report(err.Error(), "", "spec", "sources", "0", "helm", "valueFiles")
		return
	}
	var want []string
	for _, a := range v.fleet.Apps {
		want = append(want, a.ValuesFile(), a.ReleaseFile(c.Name))
	}
	want = append(want, c.OverridesFile())
	if !slices.Equal(files, want) {
		report(fmt.Sprintf("the platform of %s takes its values from %s", c.Name, strings.Join(files, ", ")), "in this order: "+strings.Join(want, ", "), "spec", "sources", "0", "helm", "valueFiles")
	}
	for _, file := range files {
		if _, err := fs.Stat(v.tree, file); err != nil {
			report(fmt.Sprintf("the platform of %s takes values from %s, which is not there", c.Name, file), "", "spec", "sources", "0", "helm", "valueFiles")
		}
	}
	v.refreshed(c, app, files)
}

// ownManifests renders what this repository itself holds for a component.
func (v *validator) ownManifests(c Cluster, app Application) {
	if app.Name() == RootApplication {
		return
	}
	for _, s := range app.AllSources() {
		if s.RepoURL != v.fleet.Repository || s.Path == "" {
			continue
		}
		objects, read, err := renderSource(v.tree, s, app.Spec.Destination.Namespace)
		if err != nil {
			v.add(err)
			continue
		}
		v.refreshed(c, app, read)
		for _, o := range objects {
			for _, image := range Images(o) {
				if _, tag, ok := splitImage(image); !ok || tag == "latest" {
					p := v.at(c, o.GetKind(), o.GetName(), "spec", "template", "spec", "containers")
					p.Message, p.Fix = fmt.Sprintf("image %q has no fixed version", image), "name a tag, not latest"
					v.add(p)
				}
			}
		}
	}
}

// Images are the images of an object's containers, init containers included, once each.
func Images(o *unstructured.Unstructured) []string {
	found := images(o.Object)
	slices.Sort(found)
	return slices.Compact(found)
}

func images(value any) []string {
	var found []string
	switch x := value.(type) {
	case map[string]any:
		for key, item := range x {
			list, ok := item.([]any)
			if !ok || (key != "containers" && key != "initContainers") {
				found = append(found, images(item)...)
				continue
			}
			for _, entry := range list {
				if c, ok := entry.(map[string]any); ok {
					image, _ := c["image"].(string)
					found = append(found, image)
				}
			}
		}
	case []any:
		for _, item := range x {
			found = append(found, images(item)...)
		}
	}
	return found
}

func splitImage(image string) (name, tag string, ok bool) {
	name, _, _ = strings.Cut(image, "@")
	i := strings.LastIndex(name, ":")
	if i <= strings.LastIndex(name, "/") {
		return name, "", strings.Contains(image, "@")
	}
	return name[:i], name[i+1:], true
}
