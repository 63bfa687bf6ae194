package verify

import (
	"encoding/json"
	"fmt"
	"time"
)

// Summary is what the believed statements say of an image, for people and programs.
type Summary struct {
	Signer     Identity  `json:"signer"`
	Signed     time.Time `json:"signed"` // zero: nobody witnessed when
	Repository string    `json:"repository,omitempty"`
	Version    string    `json:"version,omitempty"`

	Source     string `json:"source,omitempty"`
	Commit     string `json:"commit,omitempty"`
	Builder    string `json:"builder,omitempty"`
	Invocation string `json:"invocation,omitempty"`

	Scanner  string    `json:"scanner,omitempty"`
	Database time.Time `json:"database"` // of the scan; zero: there is no scan
	// Components is the number of components in the SBOM; negative: there is none.
	Components int `json:"components"`
}

// Summarize puts the statements about one image together. Where there are several of a
// kind the last signed counts.
func Summarize(statements []Statement) (Summary, error) {
	s := Summary{Components: -1}
	for _, statement := range statements {
		if err := s.add(statement); err != nil {
			return Summary{}, fmt.Errorf("reading the predicate %s: %w", statement.PredicateType, err)
		}
	}
	return s, nil
}

func (s *Summary) add(statement Statement) error {
	switch statement.PredicateType {
	case Signature:
		if statement.Time.Before(s.Signed) {
			return nil
		}
		s.Signer, s.Signed = statement.Signer, statement.Time
		s.Repository, s.Version = statement.Annotations[RepositoryAnnotation], statement.Annotations[VersionAnnotation]
	case Provenance:
		return s.provenance(statement.Predicate)
	case Scan:
		return s.scan(statement.Predicate)
	case SBOM:
		var bom struct {
			Components []json.RawMessage `json:"components"`
		}
		if err := json.Unmarshal(statement.Predicate, &bom); err != nil {
			return err
		}
		s.Components = len(bom.Components)
	}
	return nil
}

func (s *Summary) provenance(raw json.RawMessage) error {
	var p struct {
		BuildDefinition struct {
			ExternalParameters struct {
				Source string `json:"source"`
			} `json:"externalParameters"`
			ResolvedDependencies []struct {
				Digest map[string]string `json:"digest"`
			} `json:"resolvedDependencies"`
		} `json:"buildDefinition"`
		RunDetails struct {
			Builder struct {
				ID string `json:"id"`
			} `json:"builder"`
			Metadata struct {
				InvocationID string `json:"invocationId"`
			} `json:"metadata"`
		} `json:"runDetails"`
	}
	if err := json.Unmarshal(raw, &p); err != nil {
		return err
	}
	s.Source, s.Builder, s.Invocation = p.BuildDefinition.ExternalParameters.Source, p.RunDetails.Builder.ID, p.RunDetails.Metadata.InvocationID
	for _, d := range p.BuildDefinition.ResolvedDependencies {
		if commit := d.Digest["gitCommit"]; commit != "" {
			s.Commit = commit
			break
		}
	}
	return nil
}

func (s *Summary) scan(raw json.RawMessage) error {
	var p struct {
		Scanner struct {
			URI     string `json:"uri"`
			Version string `json:"version"`
			DB      struct {
				LastUpdate time.Time `json:"lastUpdate"`
			} `json:"db"`
		} `json:"scanner"`
	}
	if err := json.Unmarshal(raw, &p); err != nil {
		return err
	}
	if p.Scanner.DB.LastUpdate.After(s.Database) || s.Database.IsZero() {
		s.Scanner, s.Database = p.Scanner.URI+" "+p.Scanner.Version, p.Scanner.DB.LastUpdate
	}
	return nil
}
