package fleet

import (
	"fmt"
	"net/url"
	"regexp"
	"strings"
)

// GitHubIssuer vouches for the jobs of GitHub Actions.
const GitHubIssuer = "https://token.actions.githubusercontent.com"

// Signer is who must have signed what the clusters run. Both are compared as a whole: a
// pattern could be too loose (P34).
type Signer struct {
	Issuer string `yaml:"issuer"` // who vouches for the identity; GitHubIssuer if it is not given
	// Identity is the workflow with its ref, as a certificate has it:
	// https://github.com/O/R/.github/workflows/W.yaml@refs/heads/main. Empty trusts nobody.
	Identity string `yaml:"identity"`
}

var workflowPattern = regexp.MustCompile(`^https://github\.com/[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+/\.github/workflows/[A-Za-z0-9_.-]+\.ya?ml@refs/(heads|tags)/[A-Za-z0-9_./+-]+$`)

// problem says which key is wrong, why, and what to do.
func (s Signer) problem() (key, message, fix string) {
	issuer, err := url.Parse(s.Issuer)
	switch {
	case err != nil || issuer.Scheme != "https" || issuer.Host == "" || issuer.User != nil || issuer.RawQuery != "" || issuer.Fragment != "":
		return "issuer", fmt.Sprintf("release.issuer %q is no address of an issuer", s.Issuer), "write it as its tokens do: https:// and a host, such as " + GitHubIssuer
	case s.Identity == "":
		return "", "", ""
	case strings.ContainsAny(s.Identity, "*?^$\\|()[]{} \t\n"):
		return "identity", fmt.Sprintf("release.identity %q looks like a pattern", s.Identity), "name the one workflow and its ref in full (P34)"
	case s.Issuer == GitHubIssuer && !workflowPattern.MatchString(s.Identity):
		return "identity", fmt.Sprintf("release.identity %q is no workflow of GitHub with its ref", s.Identity), "write https://github.com/OWNER/REPOSITORY/.github/workflows/FILE.yaml@refs/heads/BRANCH"
	}
	return "", "", ""
}
