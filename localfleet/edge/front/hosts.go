package front

import "github.com/omnivision/omnivision/localfleet/edge/target"

// ForgeHost is the forge's production name.
const ForgeHost = "github.com"

// registries are the hosts that the platform, its components and their images name. Each entry is one
// registry; further names of it follow its canonical one, which is the prefix.
var registries = [][]string{
	// Docker's clients expand "traefik" to docker.io/library/traefik and ask registry-1.docker.io for it.
	{"docker.io", "registry-1.docker.io", "index.docker.io"},
	{"ghcr.io"},
	{"quay.io"},
	{"public.ecr.aws"},
	{"registry.k8s.io"},
	{"123456789012.dkr.ecr.us-west-2.amazonaws.com"},
	{"europe-west1-docker.pkg.dev"},
}

// DefaultRoutes are the production names with the forge and the registry that answer for them.
func DefaultRoutes(forge, registry target.Target) []Route {
	routes := []Route{{Hosts: []string{ForgeHost}, Kind: Proxy, Target: forge}}
	for _, hosts := range registries {
		routes = append(routes, Route{Hosts: hosts, Kind: Registry, Target: registry})
	}
	return routes
}
