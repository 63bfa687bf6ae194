package sigstore

import (
	"fmt"

	"go.yaml.in/yaml/v3"
)

type dict = map[string]any

// fulcioConfig is https://github.com/sigstore/fulcio/blob/v1.8.8/config/identity/config.yaml, cut down to the
// fleet's issuers. It has to be YAML in earnest: Fulcio reads JSON with other names.
func (s Server) fulcioConfig() ([]byte, error) {
	issuers := dict{}
	for _, issuer := range s.Issuers {
		entry := dict{"issuer-url": issuer.URL, "client-id": "sigstore"}
		switch issuer.Kind {
		case Workflows:
			entry["type"], entry["ci-provider"] = "ci-provider", "github-workflow"
		case People:
			entry["type"] = "email"
		default:
			return nil, fmt.Errorf("issuer %s is of the kind %q: want %s or %s", issuer.URL, issuer.Kind, Workflows, People)
		}
		issuers[issuer.URL] = entry
	}
	config, err := yaml.Marshal(dict{
		"oidc-issuers":       issuers,
		"ci-issuer-metadata": dict{"github-workflow": githubWorkflow},
	})
	if err != nil {
		return nil, fmt.Errorf("encoding Fulcio's configuration: %w", err)
	}
	return config, nil
}

// githubWorkflow says how the claims of a workflow's token become a certificate, exactly as the public Fulcio does.
var githubWorkflow = dict{
	"default-template-values": dict{"url": "https://github.com", "environment": ""},
	"extension-templates": dict{
		"github-workflow-trigger":                 "event_name",
		"github-workflow-sha":                     "sha",
		"github-workflow-name":                    "workflow",
		"github-workflow-repository":              "repository",
		"github-workflow-ref":                     "ref",
		"build-signer-uri":                        "{{ .url }}/{{ .job_workflow_ref }}",
		"build-signer-digest":                     "job_workflow_sha",
		"runner-environment":                      "runner_environment",
		"source-repository-uri":                   "{{ .url }}/{{ .repository }}",
		"source-repository-digest":                "sha",
		"source-repository-ref":                   "ref",
		"source-repository-identifier":            "repository_id",
		"source-repository-owner-uri":             "{{ .url }}/{{ .repository_owner }}",
		"source-repository-owner-identifier":      "repository_owner_id",
		"build-config-uri":                        "{{ .url }}/{{ .workflow_ref }}",
		"build-config-digest":                     "workflow_sha",
		"build-trigger":                           "event_name",
		"run-invocation-uri":                      "{{ .url }}/{{ .repository }}/actions/runs/{{ .run_id }}/attempts/{{ .run_attempt }}",
		"source-repository-visibility-at-signing": "repository_visibility",
		"deployment-environment":                  "environment",
	},
	"subject-alternative-name-template": "{{ .url }}/{{ .job_workflow_ref }}",
}
