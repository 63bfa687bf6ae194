// Package configmap keeps in a ConfigMap what a cluster admitted, so that a gate that
// restarts while the registry is away knows it. Whoever may write the ConfigMap can have
// digests admitted during an outage: it is in the gate's namespace, and the gate's alone.
package configmap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/omnivision/omnivision/gate/judge"
)

// dataKey is the ConfigMap's only one.
const dataKey = "admissions.json"

// maxBytes is below what etcd takes; the oldest admissions are dropped first.
const maxBytes = 900 << 10

// Client is the part of a client of ConfigMaps in one namespace that is used.
type Client interface {
	Get(ctx context.Context, name string, options metav1.GetOptions) (*corev1.ConfigMap, error)
	Create(ctx context.Context, object *corev1.ConfigMap, options metav1.CreateOptions) (*corev1.ConfigMap, error)
	Update(ctx context.Context, object *corev1.ConfigMap, options metav1.UpdateOptions) (*corev1.ConfigMap, error)
}

// Store implements judge.Store.
type Store struct {
	Client Client
	Name   string
	// MaxBytes bounds what is kept; zero is 900 KiB.
	MaxBytes int
}

var _ judge.Store = Store{}

// Load implements judge.Store. Nothing kept is no error; what cannot be read is.
func (s Store) Load(ctx context.Context) ([]judge.Admission, error) {
	object, err := s.Client.Get(ctx, s.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the ConfigMap %s: %w", s.Name, err)
	}
	return s.read(object)
}

func (s Store) read(object *corev1.ConfigMap) ([]judge.Admission, error) {
	text := object.Data[dataKey]
	if text == "" {
		return nil, nil
	}
	var admissions []judge.Admission
	if err := json.Unmarshal([]byte(text), &admissions); err != nil {
		return nil, fmt.Errorf("reading %s of the ConfigMap %s: %w; delete the ConfigMap, it is written anew", dataKey, s.Name, err)
	}
	return admissions, nil
}

// turns is how a replica waits for its own: every process of every replica writes here, at the same
// moment when one release comes to all of them. The 8 to 16 s that these are together are more than that takes.
var turns = wait.Backoff{Steps: 14, Duration: 20 * time.Millisecond, Factor: 1.5, Jitter: 1}

// Save implements judge.Store. Another replica's writes are kept: whoever comes second
// reads again.
func (s Store) Save(ctx context.Context, admissions []judge.Admission) error {
	var conflict error
	err := wait.ExponentialBackoffWithContext(ctx, turns, func(ctx context.Context) (bool, error) {
		err := s.saveOnce(ctx, admissions)
		if apierrors.IsConflict(err) {
			conflict = err
			return false, nil
		}
		return err == nil, err
	})
	if wait.Interrupted(err) && conflict != nil {
		return fmt.Errorf("writing the ConfigMap %s: %w", s.Name, errors.Join(conflict, context.Cause(ctx)))
	}
	return err
}

func (s Store) saveOnce(ctx context.Context, admissions []judge.Admission) error {
	object, err := s.Client.Get(ctx, s.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return s.create(ctx, admissions)
	}
	if err != nil {
		return fmt.Errorf("reading the ConfigMap %s: %w", s.Name, err)
	}
	kept, err := s.read(object)
	if err != nil {
		kept = nil // written anew
	}
	object = object.DeepCopy()
	if object.Data, err = s.data(merge(kept, admissions)); err != nil {
		return err
	}
	_, err = s.Client.Update(ctx, object, metav1.UpdateOptions{})
	return err
}

// create writes the first one. If another replica did meanwhile, that is a conflict.
func (s Store) create(ctx context.Context, admissions []judge.Admission) error {
	data, err := s.data(merge(nil, admissions))
	if err != nil {
		return err
	}
	_, err = s.Client.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: s.Name}, Data: data}, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return apierrors.NewConflict(corev1.Resource("configmaps"), s.Name, err)
	}
	return err
}

// merge keeps of each digest and demand the newest, the newest first.
func merge(kept, fresh []judge.Admission) []judge.Admission {
	all := append(slices.Clone(fresh), kept...)
	slices.SortStableFunc(all, func(a, b judge.Admission) int { return b.Admitted.Compare(a.Admitted) })
	seen := map[[3]string]bool{}
	return slices.DeleteFunc(all, func(a judge.Admission) bool {
		of := [3]string{a.Facts.Repository, a.Facts.Digest, a.Facts.Key}
		double := seen[of]
		seen[of] = true
		return double
	})
}

func (s Store) data(admissions []judge.Admission) (map[string]string, error) {
	limit := s.MaxBytes
	if limit == 0 {
		limit = maxBytes
	}
	size := len("[]")
	for i, admission := range admissions {
		raw, err := json.Marshal(admission)
		if err != nil {
			return nil, fmt.Errorf("writing what was admitted: %w", err)
		}
		if size += len(raw) + 1; size > limit {
			admissions = admissions[:i]
			break
		}
	}
	raw, err := json.Marshal(admissions)
	if err != nil {
		return nil, fmt.Errorf("writing what was admitted: %w", err)
	}
	return map[string]string{dataKey: string(raw)}, nil
}
