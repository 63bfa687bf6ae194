package configmap

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/omnivision/omnivision/gate/judge"
	"github.com/omnivision/omnivision/gate/verify"
	"github.com/omnivision/omnivision/localfleet/edge/apiservertest"
)

var start = time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)

func admission(digest string, minute int) judge.Admission {
	return judge.Admission{
		Facts:    verify.Facts{Repository: "r.io/app", Digest: digest, Key: "k", Proven: start, Policies: []verify.Finding{{Policy: "release", Satisfied: true, Versions: []string{"1.0.0"}}}},
		Admitted: start.Add(time.Duration(minute) * time.Minute),
	}
}

func digests(admissions []judge.Admission) string {
	var all []string
	for _, a := range admissions {
		all = append(all, a.Facts.Digest)
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Replicas write to one ConfigMap of a real API server at the same time: none loses what
// another wrote.
func TestReplicasShareOneConfigMap(t *testing.T) {
	server := apiservertest.Start(t)
	client, err := kubernetes.NewForConfig(server.Config)
	check(t, err)
	const namespace = "omnivision-system"
	_, err = client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{})
	check(t, err)
	store := Store{Client: client.CoreV1().ConfigMaps(namespace), Name: "gate-admissions"}
	if kept, err := store.Load(t.Context()); err != nil || len(kept) > 0 {
		t.Fatalf("before anything is kept there is %v: %v", kept, err)
	}
	var replicas sync.WaitGroup
	for replica := range 3 {
		replicas.Go(func() {
			for i := range 3 {
				if err := store.Save(t.Context(), []judge.Admission{admission(fmt.Sprintf("%d%d", replica, i), i)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	replicas.Wait()
	kept, err := store.Load(t.Context())
	check(t, err)
	if got := digests(kept); got != "00 01 02 10 11 12 20 21 22" {
		t.Errorf("there is %s", got)
	}
	if f := kept[0].Facts; len(f.Policies) != 1 || !f.Policies[0].Satisfied || f.Policies[0].Versions[0] != "1.0.0" {
		t.Errorf("the facts are %+v", f)
	}
}

// memory has one ConfigMap, without versions.
type memory struct{ object *corev1.ConfigMap }

func (m *memory) Get(context.Context, string, metav1.GetOptions) (*corev1.ConfigMap, error) {
	return m.object, nil
}
func (m *memory) Create(_ context.Context, o *corev1.ConfigMap, _ metav1.CreateOptions) (*corev1.ConfigMap, error) {
	m.object = o
	return o, nil
}
func (m *memory) Update(_ context.Context, o *corev1.ConfigMap, _ metav1.UpdateOptions) (*corev1.ConfigMap, error) {
	m.object = o
	return o, nil
}

func TestNewestAreKeptWithinTheBound(t *testing.T) {
	m := &memory{&corev1.ConfigMap{}}
	store := Store{Client: m, Name: "x", MaxBytes: 1000}
	for i := range 50 {
		check(t, store.Save(t.Context(), []judge.Admission{admission(fmt.Sprintf("%02d", i), i)}))
	}
	if size := len(m.object.Data[dataKey]); size > 1000 {
		t.Errorf("it has %d bytes", size)
	}
	kept, err := store.Load(t.Context())
	check(t, err)
	if got := digests(kept); !strings.HasSuffix(got, "48 49") || strings.Contains(got, "01") {
		t.Errorf("there is %s", got)
	}
	check(t, store.Save(t.Context(), []judge.Admission{admission("49", 10)}))
	kept, err = store.Load(t.Context())
	check(t, err)
	if !kept[0].Admitted.Equal(start.Add(49 * time.Minute)) {
		t.Errorf("an older admission replaced the newer: %+v", kept[0])
	}
}

func TestWhatCannotBeReadIsWrittenAnew(t *testing.T) {
	m := &memory{&corev1.ConfigMap{Data: map[string]string{dataKey: "{"}}}
	store := Store{Client: m, Name: "x"}
	if _, err := store.Load(t.Context()); err == nil {
		t.Error("it is read")
	}
	check(t, store.Save(t.Context(), []judge.Admission{admission("a", 1)}))
	if kept, err := store.Load(t.Context()); err != nil || digests(kept) != "a" {
		t.Errorf("there is %v: %v", kept, err)
	}
}

// contended answers as an API server does while others write: with a conflict, so many times.
type contended struct {
	memory
	conflicts int
}

func (c *contended) Update(ctx context.Context, o *corev1.ConfigMap, options metav1.UpdateOptions) (*corev1.ConfigMap, error) {
	if c.conflicts--; c.conflicts >= 0 {
		return nil, apierrors.NewConflict(corev1.Resource("configmaps"), o.Name, errors.New("the object has been modified"))
	}
	return c.memory.Update(ctx, o, options)
}

// Six processes of three replicas may each be behind the other five.
func TestAReplicaWaitsForItsTurn(t *testing.T) {
	c := &contended{memory{&corev1.ConfigMap{}}, 6}
	store := Store{Client: c, Name: "x"}
	check(t, store.Save(t.Context(), []judge.Admission{admission("a", 1)}))
	if kept, err := store.Load(t.Context()); err != nil || digests(kept) != "a" {
		t.Errorf("there is %v: %v", kept, err)
	}
}

func TestWhoIsToldToStopSaysWhatItWaitedFor(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	c := &contended{memory{&corev1.ConfigMap{}}, 1 << 20}
	err := Store{Client: c, Name: "x"}.Save(ctx, []judge.Admission{admission("a", 1)})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "has been modified") {
		t.Errorf("it ends with %v", err)
	}
}
