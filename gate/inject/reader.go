package inject

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Reader answers from a client, which should be one with a cache: it is asked for every Pod. It needs get, list and
// watch on namespaces and csidrivers.storage.k8s.io.
type Reader struct{ client.Reader }

// NamespaceLabels implements Cluster.
func (r Reader) NamespaceLabels(ctx context.Context, name string) (map[string]string, error) {
	var namespace corev1.Namespace
	if err := r.Get(ctx, client.ObjectKey{Name: name}, &namespace); err != nil {
		return nil, err
	}
	return namespace.Labels, nil
}

// DriverInstalled implements Cluster.
func (r Reader) DriverInstalled(ctx context.Context) (bool, error) {
	var driver storagev1.CSIDriver
	err := r.Get(ctx, client.ObjectKey{Name: driverName}, &driver)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}
