// Package logconfig gives every labelled namespace the configuration of its log sidecars: a copy of the Secret that the
// Fluent Operator renders of its CRs, kept in step. A Pod can mount Secrets of its own namespace alone. When a CR changes,
// the operator renders, this package copies, the kubelet updates the mounted files, and the sidecars' watcher reloads
// Fluent Bit: no Pod is restarted.
package logconfig

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"regexp"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/omnivision/omnivision/gate/inject"
)

const (
	// SourceNamespace and SourceName are of the Secret that the Fluent Operator renders.
	SourceNamespace = "logging"
	SourceName      = "omnivision-fluent-bit"

	// ManagedLabel marks a copy as this package's: others' Secrets are never overwritten or deleted.
	ManagedLabel = "logging.omnivision.ai/copied"
)

// httpServer is the line that switches Fluent Bit's HTTP server on, as the operator writes it.
var httpServer = regexp.MustCompile(`(?mi)^([ \t]*Http_Server[ \t]+)(?:true|on)[ \t\r]*$`)

// Files are what a namespace's copy holds: the rendered files, and the main one again without the HTTP server, since Pods
// with hostNetwork share one port. An error means that the source is not what this package understands.
func Files(rendered map[string][]byte) (map[string][]byte, error) {
	main, ok := rendered[inject.ConfigFile]
	if !ok {
		return nil, fmt.Errorf("the rendered configuration has no %s: configFileFormat must be classic", inject.ConfigFile)
	}
	files := maps.Clone(rendered)
	files[inject.HostNetworkConfigFile] = httpServer.ReplaceAll(main, []byte("${1}off"))
	return files, nil
}

// Reconciler keeps one namespace's copy; it is asked for namespaces by name. It needs get, list and watch on namespaces,
// get, list and watch on the source, and get, list, watch, create, update and delete on the Secret inject.SecretName of
// other namespaces.
type Reconciler struct {
	Client client.Client
}

// Reconcile writes, updates or takes away the copy in the namespace of the request.
func (r *Reconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	var namespace corev1.Namespace
	if err := r.Client.Get(ctx, client.ObjectKey{Name: request.Name}, &namespace); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if request.Name == SourceNamespace || !namespace.DeletionTimestamp.IsZero() {
		return ctrl.Result{}, nil
	}
	if namespace.Labels[inject.NamespaceLabel] != inject.NamespaceEnabled {
		return ctrl.Result{}, r.remove(ctx, request.Name)
	}
	var source corev1.Secret
	err := r.Client.Get(ctx, client.ObjectKey{Namespace: SourceNamespace, Name: SourceName}, &source)
	if apierrors.IsNotFound(err) {
		// The operator has not rendered yet, or is being installed anew: sidecars keep what they have.
		return ctrl.Result{}, nil
	}
	if err != nil {
		return ctrl.Result{}, fmt.Errorf("read the rendered configuration %s/%s: %w", SourceNamespace, SourceName, err)
	}
	files, err := Files(source.Data)
	if err != nil {
		return ctrl.Result{}, reconcile.TerminalError(err)
	}
	return ctrl.Result{}, r.write(ctx, request.Name, files)
}

func (r *Reconciler) write(ctx context.Context, namespace string, files map[string][]byte) error {
	existing, err := r.copyIn(ctx, namespace)
	if apierrors.IsNotFound(err) {
		secret := &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: inject.SecretName, Labels: map[string]string{ManagedLabel: "true"}},
			Data:       files,
		}
		if err := r.Client.Create(ctx, secret); err != nil {
			return fmt.Errorf("copy the log configuration into namespace %s: %w", namespace, err)
		}
		return nil
	}
	if err != nil {
		return err
	}
	if existing.Labels[ManagedLabel] != "true" {
		return reconcile.TerminalError(fmt.Errorf("the Secret %s/%s is not ours (it lacks the label %s): rename it, log sidecars need the name", namespace, inject.SecretName, ManagedLabel))
	}
	if reflect.DeepEqual(existing.Data, files) {
		return nil
	}
	existing.Data = files
	if err := r.Client.Update(ctx, existing); err != nil {
		return fmt.Errorf("bring the log configuration in namespace %s up to date: %w", namespace, err)
	}
	return nil
}

// remove takes the copy of a namespace away that is no longer labelled. Sidecars that still run keep what they loaded.
func (r *Reconciler) remove(ctx context.Context, namespace string) error {
	existing, err := r.copyIn(ctx, namespace)
	if err != nil {
		return client.IgnoreNotFound(err)
	}
	if existing.Labels[ManagedLabel] != "true" {
		return nil
	}
	if err := r.Client.Delete(ctx, existing, client.Preconditions{UID: &existing.UID}); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("remove the log configuration from namespace %s: %w", namespace, err)
	}
	return nil
}

func (r *Reconciler) copyIn(ctx context.Context, namespace string) (*corev1.Secret, error) {
	var secret corev1.Secret
	err := r.Client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: inject.SecretName}, &secret)
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("read Secret %s/%s: %w", namespace, inject.SecretName, err)
	}
	return &secret, err
}

// SetupWithManager has the reconciler called for each namespace that changes, for the namespace of each copy that
// somebody changes, and for all of them when the source changes. To keep the cache small and the rights few, the
// manager's cache of Secrets should be limited to the names SourceName and inject.SecretName.
func (r *Reconciler) SetupWithManager(manager ctrl.Manager) error {
	secrets := predicate.NewPredicateFuncs(func(o client.Object) bool {
		return isSource(o) || o.GetName() == inject.SecretName
	})
	return ctrl.NewControllerManagedBy(manager).
		Named("log-configuration").
		For(&corev1.Namespace{}).
		Watches(&corev1.Secret{}, handler.EnqueueRequestsFromMapFunc(r.namespaces), builder.WithPredicates(secrets)).
		Complete(r)
}

func isSource(o client.Object) bool {
	return o.GetNamespace() == SourceNamespace && o.GetName() == SourceName
}

func (r *Reconciler) namespaces(ctx context.Context, secret client.Object) []reconcile.Request {
	if !isSource(secret) {
		return []reconcile.Request{{NamespacedName: client.ObjectKey{Name: secret.GetNamespace()}}}
	}
	var list corev1.NamespaceList
	if err := r.Client.List(ctx, &list, client.MatchingLabels{inject.NamespaceLabel: inject.NamespaceEnabled}); err != nil {
		ctrl.LoggerFrom(ctx).Error(err, "list the namespaces with logging enabled")
		return nil
	}
	requests := make([]reconcile.Request, 0, len(list.Items))
	for _, n := range list.Items {
		requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKey{Name: n.Name}})
	}
	return requests
}
