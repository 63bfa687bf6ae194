package front

import (
	"slices"

	"github.com/omnivision/omnivision/localfleet/edge/target"
)

// dockerHosts are one registry under three names: an image says docker.io, containerd asks
// registry-1.docker.io for it, go-containerregistry index.docker.io.
var dockerHosts = []string{"docker.io", "registry-1.docker.io", "index.docker.io"}

// Upstreams are the registries of images that are not the fleet's own.
var Upstreams = []string{
	"docker.io",
	"registry-1.docker.io",
	"gcr.io",
	"ghcr.io",
	"mirror.gcr.io",
	"quay.io",
	"public.ecr.aws",
	"registry.k8s.io",
}

// Routes sends the names of forges to one forge, and each of the registries to its own part of one
// registry. A name that occurs twice gets one route, and any of Docker's names brings the others along.
func Routes(forges, registries []string, forge, registry target.Target) []Route {
	var routes []Route
	seen := map[string]bool{}
	add := func(kind Kind, t target.Target, hosts ...string) {
		if seen[hosts[0]] {
			return
		}
		for _, h := range hosts {
			seen[h] = true
		}
		routes = append(routes, Route{Hosts: hosts, Kind: kind, Target: t})
	}
	for _, host := range forges {
		add(Proxy, forge, host)
	}
	for _, host := range registries {
		if slices.Contains(dockerHosts, host) {
			add(Registry, registry, slices.Clone(dockerHosts)...)
		} else {
			add(Registry, registry, host)
		}
	}
	return routes
}
