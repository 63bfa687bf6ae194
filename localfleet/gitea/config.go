package gitea

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"text/template"
)

func (c *Config) iniPath() string  { return filepath.Join(c.DataDir, "app.ini") }
func (c *Config) workPath() string { return filepath.Join(c.DataDir, "work") }

// secretsDir holds what Gitea reads; credentialsDir what only its administrator
// does.
func (c *Config) secretsDir() string     { return filepath.Join(c.DataDir, "secrets") }
func (c *Config) credentialsDir() string { return filepath.Join(c.DataDir, "credentials") }

func (c *Config) repositoryPath(owner, name string) string {
	return filepath.Join(c.workPath(), "repositories", owner, name+".git")
}

// environment is all that Gitea and its own commands see.
func (c *Config) environment() []string {
	env := []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=" + c.workPath(), "USER=gitea", "GITEA_WORK_DIR=" + c.workPath(),
	}
	if c.CAFile != "" {
		env = append(env, "SSL_CERT_FILE="+c.CAFile)
	}
	return env
}

// settings is Gitea's configuration.
//
//   - PUBLIC_URL_DETECTION = never: every address is production's, also for a
//     request that came by the server's own.
//   - The issue index is the database: no index to build at the start.
//   - SQLite waits for a lock instead of failing, and its journal survives
//     SIGKILL.
//   - Webhooks may go to private addresses, where the clusters are, and nowhere
//     else.
//   - A push and its webhooks wait in memory: the queue on disk, which is the default, is
//     looked at every two seconds. What a kill leaves undelivered is in the database, and
//     sent at the next start; a push that the database does not know yet is made known by
//     makeShown.
//   - oauth2 off and a cron without the update check: nothing is looked up
//     outside.
var settings = template.Must(template.New("app.ini").Parse(`APP_NAME = OmniVision fleet
RUN_MODE = prod
WORK_PATH = {{.Work}}

[server]
PROTOCOL = http
HTTP_ADDR = {{.Host}}
HTTP_PORT = {{.Port}}
ROOT_URL = {{.RootURL}}
PUBLIC_URL_DETECTION = never
STATIC_ROOT_PATH = {{.Assets}}
OFFLINE_MODE = true
DISABLE_SSH = true
LFS_START_SERVER = false

[database]
DB_TYPE = sqlite3
PATH = {{.Work}}/gitea.db
SQLITE_JOURNAL_MODE = WAL
SQLITE_TIMEOUT = 20000

[repository]
ROOT = {{.Work}}/repositories
DEFAULT_BRANCH = main
DEFAULT_PRIVATE = false
DISABLE_STARS = true

[repository.pull-request]
DEFAULT_MERGE_STYLE = squash

[security]
INSTALL_LOCK = true
SECRET_KEY_URI = file:{{.Secrets}}/secret-key
INTERNAL_TOKEN_URI = file:{{.Secrets}}/internal-token

[oauth2]
ENABLED = false
JWT_SECRET_URI = file:{{.Secrets}}/jwt-secret

[service]
DISABLE_REGISTRATION = true
REGISTER_MANUAL_CONFIRM = false
ALLOW_ONLY_EXTERNAL_REGISTRATION = false
ENABLE_NOTIFY_MAIL = false
DEFAULT_KEEP_EMAIL_PRIVATE = true
NO_REPLY_ADDRESS = noreply.omnivision.invalid

[openid]
ENABLE_OPENID_SIGNIN = false
ENABLE_OPENID_SIGNUP = false

[actions]
ENABLED = true
DEFAULT_ACTIONS_URL = self

[queue.push_update]
TYPE = channel

[queue.webhook_sender]
TYPE = channel

[webhook]
ALLOWED_HOST_LIST = private,loopback
DELIVER_TIMEOUT = 10

[indexer]
ISSUE_INDEXER_TYPE = db

[session]
PROVIDER = memory
COOKIE_NAME = omnivision_forge

[packages]
ENABLED = false

[mirror]
ENABLED = false

[mailer]
ENABLED = false

[cron.update_checker]
ENABLED = false

[other]
SHOW_FOOTER_VERSION = true
ENABLE_FEED = false

[log]
MODE = console
LEVEL = Warn
`))

// prepare makes the directories, secrets and configuration, and returns the
// configuration.
func (c *Config) prepare() (string, error) {
	if _, err := exec.LookPath("git"); err != nil {
		return "", fmt.Errorf("git is missing, which gitea needs: install it: %w", err)
	}
	if err := os.MkdirAll(c.DataDir, 0o755); err != nil {
		return "", err
	}
	if err := os.MkdirAll(c.credentialsDir(), 0o700); err != nil {
		return "", err
	}
	for _, dir := range []string{c.workPath(), c.secretsDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return "", err
		}
		if err := os.Chown(dir, int(c.UID), int(c.GID)); err != nil {
			return "", err
		}
	}
	for _, name := range []string{"secret-key", "internal-token", "jwt-secret"} {
		path := filepath.Join(c.secretsDir(), name)
		if _, err := ensureSecret(path); err != nil {
			return "", err
		}
		if err := os.Chown(path, int(c.UID), int(c.GID)); err != nil {
			return "", err
		}
	}
	ini, err := c.render()
	if err != nil {
		return "", err
	}
	if err := writeFile(c.iniPath(), []byte(ini), 0o644); err != nil {
		return "", err
	}
	return ini, nil
}

func (c *Config) render() (string, error) {
	host, port, err := splitAddress(c.Address)
	if err != nil {
		return "", err
	}
	var b bytes.Buffer
	err = settings.Execute(&b, struct{ Work, Host, Port, RootURL, Assets, Secrets string }{
		c.workPath(), host, port, c.RootURL, c.Assets, c.secretsDir(),
	})
	return b.String(), err
}
