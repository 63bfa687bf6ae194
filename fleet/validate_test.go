package fleet

import (
	"strings"
	"testing"
	"testing/fstest"
)

func TestValidateNamesFileAndLine(t *testing.T) {
	for _, test := range []struct {
		name  string
		spoil func(*testing.T, fstest.MapFS)
		want  string
	}{
		{"broken YAML", func(t *testing.T, tree fstest.MapFS) {
			replace(t, tree, "infrastructure/cluster-aws/values-overrides.yaml", "  region:", "region\n  x:")
		}, "infrastructure/cluster-aws/values-overrides.yaml:"},
		{"a key twice", func(t *testing.T, tree fstest.MapFS) {
			replace(t, tree, "infrastructure/cluster-aws/values-overrides.yaml", "  region: us-west-2", "  region: us-west-2\n  region: eu-west-1")
		}, `infrastructure/cluster-aws/values-overrides.yaml:6: key "region" is already in line 5`},
		{"an unknown key in fleet.yaml", func(t *testing.T, tree fstest.MapFS) {
			replace(t, tree, "fleet.yaml", "branch: main", "brnch: main")
		}, `fleet.yaml:8: unknown key "brnch"`},
		{"any workflow may sign (P34)", func(t *testing.T, tree fstest.MapFS) {
			replace(t, tree, "fleet.yaml", "workflows/conveyor.yaml@refs/heads/main", "workflows/.*")
		}, "looks like a pattern"},
		{"any branch may sign (P34)", func(t *testing.T, tree fstest.MapFS) {
			replace(t, tree, "fleet.yaml", "conveyor.yaml@refs/heads/main", "conveyor.yaml")
		}, "is no workflow of GitHub with its ref"},
		{"an issuer that anybody could be", func(t *testing.T, tree fstest.MapFS) {
			replace(t, tree, "fleet.yaml", "issuer: https://token", "issuer: http://token")
		}, "is no address of an issuer"},
		{"two clusters of one name", func(t *testing.T, tree fstest.MapFS) {
			replace(t, tree, "fleet.yaml", "name: cluster-gcp", "name: cluster-aws")
		}, `cluster "cluster-aws" is named twice`},
		{"an unknown cloud", func(t *testing.T, tree fstest.MapFS) {
			replace(t, tree, "fleet.yaml", "cloud: gcp", "cloud: azure")
		}, `cluster cluster-gcp is on cloud "azure"`},
		{"a tag that is a number (P5)", func(t *testing.T, tree fstest.MapFS) {
			replace(t, tree, "apps/omnivision-ui/cluster-aws.yaml", `"0.1.0"`, `1.10`)
		}, "apps/omnivision-ui/cluster-aws.yaml:4: ui.tag is not a string"},
		{"the tag latest", func(t *testing.T, tree fstest.MapFS) {
			replace(t, tree, "apps/omnivision-ui/cluster-aws.yaml", `"0.1.0"`, `"latest"`)
		}, "the tag latest moves"},
		{"a malformed digest", func(t *testing.T, tree fstest.MapFS) {
			replace(t, tree, "apps/omnivision-worker/cluster-gcp.yaml", `digest: ""`, `digest: "sha256:abc"`)
		}, "apps/omnivision-worker/cluster-gcp.yaml:5: "},
		{"a value among the released ones", func(t *testing.T, tree fstest.MapFS) {
			replace(t, tree, "apps/omnivision-ui/cluster-aws.yaml", "  digest", "  replicas: 3\n  digest")
		}, "ui.replicas is not what a release changes"},
		{"a tag that overrides releases", func(t *testing.T, tree fstest.MapFS) {
			tree["infrastructure/cluster-aws/values-overrides.yaml"].Data = append(tree["infrastructure/cluster-aws/values-overrides.yaml"].Data, "ui:\n  tag: \"1\"\n"...)
		}, "ui.tag would override every release"},
		{"the wrong region", func(t *testing.T, tree fstest.MapFS) {
			replace(t, tree, "infrastructure/cluster-gcp/values-overrides.yaml", "region: europe-west1", "region: europe-west4")
		}, `infrastructure/cluster-gcp/values-overrides.yaml:5: global.region is not "europe-west1"`},
		{"a cluster without its release file", func(t *testing.T, tree fstest.MapFS) {
			delete(tree, "apps/omnivision-ui/cluster-gcp.yaml")
		}, "apps/omnivision-ui/cluster-gcp.yaml: cannot be read"},
		{"a directory of no cluster", func(t *testing.T, tree fstest.MapFS) {
			tree["infrastructure/cluster-old/argo-app.yaml"] = &fstest.MapFile{Data: []byte("{}\n")}
		}, "infrastructure/cluster-old: belongs to no cluster"},
		{"allowEmpty left to its default (P8)", func(t *testing.T, tree fstest.MapFS) {
			replace(t, tree, "components/traefik/application.yaml", ", allowEmpty: false", "")
		}, "components/traefik/application.yaml:"},
		{"CRDs that are pruned (P8)", func(t *testing.T, tree fstest.MapFS) {
			replace(t, tree, "components/crds/application.yaml", "prune: false", "prune: true")
		}, "may delete every object of a kind"},
		{"a namespace that prunes (P8)", func(t *testing.T, tree fstest.MapFS) {
			replace(t, tree, "components/namespaces/omnivision.yaml", "Prune=confirm,", "")
		}, "components/namespaces/omnivision.yaml:"},
		{"a finalizer that deletes workloads (P8)", func(t *testing.T, tree fstest.MapFS) {
			replace(t, tree, "components/prometheus/application.yaml", "  namespace: argocd\n", "  namespace: argocd\n  finalizers: [resources-finalizer.argocd.argoproj.io]\n")
		}, "deletes what it brought"},
		{"upstream that moves", func(t *testing.T, tree fstest.MapFS) {
			replace(t, tree, "components/argo-rollouts/application.yaml", "targetRevision: v1.10.2", "targetRevision: master")
		}, "components/argo-rollouts/application.yaml:14: "},
		{"a chart version range (P2)", func(t *testing.T, tree fstest.MapFS) {
			replace(t, tree, "infrastructure/cluster-aws/platform.yaml", `"0.1.0"`, `">=0.1.0"`)
		}, "infrastructure/cluster-aws/platform.yaml:17: "},
		{"an image without version", func(t *testing.T, tree fstest.MapFS) {
			replace(t, tree, "components/traefik/manifests/deployment.yaml", "traefik:v3.6.12", "traefik:latest")
		}, "components/traefik/manifests/deployment.yaml:"},
		{"a value file that no webhook announces", func(t *testing.T, tree fstest.MapFS) {
			replace(t, tree, "infrastructure/cluster-aws/platform.yaml", "/apps/omnivision-ui/values.yaml;", "")
		}, "reads apps/omnivision-ui/values.yaml and is not refreshed by it"},
		{"a manifest that no webhook announces", func(t *testing.T, tree fstest.MapFS) {
			replace(t, tree, "infrastructure/cluster-aws/argo-app.yaml", "/components/*/*.yaml", "/components/argocd/*.yaml")
		}, "and is not refreshed by it"},
		{"an annotation that every push matches", func(t *testing.T, tree fstest.MapFS) {
			replace(t, tree, "infrastructure/cluster-gcp/platform.yaml", "/infrastructure/cluster-gcp/values-overrides.yaml\n", "/infrastructure/cluster-gcp/values-overrides.yaml;.\n")
		}, "is refreshed by every change of infrastructure/cluster-aws/"},
		{"a repository that the project does not list", func(t *testing.T, tree fstest.MapFS) {
			replace(t, tree, "components/projects/infrastructure.yaml", "    - https://github.com/traefik/traefik.git\n", "")
		}, "may not use https://github.com/traefik/traefik.git"},
		{"a Secret", func(t *testing.T, tree fstest.MapFS) {
			tree["components/argocd/secret.yaml"] = &fstest.MapFile{Data: []byte("apiVersion: v1\nkind: Secret\nmetadata:\n  name: x\n")}
		}, "components/argocd/secret.yaml:2: is a Secret"},
		{"a private key", func(t *testing.T, tree fstest.MapFS) {
			tree["README.md"] = &fstest.MapFile{Data: []byte("\n-----BEGIN RSA PRIVATE" + " KEY-----\n")}
		}, "README.md:2: holds a private key"},
		{"a kustomization that fetches", func(t *testing.T, tree fstest.MapFS) {
			replace(t, tree, "components/kustomization.yaml", "  - traefik\n", "  - traefik\n  - https://example.com/a?ref=main\n")
		}, "components/kustomization.yaml:13: fetches https://example.com/a?ref=main"},
		{"a kustomization that names what is not there", func(t *testing.T, tree fstest.MapFS) {
			replace(t, tree, "components/kustomization.yaml", "  - traefik\n", "  - traefic\n")
		}, "traefic"},
	} {
		t.Run(test.name, func(t *testing.T) {
			tree := tree(t)
			test.spoil(t, tree)
			problems := Validate(tree)
			for _, p := range problems {
				if strings.Contains(p.Error(), test.want) {
					return
				}
			}
			t.Errorf("no problem says %q; there are %d:", test.want, len(problems))
			for _, p := range problems {
				t.Log(p)
			}
		})
	}
}

