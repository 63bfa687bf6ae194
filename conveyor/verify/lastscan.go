package verify

import (
	"encoding/json"
	"fmt"
	"time"
)

// LastScan is what the scan with the newest database says of an image.
type LastScan struct {
	Database time.Time       `json:"database"` // when it was made
	Finished time.Time       `json:"finished"`
	Result   json.RawMessage `json:"-"` // the scanner's report, as it is
}

// FindLastScan finds it among statements; false: there is none. A scan that cannot be read
// is an error, since it may be the last.
func FindLastScan(statements []Statement) (LastScan, bool, error) {
	var last LastScan
	found := false
	for _, s := range statements {
		if s.PredicateType != Scan {
			continue
		}
		one, err := readScan(s)
		if err != nil {
			return LastScan{}, false, err
		}
		if !found || one.after(last) {
			last, found = one, true
		}
	}
	return last, found, nil
}

func (s LastScan) after(other LastScan) bool {
	if !s.Database.Equal(other.Database) {
		return s.Database.After(other.Database)
	}
	return s.Finished.After(other.Finished)
}

// readScan reads the predicate of
// https://github.com/sigstore/cosign/blob/v3.1.3/specs/COSIGN_VULN_ATTESTATION_SPEC.md. A scan cannot
// have ended after somebody witnessed its signature.
func readScan(s Statement) (LastScan, error) {
	var p struct {
		Scanner struct {
			Result json.RawMessage `json:"result"`
			DB     struct {
				LastUpdate time.Time `json:"lastUpdate"`
			} `json:"db"`
		} `json:"scanner"`
		Metadata struct {
			Finished time.Time `json:"scanFinishedOn"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(s.Predicate, &p); err != nil {
		return LastScan{}, fmt.Errorf("reading a scan: %w", err)
	}
	scan := LastScan{Database: p.Scanner.DB.LastUpdate, Finished: p.Metadata.Finished, Result: p.Scanner.Result}
	if !s.Time.IsZero() && (scan.Finished.IsZero() || scan.Finished.After(s.Time)) {
		scan.Finished = s.Time
	}
	return scan, nil
}
