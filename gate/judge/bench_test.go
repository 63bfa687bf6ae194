package judge

import (
	"fmt"
	"testing"

	"github.com/omnivision/omnivision/conveyor/sign/signtest"
	"github.com/omnivision/omnivision/gate"
	"github.com/omnivision/omnivision/gate/policy"
)

// The cached path asks neither registry nor API server, and hardly allocates.
func BenchmarkJudgeCached(b *testing.B) {
	s := newSite(b)
	of := s.release("omnivision-worker", "1.4.0")
	for name, reference := range map[string]string{"digest": of.at(), "tag and digest": of.repository.Tag("1.4.0").String() + "@" + of.digest} {
		b.Run(name, func(b *testing.B) {
			s.judge.options.Now = s.clock
			s.want(reference, "+")
			before := s.registry.requests.Load()
			b.ReportAllocs()
			for b.Loop() {
				if v := s.judge.Judge(b.Context(), gate.Image{Reference: reference}); !v.Allowed {
					b.Fatal(show(v))
				}
			}
			if s.registry.requests.Load() != before {
				b.Error("the registry was asked")
			}
		})
	}
}

func BenchmarkJudgeCachedParallel(b *testing.B) {
	s := newSite(b)
	reference := s.release("omnivision-worker", "1.4.0").at()
	s.want(reference, "+")
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if v := s.judge.Judge(b.Context(), gate.Image{Reference: reference}); !v.Allowed {
				b.Error(show(v))
			}
		}
	})
}

// A new digest: an index with two images, each with its statements, in a registry in process.
func BenchmarkJudgeCold(b *testing.B) {
	s := newSite(b)
	reference := s.release("omnivision-worker", "1.4.0").at()
	b.ReportAllocs()
	for b.Loop() {
		s.judge.proven.Clear()
		if v := s.judge.Judge(b.Context(), gate.Image{Reference: reference}); !v.Allowed {
			b.Fatal(show(v))
		}
	}
}

func BenchmarkCompileHundredPolicies(b *testing.B) {
	root := signtest.NewSigstore(b).TrustedRoot(b)
	sources := policy.Sources{TrustedRoots: [][]byte{root}}
	for i := range 100 {
		sources.ClusterImagePolicies = append(sources.ClusterImagePolicies, imagePolicy(fmt.Sprint("p", i), keyless(workflow)))
	}
	for b.Loop() {
		if _, err := policy.Compile(sources); err != nil {
			b.Fatal(err)
		}
	}
}
