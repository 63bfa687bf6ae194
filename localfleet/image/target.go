package image

import (
	"fmt"
	"net/url"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// pushTarget is where the fleet's registry keeps the image of a production
// reference. A digest is kept: it is the manifest's name.
func pushTarget(reference, base string) (name.Reference, error) {
	ref, err := name.ParseReference(reference)
	if err != nil {
		return nil, fmt.Errorf("reading the image reference %q: %w", reference, err)
	}
	u, err := url.Parse(base)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("the registry's address %q is not http://host:port", base)
	}
	host := canonicalHost(ref)
	if strings.Contains(host, ":") {
		return nil, fmt.Errorf("the image reference %q has a port in its host, which a repository name cannot hold", reference)
	}
	var options []name.Option
	if u.Scheme == "http" {
		options = append(options, name.Insecure)
	}
	separator := ":"
	if _, ok := ref.(name.Digest); ok {
		separator = "@"
	}
	return name.ParseReference(u.Host+"/"+host+"/"+ref.Context().RepositoryStr()+separator+ref.Identifier(), options...)
}

func platform() v1.Platform {
	return v1.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}
}
