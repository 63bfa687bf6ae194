package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	psa "k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

const component = "../../omnivision-gitops/components/steward"

// rendered renders the component, with or without the right to drain nodes.
func rendered(t *testing.T, drain bool) map[string][]byte {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "steward")
	if err := os.CopyFS(dir, os.DirFS(component)); err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(dir, "manifests")
	if drain {
		at = filepath.Join(dir, "overlay")
		if err := os.Mkdir(at, 0o755); err != nil {
			t.Fatal(err)
		}
		content := "resources: [../manifests]\ncomponents: [../drain]\n"
		if err := os.WriteFile(filepath.Join(at, "kustomization.yaml"), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	all, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), at)
	if err != nil {
		t.Fatal(err)
	}
	objects := map[string][]byte{}
	for _, r := range all.Resources() {
		data, err := r.AsYAML()
		if err != nil {
			t.Fatal(err)
		}
		objects[r.GetKind()+"/"+r.GetNamespace()+"/"+r.GetName()] = data
	}
	return objects
}

func decode(t *testing.T, data []byte, into any) {
	t.Helper()
	if err := yaml.UnmarshalStrict(data, into); err != nil {
		t.Fatalf("%v in\n%s", err, data)
	}
}

func TestDeploymentIsRestrictedAndItsFlagsAreUnderstood(t *testing.T) {
	for _, drain := range []bool{false, true} {
		var d appsv1.Deployment
		decode(t, rendered(t, drain)["Deployment//omnivision-steward"], &d)
		evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
		if err != nil {
			t.Fatal(err)
		}
		restricted := psa.LevelVersion{Level: psa.LevelRestricted, Version: psa.LatestVersion()}
		for _, r := range evaluator.EvaluatePod(restricted, &d.Spec.Template.ObjectMeta, &d.Spec.Template.Spec) {
			if !r.Allowed {
				t.Errorf("Pod Security: %s %s", r.ForbiddenReason, r.ForbiddenDetail)
			}
		}
		env := map[string]string{}
		for _, e := range d.Spec.Template.Spec.Containers[0].Env {
			env[e.Name] = "given"
		}
		var out bytes.Buffer
		o, err := parse(d.Spec.Template.Spec.Containers[0].Args, func(name string) string { return env[name] }, &out)
		if err != nil || o.drain != drain {
			t.Errorf("the arguments are not understood: %v (drain: %v)", err, o.drain)
		}
		if *d.Spec.Replicas != 2 {
			t.Errorf("there are %d replicas", *d.Spec.Replicas)
		}
	}
}

// What is granted is exactly what steward/observe asks for, and the Lease.
func TestRightsAreTheLeast(t *testing.T) {
	base := []string{
		"argocd: applications.argoproj.io get,list,watch",
		"omnivision: analysisruns.argoproj.io get,list,watch",
		"omnivision: pods get,list,watch",
		"omnivision: pods/log get",
		"omnivision: replicasets.apps get,list,watch",
		"omnivision: rollouts.argoproj.io get,list,watch",
		": leases.coordination.k8s.io create",
		": leases.coordination.k8s.io[omnivision-steward] get,update",
	}
	for _, c := range []struct {
		drain bool
		want  []string
	}{
		{false, base},
		{true, append(slices.Clone(base), "cluster: nodes get,patch", "omnivision: pods/eviction create", "omnivision: rollouts/status.argoproj.io patch")},
	} {
		var got []string
		for key, data := range rendered(t, c.drain) {
			parts := strings.Split(key, "/")
			where := parts[1]
			switch parts[0] {
			case "ClusterRole":
				where = "cluster"
			case "Role":
			default:
				continue
			}
			var role rbacv1.Role // a ClusterRole's rules are written alike
			data = bytes.Replace(data, []byte("kind: ClusterRole"), []byte("kind: Role"), 1)
			decode(t, data, &role)
			for _, rule := range role.Rules {
				for _, resource := range rule.Resources {
					name := strings.TrimSuffix(resource+"."+rule.APIGroups[0], ".")
					if len(rule.ResourceNames) > 0 {
						name += fmt.Sprint(rule.ResourceNames)
					}
					got = append(got, where+": "+name+" "+strings.Join(rule.Verbs, ","))
				}
			}
		}
		slices.Sort(got)
		slices.Sort(c.want)
		if !slices.Equal(got, c.want) {
			t.Errorf("granted is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
		}
	}
}
