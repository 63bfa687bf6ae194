package localfleet

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sort"
	"sync"
)

// Substitute is something that stands in for a part of production.
type Substitute struct {
	For  string `json:"for"`  // what it stands in for
	What string `json:"what"` // what it is, and how it differs
}

// substitutes collects what the steps of Up put in place of something.
type substitutes struct {
	mu   sync.Mutex
	list []Substitute
}

func (f *Fleet) substitute(forWhat, what string) {
	f.substitutes.mu.Lock()
	defer f.substitutes.mu.Unlock()
	f.substitutes.list = append(f.substitutes.list, Substitute{forWhat, what})
}

// always are the substitutes of every local fleet.
var always = []Substitute{
	{"github.com", "a Gitea with the fleet's repositories and upstream's at their tags"},
	{"container registries", "one CNCF registry behind the production names, under the fleet's own certificate authority"},
	{"GPUs", "simulated devices behind a real device plugin, with DCGM-shaped metrics and Xids on demand"},
	{"cloud load balancers", "a controller that gives Services of type LoadBalancer a node's address"},
	{"EKS and GKE", "Kubernetes from its Go modules, with the clouds' labels, zones and taints on the nodes"},
	{"NetworkPolicy enforcement", "none: the fleet's network plugin does not enforce policies; what the rendered ones let through is proven by tests"},
	{"the first release", "up assembles the images of this source, scans them, signs them in the name of the conveyor's workflow and writes their digests into the GitOps tree; later ones are the conveyor's"},
	{"Sigstore", "a Fulcio, a Rekor and a timestamp authority of the fleet's own, under the public ones' names, without a log of certificates"},
	{"GitHub's and Sigstore's identity issuers", "an issuer of the fleet's own, with GitHub's claims for jobs that run and for the first images, and for root at a shell"},
	{"Trivy's vulnerability database", "a small one of some published advisories: an image that passes is not proven healthy"},
	{"proxy.golang.org", "the machine's own module cache and proxy, by way of the hub"},
}

// Files of the substitutes that Up and the conveyor's start put in place.
const (
	upSubstitutes       = "substitutes.json"
	conveyorSubstitutes = "substitutes-conveyor.json"
)

// sorted are those of the steps, by what they stand in for.
func (s *substitutes) sorted() []Substitute {
	sort.SliceStable(s.list, func(i, j int) bool { return s.list[i].For < s.list[j].For })
	return s.list
}

func (f *Fleet) saveSubstitutes() error {
	return writeJSON(f.path(upSubstitutes), append(append([]Substitute{}, always...), f.substitutes.sorted()...))
}

// Substitutes lists what stands in for something of production.
func (f *Fleet) Substitutes() ([]Substitute, error) {
	list, err := readSubstitutes(f.path(upSubstitutes))
	if err != nil {
		return nil, err
	}
	more, err := readSubstitutes(f.path(conveyorSubstitutes))
	if errors.Is(err, fs.ErrNotExist) { // it was not started yet
		return list, nil
	}
	return append(list, more...), err
}

func readSubstitutes(path string) ([]Substitute, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the list of substitutes: %w", err)
	}
	var list []Substitute
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, fmt.Errorf("read the list of substitutes: %w", err)
	}
	return list, nil
}
