package policy

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/omnivision/omnivision/conveyor/sign/signtest"
	"github.com/omnivision/omnivision/fleet"
)

// image is a policy with a spec, which is indented by two.
func image(name, spec string) Document {
	return Document{Name: name, Raw: []byte("apiVersion: policy.sigstore.dev/v1beta1\nkind: ClusterImagePolicy\nmetadata: {name: " + name + "}\nspec:\n" + spec)}
}

func release(name, spec string) Document {
	return Document{Name: name, Raw: []byte("apiVersion: omnivision.ai/v1alpha1\nkind: ReleasePolicy\nmetadata: {name: " + name + "}\nspec:\n" + spec)}
}

func compile(t testing.TB, sources Sources) *Set {
	t.Helper()
	set, err := Compile(sources)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func match(t testing.TB, set *Set, written string, labels map[string]string) *Match {
	t.Helper()
	ref, err := name.ParseReference(written, name.WeakValidation)
	if err != nil {
		t.Fatal(err)
	}
	return set.Match(written, ref, labels)
}

const pass = "  authorities: [{static: {action: pass}}]\n"

func TestGlobsMatchAsThePolicyControllers(t *testing.T) {
	digest := "@sha256:" + strings.Repeat("a", 64)
	for _, c := range []struct {
		glob, image string
		want        bool
	}{
		{"**", "busybox", true},
		{"*", "busybox", true}, // index.docker.io/library/*
		{"*/*", "acme/app", true},
		{"ghcr.io/acme/*", "ghcr.io/acme/app:1", true},
		{"ghcr.io/acme/*", "ghcr.io/acme/app" + digest, true},
		{"ghcr.io/acme/*", "ghcr.io/acme/deep/app:1", false},
		{"ghcr.io/acme/**", "ghcr.io/acme/deep/app:1", true},
		{"ghcr.io/acme/app", "ghcr.io/acme/app", true}, // as it is written
		{"ghcr.io/acme/app", "ghcr.io/acme/app:1", false},
		{"ghcr.io/acme/app:**", "ghcr.io/acme/app:1", true},
		{"ghcr.io/acme/*", "ghcr.io.evil.com/acme/app:1", false},
		{"ghcr.io/acme/*", "evil.com/ghcr.io/acme/app:1", false},
		{"**/omnivision-*", "123456789012.dkr.ecr.us-west-2.amazonaws.com/omnivision/omnivision-worker:1" + digest, true},
		{"**/omnivision-*", "ghcr.io/omnivision/other:1", false},
	} {
		set := compile(t, Sources{ClusterImagePolicies: []Document{image("one", "  images: [{glob: \""+c.glob+"\"}]\n"+pass)}})
		if got := len(match(t, set, c.image, nil).Images) == 1; got != c.want {
			t.Errorf("%s matches %s: %t, want %t", c.glob, c.image, got, c.want)
		}
	}
}

func TestFieldThatIsNotSupportedRefusesTheImagesOfItsPolicy(t *testing.T) {
	for field, spec := range map[string]string{
		"spec.authorities[0].key.kms":                "  authorities: [{key: {kms: \"gcpkms://x\"}}]\n",
		"spec.authorities[0].keyless.ca-cert":        "  authorities: [{keyless: {ca-cert: {data: x}, identities: [{issuer: a, subject: b}]}}]\n",
		"spec.authorities[0].keyless.trustRootRef":   "  authorities: [{keyless: {trustRootRef: x, identities: [{issuer: a, subject: b}]}}]\n",
		"spec.authorities[0].source":                 "  authorities: [{source: [{oci: x}], keyless: {identities: [{issuer: a, subject: b}]}}]\n",
		"spec.authorities[0].attestations[0].policy": "  authorities: [{keyless: {identities: [{issuer: a, subject: b}]}, attestations: [{name: a, predicateType: \"https://a/b\", policy: {type: cue, data: x}}]}]\n",
		"spec.policy":     pass + "  policy: {type: rego, data: x}\n",
		"spec.match[0]":   pass + "  match: [{resource: deployments, group: apps, version: v1}]\n",
		`"spec.surprise"`: pass + "  surprise: true\n",
		`spec.authorities[0].keyless: no trusted root`: "  authorities: [{keyless: {identities: [{issuer: a, subject: b}]}}]\n",
		"spec.authorities[0].key.secretRef":            "  authorities: [{key: {secretRef: {name: gone}}}]\n",
	} {
		set := compile(t, Sources{ClusterImagePolicies: []Document{image("one", "  images: [{glob: \"ghcr.io/**\"}]\n"+spec)}})
		status := set.Statuses()[0]
		if status.Err == nil || !strings.Contains(status.Err.Error(), field) {
			t.Errorf("the status says %v, want %s", status.Err, field)
		}
		if m := match(t, set, "ghcr.io/a/b:1", nil); len(m.Images) != 1 || m.Images[0].Err == nil {
			t.Errorf("%s: the policy is not there for its images: %+v", field, m)
		}
		if m := match(t, set, "quay.io/a/b:1", nil); len(m.Images) != 0 {
			t.Errorf("%s: the policy is there for others' images", field)
		}
	}
}

// Which images a policy is for cannot be told from what is no glob.
func TestPolicyWhoseImagesCannotBeReadIsForAll(t *testing.T) {
	for name, document := range map[string]Document{
		"glob":    image("one", "  images: [{glob: \"[\"}]\n"+pass),
		"nothing": image("one", pass),
		"no YAML": {Name: "one", Raw: []byte("{")},
	} {
		set := compile(t, Sources{ClusterImagePolicies: []Document{document}})
		if m := match(t, set, "ghcr.io/a/b:1", nil); len(m.Images) != 1 || m.Images[0].Err == nil {
			t.Errorf("%s: %+v", name, m)
		}
	}
}

func TestSelectorLimitsAPolicyToPodsWithLabels(t *testing.T) {
	set := compile(t, Sources{ClusterImagePolicies: []Document{image("one", "  images: [{glob: \"**\"}]\n"+pass+"  match: [{resource: pods, version: v1, selector: {matchLabels: {a: b}}}]\n")}})
	for range 2 {
		if len(match(t, set, "x", map[string]string{"a": "b"}).Images) != 1 || len(match(t, set, "x", map[string]string{"a": "c"}).Images) != 0 {
			t.Error("labels do not decide")
		}
	}
}

func TestStatusWarnsOfAPatternThatIsNotAnchored(t *testing.T) {
	for pattern, want := range map[string]bool{".*acme.*": true, "^https://a$": false, "^https://a": true, "https://a$": true, `^a\$`: true} {
		p, err := DecodeClusterImagePolicy(image("one", fmt.Sprintf("  images: [{glob: x}]\n  authorities: [{keyless: {identities: [{issuer: a, subjectRegExp: '%s'}]}}]\n", pattern)).Raw)
		if err != nil {
			t.Fatal(err)
		}
		warnings, err := p.Check()
		if err != nil || (len(warnings) > 0) != want {
			t.Errorf("%s: %v, %v", pattern, warnings, err)
		}
	}
}

func TestKeyComesFromASecretOfTheGate(t *testing.T) {
	_, public := signtest.Key(t)
	spec := "  images: [{glob: \"**\"}]\n  authorities: [{key: {secretRef: {name: cosign, namespace: %s}}}]\n"
	secret := func(name string) (map[string][]byte, error) {
		if name != "cosign" {
			return nil, errors.New("not found")
		}
		return map[string][]byte{"cosign.pub": public}, nil
	}
	for namespace, want := range map[string]bool{"omnivision-system": true, "default": false} {
		set := compile(t, Sources{ClusterImagePolicies: []Document{image("one", fmt.Sprintf(spec, namespace))}, Secret: secret, Namespace: "omnivision-system"})
		if err := set.Usable(); (err == nil) != want {
			t.Errorf("%s: %v", namespace, err)
		}
	}
}

// What was proven under a key must not count for another demand.
func TestMatchKeyChangesWithTheDemandAlone(t *testing.T) {
	_, public := signtest.Key(t)
	_, other := signtest.Key(t)
	spec := "  images: [{glob: \"**\"}]\n  authorities: [{key: {secretRef: {name: k}}}]\n"
	key := func(pem []byte, documents ...Document) string {
		set := compile(t, Sources{ClusterImagePolicies: documents, Secret: func(string) (map[string][]byte, error) { return map[string][]byte{"k": pem}, nil }})
		return match(t, set, "a/b:1", nil).Key
	}
	base := key(public, image("one", spec))
	for name, changed := range map[string]string{
		"key":     key(other, image("one", spec)),
		"mode":    key(public, image("one", spec+"  mode: warn\n")),
		"name":    key(public, image("two", spec)),
		"another": key(public, image("one", spec), image("two", "  images: [{glob: \"**\"}]\n"+pass)),
	} {
		if changed == base {
			t.Errorf("another %s has the same key", name)
		}
	}
	if key(public, image("one", spec), image("two", "  images: [{glob: \"other/**\"}]\n"+pass)) != base {
		t.Error("a policy for other images changes the key")
	}
}

func TestListsApplyToRepositoriesByTheirEnds(t *testing.T) {
	a, b := "sha256:"+strings.Repeat("a", 64), "sha256:"+strings.Repeat("b", 64)
	set := compile(t, Sources{ReleasePolicies: []Document{release("lists", `
  floors: [{repository: omnivision-worker, version: "1.4.0"}]
  admitted: [{repository: acme/omnivision-worker, digest: `+a+`}]
  quarantine: [{digest: `+b+`, app: omnivision-worker, version: "1.5.0", reason: "GPU errors", cluster: cluster-aws, evidence: "https://x/1"}]
`)}})
	if err := set.Usable(); err != nil {
		t.Fatal(err)
	}
	if f := set.Floors("r.io/acme/omnivision-worker"); len(f) != 1 || f[0].Version != "1.4.0" || f[0].Policy != "lists" {
		t.Errorf("floors are %+v", f)
	}
	if len(set.Floors("r.io/acme/not-omnivision-worker")) != 0 {
		t.Error("half an element matches")
	}
	if !set.Admitted("r.io/acme/omnivision-worker", a) || set.Admitted("r.io/other/omnivision-worker", a) || set.Admitted("r.io/acme/omnivision-worker", b) {
		t.Error("admitted is wrong")
	}
	for name, c := range map[string]struct {
		repository, digest string
		versions           []string
		want               bool
	}{
		"digest, wherever it is":      {"elsewhere/x", b, nil, true},
		"same release":                {"r.io/acme/omnivision-worker", a, []string{"1.4.0", "1.5.0"}, true},
		"another version":             {"r.io/acme/omnivision-worker", a, []string{"1.5.1"}, false},
		"same version of another app": {"r.io/acme/omnivision-ui", a, []string{"1.5.0"}, false},
	} {
		if q, got := set.Quarantined(c.repository, c.digest, c.versions); got != c.want || got && !strings.Contains(q.Entry, "GPU errors (https://x/1)") {
			t.Errorf("%s: %t, %+v", name, got, q)
		}
	}
}

// The tree and fleet.yaml both say who signs releases.
func TestOurPoliciesTrustWhomTheFleetTrusts(t *testing.T) {
	tree := os.DirFS("../../omnivision-gitops")
	described, err := fleet.Load(tree)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile("../../omnivision-gitops/components/policies/manifests/cluster-image-policy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	decoded, err := DecodeClusterImagePolicy(raw)
	if err != nil {
		t.Fatal(err)
	}
	if warnings, err := decoded.Check(); err != nil || len(warnings) > 0 {
		t.Errorf("it is not used as it is written: %v, %v", warnings, err)
	}
	want := Identity{Issuer: described.Release.Issuer, Subject: described.Release.Identity}
	for _, authority := range decoded.Spec.Authorities {
		if authority.Keyless == nil || len(authority.Keyless.Identities) != 1 || authority.Keyless.Identities[0] != want {
			t.Errorf("the policy trusts %+v, and fleet.yaml %+v", authority.Keyless, want)
		}
	}
	if decoded.Spec.Mode == "warn" {
		t.Error("the policy only warns")
	}
	var images []string
	for _, cluster := range described.Clusters {
		for _, app := range described.Apps {
			images = append(images, cluster.ImageRegistry+"/"+app.Repository+":1.0.0")
		}
	}
	set := compile(t, Sources{
		ClusterImagePolicies: []Document{{Name: decoded.Name, Raw: raw}},
		ReleasePolicies:      []Document{ours(t, "release-policy.yaml"), ours(t, "quarantine.yaml")},
	})
	for _, status := range set.Statuses()[1:] {
		if status.Err != nil {
			t.Errorf("%s %s: %v", status.Kind, status.Name, status.Err)
		}
	}
	for _, written := range images {
		if m := match(t, set, written, nil); len(m.Images) != 1 || len(m.Releases) != 1 {
			t.Errorf("for %s there are %v", written, m.Names)
		}
	}
}

// The root that clusters get must know who vouches for what is signed today: both logs, of which new signatures are in
// the second, and the timestamp authority that alone says when.
func TestPublicTrustKnowsTodaysLogsAndAuthorities(t *testing.T) {
	raw, err := os.ReadFile("../../omnivision-gitops/components/gate/manifests/trusted_root.json")
	if err != nil {
		t.Fatal(err)
	}
	roots, err := parseRoots([][]byte{raw})
	if err != nil {
		t.Fatal(err)
	}
	for _, log := range []string{"https://rekor.sigstore.dev", "https://log2025-1.rekor.sigstore.dev"} {
		if !knowsLog(roots[0], log) {
			t.Errorf("it does not know the log %s", log)
		}
	}
	if len(roots[0].TimestampingAuthorities()) == 0 || len(roots[0].CTLogs()) == 0 {
		t.Error("it knows no timestamp authority or no certificate log")
	}
	if _, ok := limit(roots[0], "https://fulcio.sigstore.dev"); !ok {
		t.Error("it does not know Fulcio")
	}
}

func ours(t *testing.T, file string) Document {
	raw, err := os.ReadFile("../../omnivision-gitops/components/policies/manifests/" + file)
	if err != nil {
		t.Fatal(err)
	}
	return Document{Name: strings.TrimSuffix(file, ".yaml"), Raw: raw}
}

func FuzzPolicies(f *testing.F) {
	f.Add([]byte(image("one", "  images: [{glob: \"**\"}]\n"+pass).Raw))
	f.Add([]byte(release("one", "  images: [{glob: \"**\"}]\n  scan: {maxAge: 1h}\n").Raw))
	f.Add([]byte("apiVersion: policy.sigstore.dev/v1beta1\nkind: ClusterImagePolicy\nspec: {images: [{glob: '*'}], authorities: [{keyless: {identities: [{subjectRegExp: '(', issuer: x}]}}]}"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		set, err := Compile(Sources{ClusterImagePolicies: []Document{{"a", raw}}, ReleasePolicies: []Document{{"b", raw}}})
		if err != nil {
			return
		}
		ref, _ := name.ParseReference("ghcr.io/acme/app:1")
		m := set.Match("ghcr.io/acme/app:1", ref, nil)
		// A policy that cannot be used at all must not vanish.
		if set.Statuses()[0].Err != nil && len(m.Images) == 0 {
			if p, err := DecodeClusterImagePolicy(raw); err != nil && len(p.Spec.Images) == 0 {
				t.Errorf("nothing is left of the policy %q", raw)
			}
		}
	})
}
