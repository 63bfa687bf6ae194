package sigstore

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/omnivision/omnivision/gate"
	"github.com/omnivision/omnivision/gate/judge"
	"github.com/omnivision/omnivision/gate/policy"
)

// anonymous reads without credentials.
type anonymous struct{}

func (anonymous) Options(context.Context, gate.Image) ([]remote.Option, error) { return nil, nil }

// A cluster's gate, with the policies of the tree and the real Sigstore's trusted root, admits what the
// running job signed, and nothing else.
func TestGateAdmitsWhatTheJobSigned(t *testing.T) {
	f := newFleet(t)
	read := func(name, file string) policy.Document {
		raw, err := os.ReadFile(file)
		check(t, err)
		return policy.Document{Name: name, Raw: raw}
	}
	const tree = "../../omnivision-gitops/components/policies/manifests/"
	set, err := policy.Compile(policy.Sources{
		TrustedRoots:         [][]byte{read("", f.TrustedRootFile()).Raw},
		ClusterImagePolicies: []policy.Document{read("release", tree+"cluster-image-policy.yaml")},
		ReleasePolicies:      []policy.Document{read("platform", tree+"release-policy.yaml"), read("quarantine", tree+"quarantine.yaml")},
	})
	check(t, err)
	check(t, set.Usable())
	signed, unsigned := release(t, false), release(t, true)
	f.publish(t, signed)
	scanned := signed.Platforms[0].Scan.Scanned
	j := judge.New(judge.Options{Registry: anonymous{}, Now: func() time.Time { return scanned.Add(24 * time.Hour) }})
	j.Use(set)
	for _, digest := range []string{signed.Digest, signed.Platforms[0].Digest} {
		if v := j.Judge(t.Context(), gate.Image{Reference: signed.Repositories[0].Digest(digest).String()}); !v.Allowed || len(v.Warnings) > 0 {
			t.Errorf("what the job signed is refused: %+v", v)
		}
	}
	if v := j.Judge(t.Context(), gate.Image{Reference: unsigned.Repositories[0].Digest(unsigned.Digest).String()}); v.Allowed || v.Denials[0].Reason != gate.Unsigned {
		t.Errorf("what nobody signed: %+v", v)
	}
}
