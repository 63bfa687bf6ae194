//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	conveyorsource "github.com/omnivision/omnivision/conveyor/source"
)

// movingTag is the tag that one Pod names before it is moved, and another one afterwards.
const movingTag = "moving"

// tagReleased gives the released image a tag.
func tagReleased(ctx context.Context, released name.Digest) (name.Digest, error) {
	described, err := remote.Get(released, remote.WithContext(ctx))
	if err != nil {
		return name.Digest{}, err
	}
	return released, remote.Tag(released.Context().Tag(movingTag), described, remote.WithContext(ctx))
}

// tagUnsigned moves that tag to an image that nobody signed.
func tagUnsigned(ctx context.Context, released name.Digest) (name.Digest, error) {
	made, err := pushUnsigned(ctx, released)
	if err != nil {
		return name.Digest{}, err
	}
	described, err := remote.Get(made, remote.WithContext(ctx))
	if err != nil {
		return name.Digest{}, err
	}
	return made, remote.Tag(made.Context().Tag(movingTag), described, remote.WithContext(ctx))
}

// refusesKey signs an image with a key that no policy names.
func refusesKey(t *testing.T, cluster, released string) {
	image, dir := makeForeign(t, "unsigned", released), t.TempDir()
	mustInside(t, dir, "env", "COSIGN_PASSWORD=", "cosign", "generate-key-pair")
	cosignSign(t, dir, image, "--key cosign.key")
	refuses(t, cluster, image, "[WrongIdentity]")
}

// refusesBranch has the conveyor's own workflow build, scan and sign a worker, for a branch that nobody
// has reviewed (P34).
func refusesBranch(t *testing.T, cluster string) {
	const branch, workflow = "attack", ".github/workflows/conveyor.yaml"
	source := checkout{filepath.Join(t.TempDir(), "source"), "omnivision"}
	source.clone(t)
	source.run(t, "checkout", "--quiet", "-b", branch)
	for range 60 { // or it takes the versions of commits that are still to come
		source.run(t, "commit", "--quiet", "--allow-empty", "--message", "Count on")
	}
	source.change(t, "worker/worker.go", func(s string) string { return s + "\n// A change that nobody has seen.\n" })
	source.change(t, workflow, func(s string) string {
		release, _, _ := strings.Cut(s, "  # What is published already")
		for from, to := range map[string]string{
			"branches: [main]": "branches: [" + branch + "]", "omnivision release --app": "omnivision sign --app",
			"app: [omnivision-worker, omnivision-ui, omnivision-gate, omnivision-steward, omnivision-podlogs]": "app: [omnivision-worker]",
		} {
			if !strings.Contains(release, from) {
				t.Fatalf("%s has no %q", workflow, from)
			}
			release = strings.Replace(release, from, to, 1)
		}
		return release
	})
	source.run(t, "commit", "--quiet", "--all", "--message", "Change the worker and how it is signed")
	source.run(t, "push", "--quiet", "origin", branch)
	revision, err := conveyorsource.Read(t.Context(), source.dir)
	if err != nil {
		t.Fatal(err)
	}
	image := workerRepositories[cluster] + ":" + revision.Version
	took := eventually(t, "the branch's worker to be refused", 5*time.Minute, func() error {
		if err := failedJobs(t, "omnivision"); err != nil {
			t.Fatal(err)
		}
		if err := admits(t, cluster, image); err == nil || !strings.Contains(err.Error(), "[WrongIdentity]") || !strings.Contains(err.Error(), "@refs/heads/"+branch) {
			return fmt.Errorf("the answer is %v", err)
		}
		return nil
	})
	t.Logf("signed by the workflow of a branch, and refused: %.0f s after the push", took.Seconds())
}

// refusesTampered changes a manifest where the registry keeps it.
func refusesTampered(t *testing.T, cluster, released string) {
	image := makeForeign(t, "unsigned", released)
	_, hex, _ := strings.Cut(image, "@sha256:")
	file := filepath.Join("/var/cache/omnivision/registry/data/docker/registry/v2/blobs/sha256", hex[:2], hex, "data")
	manifest, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	write := func(content []byte) {
		if err := os.WriteFile(file, content, 0o644); err != nil {
			t.Error(err)
		}
	}
	defer write(manifest)
	write(append(slices.Clone(manifest), ' '))
	refuses(t, cluster, image, "[Tampered]")
}

