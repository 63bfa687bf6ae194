package sign

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/omnivision/omnivision/conveyor/scan"
	"github.com/omnivision/omnivision/conveyor/verify"
)

// What the parameters of a provenance mean; see docs/conveyor.md.
const (
	imageBuildType = "https://github.com/omnivision/omnivision/blob/main/docs/conveyor.md#build"
	chartBuildType = "https://github.com/omnivision/omnivision/blob/main/docs/conveyor.md#chart"
)

// Origin is where an image or a chart comes from, for its provenance.
type Origin struct {
	Source     string            `json:"source"` // URL of the source repository
	Commit     string            `json:"commit"`
	Dockerfile string            `json:"dockerfile,omitempty"`
	Args       map[string]string `json:"args,omitempty"`
	// Chart is the directory of a chart, of which there is no Dockerfile.
	Chart string `json:"chart,omitempty"`
	// Invocation is the URL of the job that built it, if there was one.
	Invocation string `json:"invocation,omitempty"`
}

// ScanResult is the scan of one image, for its attestation.
type ScanResult struct {
	Scanner          string // and its version
	DatabaseVersion  string
	DatabaseUpdated  time.Time
	Scanned          time.Time
	Result           json.RawMessage // of the scanner, as it is
	VulnerabilityURI string          // where the database comes from
}

// ScanOf is what a scan says of one of its images.
func ScanOf(r scan.Result, image scan.Image) ScanResult {
	return ScanResult{
		Scanner: r.Scanner, DatabaseVersion: fmt.Sprint(r.Database.Version), DatabaseUpdated: r.Database.UpdatedAt,
		Scanned: r.Scanned, Result: image.Report,
	}
}

// statement is https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md.
type statement struct {
	Type          string    `json:"_type"`
	Subject       []subject `json:"subject"`
	PredicateType string    `json:"predicateType"`
	Predicate     any       `json:"predicate"`
}

type subject struct {
	Name        string            `json:"name,omitempty"`
	Digest      map[string]string `json:"digest"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// about makes a statement about a digest. The same facts are the same bytes, so that a
// repeated run finds what it signed before.
func about(digest, predicateType string, annotations map[string]string, predicate any) ([]byte, error) {
	hex, ok := strings.CutPrefix(digest, "sha256:")
	if !ok {
		return nil, fmt.Errorf("%q is no digest", digest)
	}
	return json.Marshal(statement{
		Type:          "https://in-toto.io/Statement/v1",
		Subject:       []subject{{Digest: map[string]string{"sha256": hex}, Annotations: annotations}},
		PredicateType: predicateType, Predicate: predicate,
	})
}

// signature says that the image is what the repository's version is. A signature alone
// names no repository, so it could be copied to another (P33).
func signature(repository name.Repository, digest, version string) ([]byte, error) {
	return about(digest, verify.Signature, map[string]string{
		verify.RepositoryAnnotation: repository.String(), verify.VersionAnnotation: version,
	}, struct{}{})
}

// provenance is https://slsa.dev/spec/v1.1/provenance. Its builder is who signs it: the
// workflow, in the words of its certificate.
func provenance(digest string, platforms []string, o Origin, builder verify.Identity) ([]byte, error) {
	id := builder.Subject
	if id == "" {
		id = "urn:omnivision:key:" + builder.Key
	}
	// No times: the same build would be another statement each time, and who signed it
	// when is witnessed anyway.
	metadata := map[string]any{}
	if o.Invocation != "" {
		metadata["invocationId"] = o.Invocation
	}
	how, parameters := o.parameters(platforms)
	return about(digest, verify.Provenance, nil, map[string]any{
		"buildDefinition": map[string]any{
			"buildType":          how,
			"externalParameters": parameters,
			"resolvedDependencies": []any{map[string]any{
				"uri": "git+" + o.Source + "@" + o.Commit, "digest": map[string]string{"gitCommit": o.Commit},
			}},
		},
		"runDetails": map[string]any{"builder": map[string]string{"id": id}, "metadata": metadata},
	})
}

// parameters are what decided the build, beside the commit.
func (o Origin) parameters(platforms []string) (buildType string, all map[string]any) {
	if o.Chart != "" {
		return chartBuildType, map[string]any{"source": o.Source, "chart": o.Chart}
	}
	return imageBuildType, map[string]any{"source": o.Source, "dockerfile": o.Dockerfile, "platforms": platforms, "args": o.Args}
}

// scanned is https://github.com/sigstore/cosign/blob/v3.1.3/specs/COSIGN_VULN_ATTESTATION_SPEC.md.
func scanned(digest string, s ScanResult) ([]byte, error) {
	when := s.Scanned.UTC().Format(time.RFC3339)
	name, version, _ := strings.Cut(s.Scanner, " ")
	return about(digest, verify.Scan, nil, map[string]any{
		"invocation": map[string]any{},
		"scanner": map[string]any{
			"uri": "pkg:github/aquasecurity/" + name, "version": version,
			"db":     map[string]string{"uri": s.VulnerabilityURI, "version": s.DatabaseVersion, "lastUpdate": s.DatabaseUpdated.UTC().Format(time.RFC3339)},
			"result": s.Result,
		},
		"metadata": map[string]string{"scanStartedOn": when, "scanFinishedOn": when},
	})
}

func sbom(digest string, document json.RawMessage) ([]byte, error) {
	return about(digest, verify.SBOM, nil, document)
}
