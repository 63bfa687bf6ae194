package front

import (
	"slices"

	"github.com/omnivision/omnivision/localfleet/edge/target"
)

// ForgeHost is the forge's production name.
const ForgeHost = "github.com"

// dockerHosts are one registry under three names: an image says docker.io, containerd asks
// registry-1.docker.io for it, go-containerregistry index.docker.io.
var dockerHosts = []string{"docker.io", "registry-1.docker.io", "index.docker.io"}

// defaultRegistries are the hosts that the platform, its components and their images name.
var defaultRegistries = []string{
	"docker.io",
	"gcr.io",
	"ghcr.io",
	"mirror.gcr.io",
	"quay.io",
	"public.ecr.aws",
	"registry.k8s.io",
	"123456789012.dkr.ecr.us-west-2.amazonaws.com",
	"europe-west1-docker.pkg.dev",
}

// DefaultRoutes are the production names with the forge and the registry that answer for them.
func DefaultRoutes(forge, registry target.Target) []Route {
	return Routes([]string{ForgeHost}, defaultRegistries, forge, registry)
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
