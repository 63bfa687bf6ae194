package gate_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/omnivision/omnivision/conveyor/referrers"
	"github.com/omnivision/omnivision/conveyor/sign"
	"github.com/omnivision/omnivision/conveyor/sign/signtest"
	"github.com/omnivision/omnivision/gate/certificate"
	"github.com/omnivision/omnivision/gate/credentials"
	gatejudge "github.com/omnivision/omnivision/gate/judge"
)

// attacked is a cluster with its gate, whose Judge is the real one, and a registry into which anybody pushes.
type attacked struct {
	*cluster
	*site
	mu  sync.Mutex
	now time.Time
}

func (a *attacked) clock() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.now
}

func (a *attacked) pass(d time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.now = a.now.Add(d)
}

// refuses wants the API server to refuse a Pod, for a reason, in words that help.
func (a *attacked) refuses(t *testing.T, image, reason string) {
	t.Helper()
	_, err := a.dry(t.Context(), pod(apps, "attack", image))
	if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "["+reason+"]") || !strings.Contains(err.Error(), "omnivision verify ") {
		t.Errorf("%s: want a refusal with %s, got %v", image, reason, err)
	}
}

func (a *attacked) at(digest string) string { return a.repository.Digest(digest).String() }

// signedBy pushes an image that somebody signed, scanned some time ago.
func (a *attacked) signedBy(t *testing.T, signer *sign.Signer, version string, ago time.Duration) (digest string, platforms []string) {
	t.Helper()
	digest, platforms = a.push(t, version)
	a.state(t, signer, digest, platforms, version, time.Now().Add(-ago))
	return digest, platforms
}

// What somebody may do who can push to our registry or ask our API server, one after the other, through a real API
// server, the tree's webhooks and the gate's own Judge.
func TestAttacksEndAtTheAPIServer(t *testing.T) {
	a := &attacked{cluster: newCluster(t), site: newSite(t), now: time.Now()}
	released := a.release(t, "1.4.0")
	_, current, _ := strings.Cut(released, "@")
	old, _ := a.signedBy(t, a.signer, "1.3.9", time.Hour)
	unreleased, _ := a.signedBy(t, a.signer, "1.5.0", time.Hour)
	stale, _ := a.signedBy(t, a.signer, "1.4.1", 31*24*time.Hour)
	bad, badPlatforms := a.signedBy(t, a.signer, "1.4.2", time.Hour)
	admitted := fmt.Sprintf("  gitOnly: true\n  admitted: [{repository: omnivision-worker, digest: %q}, {repository: omnivision-worker, digest: %q}, {repository: omnivision-worker, digest: %q}, {repository: omnivision-worker, digest: %q}]\n", current, old, stale, bad)
	set, err := realPolicies(a.root, admitted+"  floors: [{repository: omnivision-worker, version: \"1.4.0\"}]\n"+
		fmt.Sprintf("  quarantine: [{digest: %q, app: omnivision-worker, version: \"1.4.2\", reason: \"GPU errors\"}]\n", bad))
	check(t, err)
	check(t, set.Usable())
	j := gatejudge.New(gatejudge.Options{Registry: credentials.Registry{Transport: credentials.NewTransport()}, Now: a.clock})
	j.Use(set)
	a.install(t, others)
	a.gate(t, j, certificate.Lifetimes{}, 0)
	a.install(t, webhooks)
	unsigned, _ := a.push(t, "unsigned")
	until(t, "the release is refused, or an unsigned image is admitted", func() bool {
		_, good := a.dry(t.Context(), pod(apps, "probe", released))
		_, foreign := a.dry(t.Context(), pod(apps, "probe", a.at(unsigned)))
		return good == nil && foreign != nil
	})
	a.refuses(t, a.at(unsigned), "Unsigned")
	t.Run("replay", func(t *testing.T) {
		a.refuses(t, a.at(old), "BelowFloor")
		a.refuses(t, a.at(unreleased), "NotInGit")
		a.refuses(t, a.at(stale), "StaleScan")
		a.refuses(t, a.at(bad), "Quarantined")
		a.refuses(t, a.at(badPlatforms[0]), "Quarantined")
	})
	t.Run("somebody else's signature", a.testSigners)
	t.Run("statements of another image", a.testCopied)
	t.Run("tampered", a.testTampered)
	t.Run("tag", a.testMovedTag)
	t.Run("without rights", func(t *testing.T) { a.testWithoutRights(t, released, a.at(unsigned)) })
}

func (a *attacked) testSigners(t *testing.T) {
	private, _ := signtest.Key(t)
	key, err := sign.WithKey(private)
	check(t, err)
	for name, signer := range map[string]*sign.Signer{
		"a key":            key,
		"another workflow": a.signerOf(t, "https://github.com/omnivision/omnivision/.github/workflows/other.yaml@refs/heads/main"),
		"a pull request":   a.signerOf(t, "https://github.com/omnivision/omnivision/.github/workflows/conveyor.yaml@refs/pull/7/merge"),
		"a branch":         a.signerOf(t, "https://github.com/omnivision/omnivision/.github/workflows/conveyor.yaml@refs/heads/main-2"),
		"a fork":           a.signerOf(t, "https://github.com/attacker/omnivision/.github/workflows/conveyor.yaml@refs/heads/main"),
	} {
		t.Run(name, func(t *testing.T) {
			digest, _ := a.signedBy(t, signer, "9.0.0", time.Hour)
			a.refuses(t, a.at(digest), "WrongIdentity")
		})
	}
}