// refusesMovedTag starts a Pod by a tag, moves the tag, and tries the next one.
func refusesMovedTag(t *testing.T, cluster, released string) {
	repository, digest, _ := strings.Cut(released, "@")
	tag := repository + ":" + movingTag
	makeForeign(t, "tagged", released)
	said, err := create(t, cluster, "omnivision", "first", tag, "--dry-run=server", "-o", "jsonpath={.spec.containers[0].image}")
	if err != nil || !strings.HasSuffix(said, "@"+digest) {
		t.Errorf("the first Pod of %s: %v\n%s", tag, err, said)
	}
	makeForeign(t, "retagged", released)
	eventually(t, "the moved tag to be refused", time.Minute, func() error { // a tag is believed for seconds
		if err := admits(t, cluster, tag); err == nil || !strings.Contains(err.Error(), "[Unsigned]") {
			return fmt.Errorf("the answer is %v", err)
		}
		return nil
	})
}

// refusesDeployment deploys as somebody to whom nothing is granted, and as somebody who may deploy: the Pods
// that Kubernetes makes of that are judged as all others.
func refusesDeployment(t *testing.T, cluster, released string) {
	image := makeForeign(t, "unsigned", released)
	file := filepath.Join(t.TempDir(), "deployment.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, deployment, image), 0o644); err != nil {
		t.Fatal(err)
	}
	deploy := []string{"kubectl", "--cluster", cluster, "--", "create", "-f", file, "--as", "mallory"}
	if said, err := combined(t, deploy...); err == nil || !strings.Contains(said, `User "mallory" cannot create`) {
		t.Errorf("somebody without rights deploys: %v\n%s", err, said)
	}
	kubectl(t, cluster, "create", "rolebinding", "mallory", "-n", "omnivision", "--clusterrole", "edit", "--user", "mallory")
	t.Cleanup(func() {
		kubectl(t, cluster, "delete", "deployment/foreign", "rolebinding/mallory", "-n", "omnivision", "--ignore-not-found")
	})
	if said, err := combined(t, deploy...); err != nil {
		t.Fatalf("mallory may not deploy: %v\n%s", err, said)
	}
	eventually(t, "the refusal of its Pods", time.Minute, func() error {
		why := kubectl(t, cluster, "get", "deployment", "foreign", "-n", "omnivision", "-o", `jsonpath={.status.conditions[?(@.type=="ReplicaFailure")].message}`)
		for _, part := range []string{"[Unsigned]", "omnivision verify " + image} {
			if !strings.Contains(why, part) {
				return fmt.Errorf("it does not say %q: %q", part, why)
			}
		}
		return nil
	})
	if pods := kubectl(t, cluster, "get", "pods", "-n", "omnivision", "-l", "app=foreign", "-o", "name"); pods != "" {
		t.Errorf("its Pods were made: %s", pods)
	}
}

const deployment = `apiVersion: apps/v1
kind: Deployment
metadata: {name: foreign, namespace: omnivision}
spec:
  selector: {matchLabels: {app: foreign}}
  template:
    metadata: {labels: {app: foreign}}
    spec:
      automountServiceAccountToken: false
      securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
      containers:
        - name: main
          image: %s
          securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
`

// refusesRelabelled tries what makes other gates look away: labels on the namespace, its name among them.
func refusesRelabelled(t *testing.T, cluster, released string) {
	const namespace = "dodge"
	image := makeForeign(t, "unsigned", released)
	kubectl(t, cluster, "create", "namespace", namespace)
	t.Cleanup(func() { kubectl(t, cluster, "delete", "namespace", namespace, "--wait=false") })
	for _, label := range []string{"policy.sigstore.dev/include=false", "admission.gatekeeper.sh/ignore=true", "kubernetes.io/metadata.name=kube-system"} {
		_, _ = combined(t, "kubectl", "--cluster", cluster, "--", "label", "namespace", namespace, "--overwrite", label) // whether it is taken or not
		if said, err := create(t, cluster, namespace, "dodge", image, "--dry-run=server"); err == nil || !strings.Contains(said, "[Unsigned]") {
			t.Errorf("after the label %s: %v\n%s", label, err, said)
		}
	}
}
