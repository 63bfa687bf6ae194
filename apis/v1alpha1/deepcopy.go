package v1alpha1

import (
	"slices"

	"k8s.io/apimachinery/pkg/runtime"
)

// DeepCopyInto copies the policy.
func (p *ReleasePolicy) DeepCopyInto(out *ReleasePolicy) {
	*out = *p
	p.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	p.Spec.DeepCopyInto(&out.Spec)
	p.Status.DeepCopyInto(&out.Status)
}

// DeepCopy returns a copy.
func (p *ReleasePolicy) DeepCopy() *ReleasePolicy {
	if p == nil {
		return nil
	}
	out := new(ReleasePolicy)
	p.DeepCopyInto(out)
	return out
}

// DeepCopyObject implements runtime.Object.
func (p *ReleasePolicy) DeepCopyObject() runtime.Object { return p.DeepCopy() }

// DeepCopyInto copies the rules.
func (s *ReleasePolicySpec) DeepCopyInto(out *ReleasePolicySpec) {
	*out = *s
	out.Images = slices.Clone(s.Images)
	if s.Scan != nil {
		out.Scan = &Scan{MaxAge: s.Scan.MaxAge, Exceptions: slices.Clone(s.Scan.Exceptions)}
	}
	out.Floors = slices.Clone(s.Floors)
	out.Admitted = slices.Clone(s.Admitted)
	out.Quarantine = slices.Clone(s.Quarantine)
}

// DeepCopyInto copies the status.
func (s *ReleasePolicyStatus) DeepCopyInto(out *ReleasePolicyStatus) {
	*out = *s
	out.Conditions = slices.Clone(s.Conditions)
	out.Named = slices.Clone(s.Named)
	out.Previous = slices.Clone(s.Previous)
}

// DeepCopyInto copies the list.
func (l *ReleasePolicyList) DeepCopyInto(out *ReleasePolicyList) {
	*out = *l
	l.ListMeta.DeepCopyInto(&out.ListMeta)
	if l.Items == nil {
		return
	}
	out.Items = make([]ReleasePolicy, len(l.Items))
	for i := range l.Items {
		l.Items[i].DeepCopyInto(&out.Items[i])
	}
}

// DeepCopy returns a copy.
func (l *ReleasePolicyList) DeepCopy() *ReleasePolicyList {
	if l == nil {
		return nil
	}
	out := new(ReleasePolicyList)
	l.DeepCopyInto(out)
	return out
}

// DeepCopyObject implements runtime.Object.
func (l *ReleasePolicyList) DeepCopyObject() runtime.Object { return l.DeepCopy() }
