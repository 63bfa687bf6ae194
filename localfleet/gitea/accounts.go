package gitea

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/omnivision/omnivision/forge"
)

// adminScopes are what the fleet's own calls need, and no more.
var adminScopes = []string{"write:admin", "write:organization", "write:repository", "write:user", "write:issue"}

// EnsureAdmin makes the administrator, whose password is made here and kept in
// a file that only the caller's user can read. Everything else needs it first.
func (s *Server) EnsureAdmin(ctx context.Context) error {
	password, err := ensureSecret(s.adminPasswordPath())
	if err != nil {
		return fmt.Errorf("ensure gitea's administrator: %w", err)
	}
	if !s.knows(ctx, credential{user: Admin, password: password}) {
		if err := s.bootstrapAdmin(ctx, password); err != nil {
			return fmt.Errorf("ensure gitea's administrator: %w", err)
		}
	}
	_, err = s.EnsureToken(ctx, Token{Name: "fleet", User: Admin, Scopes: adminScopes})
	return err
}

func (s *Server) adminPasswordPath() string {
	return filepath.Join(s.config.credentialsDir(), "admin-password")
}

// AdminPassword returns the password with which a person signs in as Admin.
func (s *Server) AdminPassword() (string, error) { return readSecret(s.adminPasswordPath()) }

func (s *Server) knows(ctx context.Context, who credential) bool {
	return s.call(ctx, http.MethodGet, "/api/v1/user", who, nil, nil) == nil
}

// accessToken is a line that is one. Gitea's log is printed to the same output at the same time,
// and so may stand before or behind it.
var accessToken = regexp.MustCompile(`(?m)^[0-9a-f]{40}$`)

// bootstrapAdmin makes the account by Gitea's own command, which works on its
// database. The command line is no place for a password: the account gets a
// random one there, then ours by the API.
func (s *Server) bootstrapAdmin(ctx context.Context, password string) error {
	_, err := s.command(ctx, "admin", "user", "create", "--admin", "--username", Admin,
		"--email", Admin+"@omnivision.invalid", "--random-password", "--must-change-password=false")
	if err != nil && !strings.Contains(err.Error(), "already exists") {
		return err
	}
	name := "bootstrap-" + rand.Text()
	out, err := s.command(ctx, "admin", "user", "generate-access-token", "--username", Admin,
		"--token-name", name, "--scopes", "write:admin", "--raw")
	if err != nil {
		return err
	}
	printed := accessToken.FindString(out)
	if printed == "" {
		return errors.New("gitea admin user generate-access-token printed no token")
	}
	token := credential{token: printed}
	err = s.call(ctx, http.MethodPatch, "/api/v1/admin/users/"+Admin, token, map[string]any{
		"login_name": Admin, "source_id": 0, "password": password, "must_change_password": false, "admin": true, "active": true,
	}, nil)
	if err != nil {
		return fmt.Errorf("set its password: %w", err)
	}
	return s.dropBootstrapTokens(ctx, credential{user: Admin, password: password})
}

// dropBootstrapTokens removes this call's token, and those of calls that were
// killed.
func (s *Server) dropBootstrapTokens(ctx context.Context, who credential) error {
	tokens, err := s.tokens(ctx, who, Admin)
	if err != nil {
		return err
	}
	for _, t := range tokens {
		if strings.HasPrefix(t.Name, "bootstrap-") {
			if err := s.dropToken(ctx, who, Admin, t.ID); err != nil {
				return err
			}
		}
	}
	return nil
}

// command runs one of Gitea's own commands as Gitea's user.
func (s *Server) command(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.config.Program, append(args, "--config", s.config.iniPath())...)
	cmd.Env, cmd.Dir = s.config.environment(), s.config.workPath()
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: s.config.UID, Gid: s.config.GID}}
	cmd.WaitDelay = 5 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		// Without the arguments' values: none is secret, but they are long.
		return "", fmt.Errorf("gitea %s: %w: %s", strings.Join(args[:3], " "), err, lastLine(stdout.String()+stderr.String()))
	}
	return stdout.String(), nil
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}

// admin is the credential of the fleet's own calls.
func (s *Server) admin() (credential, error) {
	token, err := readSecret(s.tokenPath("fleet"))
	if err == nil && token == "" {
		err = errors.New("gitea's administrator is not set up: ensure it first")
	}
	return credential{token: token}, err
}

// EnsureUser makes an account for a program, such as the one that opens pull
// requests. Its password is random and kept nowhere: it works by its tokens.
func (s *Server) EnsureUser(ctx context.Context, name string) error {
	who, err := s.admin()
	if err != nil {
		return err
	}
	err = s.call(ctx, http.MethodGet, "/api/v1/users/"+url.PathEscape(name), who, nil, nil)
	if err == nil || !answered(err, http.StatusNotFound) {
		return describe(err, "ensure user %s", name)
	}
	err = s.call(ctx, http.MethodPost, "/api/v1/admin/users", who, map[string]any{
		"username": name, "email": name + "@omnivision.invalid", "password": rand.Text(), "must_change_password": false,
	}, nil)
	return describe(err, "ensure user %s", name)
}

// Token is an access token for one user.
type Token struct {
	Name   string   // unique on this Gitea
	User   string   // whose it is
	Scopes []string // the least that its holder needs, such as write:repository
}

