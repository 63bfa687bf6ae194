package localfleet

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/omnivision/omnivision/conveyor/release"
	"github.com/omnivision/omnivision/localfleet/inside"
	"github.com/omnivision/omnivision/localfleet/issuer"
	"github.com/omnivision/omnivision/localfleet/process"
	"github.com/omnivision/omnivision/localfleet/topology"
)

// FirstImages are the images that Up has assembled, to be scanned and signed as the
// conveyor does with what it builds: a cluster's gate asks of them what it asks of any.
type FirstImages struct {
	Source   string       `json:"source"` // folder of the checkout
	Commit   string       `json:"commit"`
	Version  string       `json:"version"`
	Evidence string       `json:"evidence"` // folder that keeps what was found
	Database string       `json:"database"` // folder of Trivy's
	Images   []FirstImage `json:"images"`
}

// FirstImage is one app's image, which is the same in every repository.
type FirstImage struct {
	App          string   `json:"app"`
	Digest       string   `json:"digest"`
	Platform     string   `json:"platform"`
	Repositories []string `json:"repositories"`
}

// FirstImagesCommand is the hidden subcommand that vouches for the first images.
const FirstImagesCommand = "vouch"

// firstImagesLimit is far above what scanning and signing take.
const firstImagesLimit = 15 * time.Minute

// vouchForApps is for the images of the platform's apps, which no gate admits before.
func (f *Fleet) vouchForApps(ctx context.Context, report func(string)) error {
	return f.vouch(ctx, f.appImages(), report)
}

// vouchForComponents is for the programs of ours beside the platform. Their namespaces are not
// judged, so no cluster waits for it.
func (f *Fleet) vouchForComponents(ctx context.Context, report func(string)) error {
	images, err := f.componentFirstImages()
	if err != nil {
		return err
	}
	return f.vouch(ctx, images, report)
}

// vouch scans and signs images that Up has assembled, in the name of the workflow that
// would have built them. It runs as the conveyor does, where production's names lead to
// the fleet.
func (f *Fleet) vouch(ctx context.Context, images []FirstImage, report func(string)) error {
	request, err := json.Marshal(FirstImages{
		Source: f.Source, Commit: f.version.Commit, Version: f.version.Tag, Images: images,
		Evidence: filepath.Join(f.CacheDir, "first-images"), Database: filepath.Join(f.CacheDir, "trivy"),
	})
	if err != nil {
		return err
	}
	env, err := f.vouchEnvironment(ctx)
	if err != nil {
		return err
	}
	holder, err := inside.Holder(f.sup)
	if err != nil {
		return err
	}
	program, err := ownProgram()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, firstImagesLimit, fmt.Errorf("not done within %s", firstImagesLimit))
	defer cancel()
	cmd := exec.CommandContext(ctx, program, FirstImagesCommand)
	output := &lastLines{report: report}
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = env, bytes.NewReader(request), output, output
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	if err := process.Within(topology.HubNS, holder, cmd.Start); err != nil {
		return fmt.Errorf("starting to sign the first images: %w", err)
	}
	if err := cmd.Wait(); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return fmt.Errorf("signing the first images: %w\n%s", err, output.text())
	}
	return nil
}

// appImages lists each app's image with every repository that it was brought to.
func (f *Fleet) appImages() (images []FirstImage) {
	for _, app := range f.Tree.Apps {
		first := f.firstImage(app.Name, app.Repository)
		for _, cluster := range f.Tree.Clusters {
			repository := cluster.ImageRegistry + "/" + app.Repository
			if !slices.Contains(first.Repositories, repository) {
				first.Repositories = append(first.Repositories, repository)
			}
		}
		images = append(images, first)
	}
	return images
}

