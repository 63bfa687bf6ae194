package certificate

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
)

// configuration reads and patches one webhook configuration of either kind.
type configuration struct {
	kind, name string
	get        func(context.Context) (resourceVersion string, clients []admissionregistrationv1.WebhookClientConfig, err error)
	patch      func(context.Context, []byte) error
}

func (k *Keeper) configurations() (all []configuration) {
	mutating := k.o.Client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	for _, name := range k.o.Mutating {
		all = append(all, configuration{"MutatingWebhookConfiguration", name,
			func(ctx context.Context) (version string, clients []admissionregistrationv1.WebhookClientConfig, err error) {
				c, err := mutating.Get(ctx, name, metav1.GetOptions{})
				if err != nil {
					return "", nil, err
				}
				for _, w := range c.Webhooks {
					clients = append(clients, w.ClientConfig)
				}
				return c.ResourceVersion, clients, nil
			},
			func(ctx context.Context, patch []byte) error {
				_, err := mutating.Patch(ctx, name, types.JSONPatchType, patch, metav1.PatchOptions{})
				return err
			}})
	}
	validating := k.o.Client.AdmissionregistrationV1().ValidatingWebhookConfigurations()
	for _, name := range k.o.Validating {
		all = append(all, configuration{"ValidatingWebhookConfiguration", name,
			func(ctx context.Context) (version string, clients []admissionregistrationv1.WebhookClientConfig, err error) {
				c, err := validating.Get(ctx, name, metav1.GetOptions{})
				if err != nil {
					return "", nil, err
				}
				for _, w := range c.Webhooks {
					clients = append(clients, w.ClientConfig)
				}
				return c.ResourceVersion, clients, nil
			},
			func(ctx context.Context, patch []byte) error {
				_, err := validating.Patch(ctx, name, types.JSONPatchType, patch, metav1.PatchOptions{})
				return err
			}})
	}
	return all
}

// publish writes the CAs into every configuration that exists and does not have them. One that does not exist
// yet gets them when it appears.
func (k *Keeper) publish(ctx context.Context, bundle []byte) error {
	for _, c := range k.configurations() {
		if err := c.trust(ctx, bundle); err != nil {
			return fmt.Errorf("writing the CAs into %s %s: %w", c.kind, c.name, err)
		}
	}
	return nil
}

func (c configuration) trust(ctx context.Context, bundle []byte) (err error) {
	for range attempts {
		version, clients, err := c.get(ctx)
		if apierrors.IsNotFound(err) {
			return nil
		} else if err != nil {
			return err
		}
		patch := patchOf(version, clients, bundle)
		if patch == nil {
			return nil
		}
		// Invalid is the answer to a test that failed: somebody, perhaps another replica, was faster.
		if err = c.patch(ctx, patch); err == nil || !apierrors.IsInvalid(err) && !apierrors.IsConflict(err) {
			return err
		}
	}
	return err
}

// patchOf is nil when all have the bundle. It touches nothing but caBundle, and applies to the version that
// was read and no other, or an index could be another webhook's.
func patchOf(resourceVersion string, clients []admissionregistrationv1.WebhookClientConfig, bundle []byte) []byte {
	type operation struct {
		Op    string `json:"op"`
		Path  string `json:"path"`
		Value any    `json:"value"`
	}
	patch := []operation{{"test", "/metadata/resourceVersion", resourceVersion}}
	for i, c := range clients {
		if !bytes.Equal(c.CABundle, bundle) {
			patch = append(patch, operation{"add", fmt.Sprintf("/webhooks/%d/clientConfig/caBundle", i), bundle})
		}
	}
	if len(patch) == 1 {
		return nil
	}
	text, err := json.Marshal(patch)
	if err != nil { // strings and bytes always can
		return nil
	}
	return text
}

// watch reconciles soon after somebody changed the Secret or a configuration. What it misses, Interval finds.
func (k *Keeper) watch(ctx context.Context) {
	tell := func(any) {
		select {
		case k.changed <- struct{}{}:
		default: // it is told already
		}
	}
	handler := cache.ResourceEventHandlerFuncs{
		AddFunc: tell, DeleteFunc: tell,
		UpdateFunc: func(before, after any) {
			if versionOf(before) != versionOf(after) {
				tell(after)
			}
		},
	}
	start := func(name string, informer func(informers.SharedInformerFactory) cache.SharedIndexInformer, options ...informers.SharedInformerOption) {
		only := informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector("metadata.name", name).String()
		})
		factory := informers.NewSharedInformerFactoryWithOptions(k.o.Client, 0, append(options, only)...)
		if _, err := informer(factory).AddEventHandler(handler); err != nil {
			k.o.Log.Error("watching failed; changes are found at the next interval", "name", name, "error", err.Error())
		}
		factory.Start(ctx.Done())
	}
	start(k.o.Secret, func(f informers.SharedInformerFactory) cache.SharedIndexInformer {
		return f.Core().V1().Secrets().Informer()
	}, informers.WithNamespace(k.o.Namespace))
	for _, name := range k.o.Mutating {
		start(name, func(f informers.SharedInformerFactory) cache.SharedIndexInformer {
			return f.Admissionregistration().V1().MutatingWebhookConfigurations().Informer()
		})
	}
	for _, name := range k.o.Validating {
		start(name, func(f informers.SharedInformerFactory) cache.SharedIndexInformer {
			return f.Admissionregistration().V1().ValidatingWebhookConfigurations().Informer()
		})
	}
}

func versionOf(object any) string {
	if o, ok := object.(metav1.Object); ok {
		return o.GetResourceVersion()
	}
	return ""
}