type tokenInfo struct {
	ID        int64    `json:"id"`
	Name      string   `json:"name"`
	Value     string   `json:"sha1"`
	LastEight string   `json:"token_last_eight"`
	Scopes    []string `json:"scopes"`
}

func (s *Server) tokenPath(name string) string {
	return filepath.Join(s.config.credentialsDir(), "token-"+name)
}

// TokenFile is where EnsureToken keeps the token called name.
func (s *Server) TokenFile(name string) string { return s.tokenPath(name) }

// RuntimeSecretFile holds what signs the tokens that Gitea lends to running jobs.
func (s *Server) RuntimeSecretFile() string {
	return filepath.Join(s.config.secretsDir(), "jwt-secret")
}

// EnsureToken returns the token, which it makes unless the file that keeps it
// and Gitea agree on one with these scopes. Gitea shows a token only once.
func (s *Server) EnsureToken(ctx context.Context, t Token) (string, error) {
	password, err := readSecret(s.adminPasswordPath())
	if err != nil {
		return "", err
	}
	who := credential{user: Admin, password: password}
	have, err := readSecret(s.tokenPath(t.Name))
	if err != nil {
		return "", err
	}
	tokens, err := s.tokens(ctx, who, t.User)
	if err != nil {
		return "", fmt.Errorf("ensure token %s of %s: %w", t.Name, t.User, err)
	}
	for _, known := range tokens {
		if known.Name != t.Name {
			continue
		}
		if have != "" && strings.HasSuffix(have, known.LastEight) && sameSet(known.Scopes, t.Scopes) {
			return have, nil
		}
		if err := s.dropToken(ctx, who, t.User, known.ID); err != nil {
			return "", fmt.Errorf("replace token %s of %s: %w", t.Name, t.User, err)
		}
	}
	var made tokenInfo
	err = s.call(ctx, http.MethodPost, "/api/v1/users/"+url.PathEscape(t.User)+"/tokens", who,
		map[string]any{"name": t.Name, "scopes": t.Scopes}, &made)
	if err != nil {
		return "", fmt.Errorf("make token %s of %s: %w", t.Name, t.User, err)
	}
	return made.Value, writeFile(s.tokenPath(t.Name), []byte(made.Value), 0o600)
}

func (s *Server) tokens(ctx context.Context, who credential, user string) ([]tokenInfo, error) {
	var tokens []tokenInfo
	err := s.call(ctx, http.MethodGet, "/api/v1/users/"+url.PathEscape(user)+"/tokens?limit=50", who, nil, &tokens)
	return tokens, err
}

func (s *Server) dropToken(ctx context.Context, who credential, user string, id int64) error {
	return s.call(ctx, http.MethodDelete, fmt.Sprintf("/api/v1/users/%s/tokens/%d", url.PathEscape(user), id), who, nil, nil)
}

func sameSet(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

// EnsureOrganisation makes an organisation.
func (s *Server) EnsureOrganisation(ctx context.Context, name string) error {
	who, err := s.admin()
	if err != nil {
		return err
	}
	err = s.call(ctx, http.MethodGet, "/api/v1/orgs/"+url.PathEscape(name), who, nil, nil)
	if err == nil || !answered(err, http.StatusNotFound) {
		return describe(err, "ensure organisation %s", name)
	}
	err = s.call(ctx, http.MethodPost, "/api/v1/orgs", who, map[string]any{"username": name, "visibility": "public"}, nil)
	return describe(err, "ensure organisation %s", name)
}

// EnsureWriter lets a user push branches to a repository and merge pull
// requests in it.
func (s *Server) EnsureWriter(ctx context.Context, repo forge.Name, user string) error {
	who, err := s.admin()
	if err != nil {
		return err
	}
	err = s.call(ctx, http.MethodPut, repoPath(repo)+"/collaborators/"+url.PathEscape(user), who, map[string]string{"permission": "write"}, nil)
	return describe(err, "let %s write to %s", user, repo)
}

// SetSecret gives the workflows of a repository a secret. Gitea never shows one again, so
// it is written each time.
func (s *Server) SetSecret(ctx context.Context, repo forge.Name, name, value string) error {
	who, err := s.admin()
	if err != nil {
		return err
	}
	err = s.call(ctx, http.MethodPut, repoPath(repo)+"/actions/secrets/"+url.PathEscape(name), who, map[string]string{"data": value}, nil)
	return describe(err, "set the secret %s of %s", name, repo)
}

// SetVariable gives the workflows of a repository a variable.
func (s *Server) SetVariable(ctx context.Context, repo forge.Name, name, value string) error {
	who, err := s.admin()
	if err != nil {
		return err
	}
	path := repoPath(repo) + "/actions/variables/" + url.PathEscape(name)
	err = s.call(ctx, http.MethodPut, path, who, map[string]string{"value": value}, nil)
	if answered(err, http.StatusNotFound) {
		err = s.call(ctx, http.MethodPost, path, who, map[string]string{"value": value}, nil)
	}
	return describe(err, "set the variable %s of %s", name, repo)
}

// describe says what failed, if something did.
func describe(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf(format+": %w", append(args, err)...)
}

func repoPath(name forge.Name) string {
	return "/api/v1/repos/" + url.PathEscape(name.Owner) + "/" + url.PathEscape(name.Repository)
}