// componentFirstImages lists the images of this source that components of the GitOps repository name.
func (f *Fleet) componentFirstImages() (images []FirstImage, err error) {
	components, err := f.components()
	for _, component := range components {
		first := f.firstImage(path.Base(component.Name), path.Base(component.Name), component.Name)
		if !slices.ContainsFunc(images, func(i FirstImage) bool { return i.App == first.App }) {
			images = append(images, first)
		}
	}
	return images, err
}

func (f *Fleet) firstImage(app, made string, repositories ...string) FirstImage {
	return FirstImage{App: app, Digest: f.made.releases[made].Digest, Platform: "linux/" + runtime.GOARCH, Repositories: repositories}
}

// vouchEnvironment holds the identity of the workflow that the fleet trusts.
func (f *Fleet) vouchEnvironment(ctx context.Context) ([]string, error) {
	job, err := f.workflow()
	if err != nil {
		return nil, err
	}
	token, err := issuer.JobToken(ctx, f.issuerSocket(), "sigstore", job)
	if err != nil {
		return nil, err
	}
	env, err := f.witnessEnvironment()
	if err != nil {
		return nil, err
	}
	home := os.Getenv("HOME")
	return append(env, "HOME="+home, "SIGSTORE_ID_TOKEN="+token), nil
}

// workflow is a job of the workflow that fleet.yaml trusts, as it would be on a push.
func (f *Fleet) workflow() (issuer.Job, error) {
	identity := f.Tree.Release.Identity
	path, ref, ok := strings.Cut(strings.TrimPrefix(identity, "https://github.com/"), "@")
	parts := strings.SplitN(path, "/", 3)
	if !ok || len(parts) != 3 || f.Tree.Release.Issuer != issuer.ActionsURL {
		return issuer.Job{}, fmt.Errorf("fleet.yaml trusts %q of %s: the fleet's issuer can only speak for a workflow at https://github.com", identity, f.Tree.Release.Issuer)
	}
	return issuer.Job{
		Owner: parts[0], Repository: parts[1], Visibility: "public", Workflow: "conveyor", WorkflowPath: parts[2], Ref: ref,
		SHA: release.CommitOf(f.version.Commit), Event: "push", Actor: "omnivision-up",
	}, nil
}

// witnessEnvironment is what tells a program inside the fleet where its programs and its
// Sigstore are, and that this is no machine of a cloud: for the address of AWS' registry Trivy
// asks the instance for credentials, and waits eleven seconds for an answer that cannot come.
func (f *Fleet) witnessEnvironment() ([]string, error) {
	engines, err := f.Store.LinkPrograms()
	if err != nil {
		return nil, err
	}
	own, err := f.ownProgramDir()
	if err != nil {
		return nil, err
	}
	witnesses, err := f.sigstore()
	if err != nil {
		return nil, err
	}
	path := []string{own, engines, "/usr/local/go/bin", "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}
	return []string{
		"PATH=" + strings.Join(path, ":"),
		"OMNIVISION_TRUSTED_ROOT=" + witnesses.TrustedRootFile(),
		"OMNIVISION_SIGNING_CONFIG=" + witnesses.SigningConfigFile(),
		"AWS_EC2_METADATA_DISABLED=true",
	}, nil
}

// lastLines reports each line that a program writes, and keeps the last ones.
type lastLines struct {
	report  func(string)
	partial []byte
	kept    []string
}

// keptLines is how many lines an error shows.
const keptLines = 10

func (l *lastLines) Write(p []byte) (int, error) {
	l.partial = append(l.partial, p...)
	for {
		at := bytes.IndexByte(l.partial, '\n')
		if at < 0 {
			return len(p), nil
		}
		if line := strings.TrimSpace(string(l.partial[:at])); line != "" {
			l.kept = append(l.kept[max(0, len(l.kept)-keptLines+1):], line)
			l.report(line)
		}
		l.partial = l.partial[at+1:]
	}
}

func (l *lastLines) text() string {
	return strings.TrimSpace(strings.Join(append(l.kept, string(l.partial)), "\n"))
}
