package gitea

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/omnivision/omnivision/localfleet/process"
)

// Runner says how the program that runs workflows is run.
type Runner struct {
	Name     string // of the daemon and on the forge; empty is gitea-runner
	Program  string
	DataDir  string // belongs to this runner alone
	NetNS    string // empty is the machine's own
	MountNS  int    // process whose mount namespace it joins; 0 is the machine's own
	UID, GID uint32
	// ForgeURL is where the runner reaches the forge, without a slash at its
	// end; empty is the server's own address. Jobs see it as GITHUB_SERVER_URL,
	// so it is production's name where the runner can resolve that.
	ForgeURL string
	// Labels are the kinds of machine that jobs may ask for, each with how it
	// is made; empty is ubuntu-24.04:host, which is this machine.
	Labels []string
	// Env is added to the environment of the runner and its jobs, such as
	// BUILDKIT_HOST; PATH takes the place of the default.
	Env []string
}

func (r *Runner) complete() error {
	if r.Name == "" {
		r.Name = "gitea-runner"
	}
	if len(r.Labels) == 0 {
		r.Labels = []string{"ubuntu-24.04:host"}
	}
	if r.DataDir == "" {
		return errors.New("no data directory is given")
	}
	if _, err := os.Stat(r.Program); err != nil {
		return fmt.Errorf("its program is missing: %w; build or load the engines", err)
	}
	return nil
}

func (r *Runner) registrationPath() string { return filepath.Join(r.DataDir, "registration") }
func (r *Runner) configPath() string       { return filepath.Join(r.DataDir, "config.yaml") }
func (r *Runner) homePath() string         { return filepath.Join(r.DataDir, "home") }

func (r *Runner) environment() []string {
	env := []string{"PATH=/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + r.homePath(), "USER=runner", "LANG=C.UTF-8"}
	return append(env, r.Env...) // of two, exec takes the last
}

// jobEnvironment is Env as the runner hands it to jobs.
func (r *Runner) jobEnvironment() map[string]string {
	env := map[string]string{}
	for _, pair := range r.Env {
		if key, value, ok := strings.Cut(pair, "="); ok {
			env[key] = value
		}
	}
	return env
}

// EnsureRunner registers the runner unless it is, starts it unless it runs, and
// waits until the forge knows it as idle or busy. It runs one job at a time.
func (s *Server) EnsureRunner(ctx context.Context, r Runner) error {
	if err := r.complete(); err != nil {
		return fmt.Errorf("start runner: %w", err)
	}
	if r.ForgeURL == "" {
		r.ForgeURL = strings.TrimSuffix(s.URL(), "/")
	}
	config, err := r.prepare()
	if err != nil {
		return fmt.Errorf("configure runner: %w", err)
	}
	registration, err := s.ensureRegistered(ctx, r)
	if err != nil {
		return fmt.Errorf("register runner: %w", err)
	}
	spec := process.Spec{
		Name: r.Name, Path: r.Program, Args: []string{"daemon", "--config", r.configPath()},
		Env: r.environment(), Dir: r.homePath(), NetNS: r.NetNS, MountNS: r.MountNS, UID: r.UID, GID: r.GID,
		KillGroup: true, StopGrace: 5 * time.Second,
		Inputs: []string{config, registration.UUID},
	}
	if _, err := s.config.Supervisor.Start(ctx, spec); err != nil {
		return err
	}
	err = s.config.Supervisor.Wait(ctx, r.Name, time.Minute, func(ctx context.Context) error { return s.online(ctx, registration.ID) })
	return describe(err, "wait until the forge sees its runner %s", r.Name)
}

// prepare makes the directories and the configuration, and returns that.
func (r *Runner) prepare() (string, error) {
	for _, dir := range []string{r.DataDir, r.homePath(), filepath.Join(r.homePath(), "work")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", err
		}
		if err := os.Chown(dir, int(r.UID), int(r.GID)); err != nil {
			return "", err
		}
	}
	// YAML, of which JSON is a part. Fetching twice a second would be no load
	// either; jobs of one machine start within a second.
	config, err := json.MarshalIndent(map[string]any{
		"log": map[string]any{"level": "info"},
		"runner": map[string]any{
			"file": r.registrationPath(), "capacity": 1, "timeout": "1h", "shutdown_timeout": "3s",
			"fetch_timeout": "5s", "fetch_interval": "1s", "fetch_interval_max": "1s",
			"log_report_interval": "1s", "log_report_max_latency": "500ms", "state_report_interval": "1s",
			"labels": r.Labels, "envs": r.jobEnvironment(),
		},
		"cache":     map[string]any{"enabled": false},
		"container": map[string]any{"require_docker": false},
		"host":      map[string]any{"workdir_parent": filepath.Join(r.homePath(), "work")},
	}, "", "  ")
	if err != nil {
		return "", err
	}
	return string(config), writeFile(r.configPath(), config, 0o644)
}

