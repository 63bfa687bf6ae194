package policy

import (
	"errors"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// Group is that of ClusterImagePolicies. Both versions have the same fields, and are read alike.
const Group = "policy.sigstore.dev"

// ClusterImagePolicyKind is the kind's name.
const ClusterImagePolicyKind = "ClusterImagePolicy"

// ClusterImagePolicy is sigstore's, of the versions v1alpha1 and v1beta1, with every field
// that v0.13.1 of the policy-controller knows:
// https://docs.sigstore.dev/policy-controller/overview/. What is not supported is here too, so that it can be
// told from what is misspelt.
type ClusterImagePolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	Spec   ClusterImagePolicySpec `json:"spec"`
	Status map[string]any         `json:"status,omitempty"`
}

// ClusterImagePolicySpec is which images must be signed by whom. Any authority satisfies
// the policy, and every policy that matches an image must be satisfied.
type ClusterImagePolicySpec struct {
	Images      []ImagePattern  `json:"images"`
	Authorities []Authority     `json:"authorities,omitempty"`
	Policy      *Policy         `json:"policy,omitempty"`
	Mode        string          `json:"mode,omitempty"`
	Match       []MatchResource `json:"match,omitempty"`
}

// ImagePattern names images.
type ImagePattern struct {
	Glob string `json:"glob"`
}

// Authority is who may sign.
type Authority struct {
	Name            string        `json:"name,omitempty"`
	Key             *Key          `json:"key,omitempty"`
	Keyless         *Keyless      `json:"keyless,omitempty"`
	Static          *Static       `json:"static,omitempty"`
	Source          []Source      `json:"source,omitempty"`
	CTLog           *Log          `json:"ctlog,omitempty"`
	Attestations    []Attestation `json:"attestations,omitempty"`
	Timestamp       *Timestamp    `json:"rfc3161timestamp,omitempty"`
	SignatureFormat string        `json:"signatureFormat,omitempty"`
}

// Key is a public key, or where it is.
type Key struct {
	SecretRef     *SecretRef `json:"secretRef,omitempty"`
	Data          string     `json:"data,omitempty"`
	KMS           string     `json:"kms,omitempty"`
	HashAlgorithm string     `json:"hashAlgorithm,omitempty"`
}

// SecretRef names a Secret in the gate's own namespace.
type SecretRef struct {
	Name      string `json:"name,omitempty"`
	Namespace string `json:"namespace,omitempty"`
}

// Keyless is a certificate authority with those of its subjects who may sign.
type Keyless struct {
	URL               string     `json:"url,omitempty"`
	Identities        []Identity `json:"identities,omitempty"`
	CACert            *Key       `json:"ca-cert,omitempty"`
	TrustRootRef      string     `json:"trustRootRef,omitempty"`
	InsecureIgnoreSCT bool       `json:"insecureIgnoreSCT,omitempty"`
}

// Identity is who a certificate must be for, and who must have vouched for him.
type Identity struct {
	Issuer        string `json:"issuer,omitempty"`
	Subject       string `json:"subject,omitempty"`
	IssuerRegExp  string `json:"issuerRegExp,omitempty"`
	SubjectRegExp string `json:"subjectRegExp,omitempty"`
}

// Static decides without a signature.
type Static struct {
	Action  string `json:"action,omitempty"` // pass or fail
	Message string `json:"message,omitempty"`
}

// Source is where else signatures are.
type Source struct {
	OCI                  string       `json:"oci,omitempty"`
	SignaturePullSecrets []NamedThing `json:"signaturePullSecrets,omitempty"`
	TagPrefix            *string      `json:"tagPrefix,omitempty"`
}

// NamedThing is a reference by name.
type NamedThing struct {
	Name string `json:"name,omitempty"`
}

// Log is a transparency log.
type Log struct {
	URL          string `json:"url,omitempty"`
	TrustRootRef string `json:"trustRootRef,omitempty"`
}

// Timestamp is a timestamp authority.
type Timestamp struct {
	TrustRootRef string `json:"trustRootRef,omitempty"`
}

// Attestation is a statement that must be there.
type Attestation struct {
	Name          string  `json:"name"`
	PredicateType string  `json:"predicateType"`
	Policy        *Policy `json:"policy,omitempty"`
}

// Policy is a program in CUE or Rego about statements.
type Policy struct {
	Type              string         `json:"type"`
	Data              string         `json:"data,omitempty"`
	Remote            map[string]any `json:"remote,omitempty"`
	ConfigMapRef      map[string]any `json:"configMapRef,omitempty"`
	FetchConfigFile   *bool          `json:"fetchConfigFile,omitempty"`
	IncludeSpec       *bool          `json:"includeSpec,omitempty"`
	IncludeObjectMeta *bool          `json:"includeObjectMeta,omitempty"`
	IncludeTypeMeta   *bool          `json:"includeTypeMeta,omitempty"`
}

// MatchResource limits a policy to some objects.
type MatchResource struct {
	Group    string                `json:"group,omitempty"`
	Version  string                `json:"version,omitempty"`
	Resource string                `json:"resource,omitempty"`
	Selector *metav1.LabelSelector `json:"selector,omitempty"`
}

// DecodeClusterImagePolicy reads a policy from JSON or YAML strictly: an unknown or doubled
// field is an error with its path. What could be read is returned beside the error, so that
// the images of a policy that cannot be used are known.
func DecodeClusterImagePolicy(src []byte) (*ClusterImagePolicy, error) {
	policy := &ClusterImagePolicy{}
	raw, err := yaml.YAMLToJSONStrict(src)
	if err != nil {
		return policy, fmt.Errorf("reading a ClusterImagePolicy: %w", err)
	}
	strict, err := json.UnmarshalStrict(raw, policy)
	if err != nil {
		return policy, fmt.Errorf("reading a ClusterImagePolicy: %w", err)
	}
	if err := errors.Join(strict...); err != nil {
		return policy, fmt.Errorf("reading the ClusterImagePolicy %s: %w", policy.Name, err)
	}
	version := policy.APIVersion
	if policy.Kind != ClusterImagePolicyKind || version != Group+"/v1beta1" && version != Group+"/v1alpha1" {
		return policy, fmt.Errorf("reading the ClusterImagePolicy %s: it is a %s of %s, want %s of %s/v1beta1", policy.Name, policy.Kind, version, ClusterImagePolicyKind, Group)
	}
	return policy, nil
}