// testCopied gives images what was stated of others: under another repository, and of another digest.
func (a *attacked) testCopied(t *testing.T) {
	digest, platforms := a.signedBy(t, a.signer, "1.6.0", time.Hour)
	other, err := name.NewRepository(a.repository.RegistryStr() + "/omnivision-ui")
	check(t, err)
	index, err := remote.Index(a.repository.Digest(digest))
	check(t, err)
	check(t, remote.WriteIndex(other.Tag("copied"), index))
	for _, d := range append([]string{digest}, platforms...) {
		attach(t, a.repository.Digest(d), other.Digest(d))
	}
	a.refuses(t, other.Digest(digest).String(), "OtherRepository")
	foreign, _ := a.push(t, "transplanted")
	attach(t, a.repository.Digest(digest), a.repository.Digest(foreign))
	if _, err := a.dry(t.Context(), pod(apps, "attack", a.at(foreign))); !apierrors.IsForbidden(err) {
		t.Errorf("an image with another one's statements: %v", err)
	}
}

func attach(t *testing.T, from, to name.Digest) {
	t.Helper()
	bundles, err := referrers.Bundles(t.Context(), from)
	check(t, err)
	for _, bundle := range bundles {
		check(t, referrers.Attach(t.Context(), to, bundle, "x"))
	}
}

// testTampered has the registry send something else than what the digest says.
func (a *attacked) testTampered(t *testing.T) {
	fresh, _ := a.signedBy(t, a.signer, "1.7.0", time.Hour)
	change := func(manifest []byte) []byte { return append(manifest, ' ') }
	a.change.Store(&change)
	defer a.change.Store(nil)
	a.refuses(t, a.at(fresh), "Tampered")
}

// testMovedTag moves a tag between two Pods: the first one runs what it was judged by, the second one is judged anew.
func (a *attacked) testMovedTag(t *testing.T) {
	tag := a.repository.Tag("1.4.0").String()
	first, err := a.dry(t.Context(), pod(apps, "first", tag))
	check(t, err)
	moved, _ := a.push(t, "1.4.0")
	a.pass(time.Minute) // a tag is believed for seconds
	if image := first.Spec.Containers[0].Image; strings.Contains(image, moved) || !strings.Contains(image, tag+"@sha256:") {
		t.Errorf("the first Pod runs %s", image)
	}
	a.refuses(t, tag, "Unsigned")
}

// testWithoutRights deploys as somebody to whom nothing is granted, and as somebody who may make Deployments and
// nothing else: the Pods that a controller makes of those are judged like all others.
func (a *attacked) testWithoutRights(t *testing.T, released, foreign string) {
	_, err := a.admin.RbacV1().Roles(apps).Create(t.Context(), &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "deployer"},
		Rules: []rbacv1.PolicyRule{{APIGroups: []string{"apps"}, Resources: []string{"deployments"}, Verbs: []string{"create"}}}}, metav1.CreateOptions{})
	check(t, err)
	_, err = a.admin.RbacV1().RoleBindings(apps).Create(t.Context(), &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "deployer"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "deployer"},
		Subjects: []rbacv1.Subject{{Kind: "User", APIGroup: rbacv1.GroupName, Name: "bob"}}}, metav1.CreateOptions{})
	check(t, err)
	deploy := func(user string) error {
		template := pod(apps, "", foreign)
		labels := map[string]string{"app": "foreign"}
		return second(a.user(t, user).AppsV1().Deployments(apps).Create(t.Context(), &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "foreign"}, Spec: appsv1.DeploymentSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: template.Spec}}}, metav1.CreateOptions{}))
	}
	if err := deploy("mallory"); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), `User "mallory" cannot create`) {
		t.Errorf("a Deployment by somebody without rights: %v", err)
	}
	until(t, "bob may not make Deployments", func() bool { return deploy("bob") == nil })
	// There is no controller here; what it would do is this.
	_, err = a.admin.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "controller"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "cluster-admin"},
		Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: "kube-system", Name: "replicaset-controller"}}}, metav1.CreateOptions{})
	check(t, err)
	controller := a.user(t, "system:serviceaccount:kube-system:replicaset-controller", "system:serviceaccounts", "system:serviceaccounts:kube-system")
	start := func(image string) error {
		return second(controller.CoreV1().Pods(apps).Create(t.Context(), pod(apps, "of-a-controller", image), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}))
	}
	until(t, "the controller may not make Pods", func() bool { return start(released) == nil })
	if err := start(foreign); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "[Unsigned]") {
		t.Errorf("a controller's Pod of a foreign image: %v", err)
	}
}