// registration is the file that the runner keeps of it.
type registration struct {
	ID      int64    `json:"id"`
	UUID    string   `json:"uuid"`
	Address string   `json:"address"`
	Labels  []string `json:"labels"`
}

type runnerInfo struct {
	ID     int64  `json:"id"`
	Name   string `json:"name"`
	Status string `json:"status"`
}

// ensureRegistered keeps a registration that both sides know, and replaces any
// other: one side alone is what a kill in between leaves.
func (s *Server) ensureRegistered(ctx context.Context, r Runner) (registration, error) {
	who, err := s.admin()
	if err != nil {
		return registration{}, err
	}
	known, err := s.runners(ctx, who)
	if err != nil {
		return registration{}, err
	}
	have := readRegistration(r.registrationPath())
	if have.Address == r.ForgeURL && slices.ContainsFunc(known, func(i runnerInfo) bool { return i.ID == have.ID && i.Name == r.Name }) {
		return have, nil
	}
	for _, old := range known {
		if old.Name == r.Name {
			if err := s.call(ctx, http.MethodDelete, fmt.Sprintf("/api/v1/admin/actions/runners/%d", old.ID), who, nil, nil); err != nil {
				return registration{}, err
			}
		}
	}
	if err := s.config.Supervisor.Stop(ctx, r.Name); err != nil {
		return registration{}, err
	}
	return s.register(ctx, who, r)
}

func readRegistration(path string) registration {
	var have registration
	data, err := os.ReadFile(path)
	if err != nil || json.Unmarshal(data, &have) != nil {
		return registration{} // none, or half written
	}
	return have
}

func (s *Server) runners(ctx context.Context, who credential) ([]runnerInfo, error) {
	var list struct {
		Runners []runnerInfo `json:"runners"`
	}
	err := s.call(ctx, http.MethodGet, "/api/v1/admin/actions/runners?limit=50", who, nil, &list)
	return list.Runners, err
}

func (s *Server) register(ctx context.Context, who credential, r Runner) (registration, error) {
	var token struct{ Token string }
	if err := s.call(ctx, http.MethodPost, "/api/v1/admin/actions/runners/registration-token", who, nil, &token); err != nil {
		return registration{}, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("not registered within a minute"))
	defer cancel()
	cmd := exec.CommandContext(ctx, r.Program, "register", "--config", r.configPath(), "--no-interactive",
		"--instance", r.ForgeURL, "--token", token.Token, "--name", r.Name, "--labels", strings.Join(r.Labels, ","))
	cmd.Env, cmd.Dir, cmd.WaitDelay = r.environment(), r.homePath(), 5*time.Second
	if r.UID != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: r.UID, Gid: r.GID}}
	}
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	err := process.Within(r.NetNS, r.MountNS, cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return registration{}, fmt.Errorf("%w: %s", err, lastLine(output.String()))
	}
	made := readRegistration(r.registrationPath())
	if made.ID == 0 {
		return registration{}, fmt.Errorf("the runner wrote no registration to %s: %s", r.registrationPath(), lastLine(output.String()))
	}
	return made, os.Chmod(r.registrationPath(), 0o600) // it holds the runner's token
}

func (s *Server) online(ctx context.Context, id int64) error {
	who, err := s.admin()
	if err != nil {
		return err
	}
	known, err := s.runners(ctx, who)
	if err != nil {
		return err
	}
	for _, runner := range known {
		if runner.ID == id {
			if runner.Status == "idle" || runner.Status == "active" || runner.Status == "online" {
				return nil
			}
			return fmt.Errorf("the forge says that it is %s", runner.Status)
		}
	}
	return errors.New("the forge does not know it")
}

// QueuedJobs counts the jobs that wait for a runner.
func (s *Server) QueuedJobs(ctx context.Context) (int, error) {
	who, err := s.admin()
	if err != nil {
		return 0, err
	}
	var list struct {
		Total int `json:"total_count"`
	}
	err = s.call(ctx, http.MethodGet, "/api/v1/admin/actions/jobs?status=queued&limit=1", who, nil, &list)
	return list.Total, describe(err, "list the jobs that wait for a runner")
}