func TestWavesFollowTheirNumber(t *testing.T) {
	f := &Fleet{Clusters: []Cluster{{Name: "c", Wave: 2}, {Name: "a", Wave: 1}, {Name: "d", Wave: 10}, {Name: "b", Wave: 2}}}
	var got []string
	for _, wave := range f.Waves() {
		var names []string
		for _, c := range wave {
			names = append(names, c.Name)
		}
		got = append(got, strings.Join(names, "+"))
	}
	if want := "a c+b d"; strings.Join(got, " ") != want {
		t.Errorf("waves are %v, want %s", got, want)
	}
}

func TestKustomizationsThatFetchFilesAreRefused(t *testing.T) {
	const url = "HTTPS://192.0.2.1/x.yaml"
	for name, c := range map[string]struct {
		file, text string
		refused    bool
	}{
		"a patch":           {"kustomization.yaml", "patches:\n  - path: " + url, true},
		"a generator":       {"kustomization.yaml", "configMapGenerator:\n  - name: x\n    files: [key=" + url + "]", true},
		"a schema":          {"kustomization.yml", "openapi: {path: " + url + "}", true},
		"without extension": {"Kustomization", "resources: [" + url + "]", true},
		"a literal is text": {"kustomization.yaml", "configMapGenerator:\n  - name: x\n    literals: [url=" + url + "]", false},
		"so is a patch":     {"kustomization.yaml", "patches:\n  - patch: " + url, false},
		"no kustomization":  {"notes.yaml", "resources: [" + url + "]", false},
	} {
		problems := CheckFiles(fstest.MapFS{"a/" + c.file: {Data: []byte(c.text + "\n")}})
		if refused := len(problems) > 0; refused != c.refused {
			t.Errorf("%s: %v", name, problems)
		}
	}
}
