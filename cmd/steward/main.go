// Command steward runs in each cluster, beside Argo CD and Argo Rollouts: it takes images that
// a canary condemned out of Git, hands healthy releases on to the next wave, and reports.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/omnivision/omnivision/internal/version"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-ctx.Done()
		stop() // a second signal ends the program at once
	}()
	os.Exit(run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
}

// Exit statuses.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

type options struct {
	cluster                  string
	repository, branch       string
	source                   string
	token, sourceToken       credentials
	login, caFile, dir       string
	notifyFile               string
	namespace, argocd        string
	kubeconfig               string
	leaseNamespace, identity string
	listen                   string
	every                    time.Duration
	drain                    bool
	prometheus, loki         string
	hardwareXids             numbers
	logLevel                 slog.Level
	showVersion              bool
}

// credentials are a token in a file, or a GitHub App that gets one.
type credentials struct {
	file         string
	app          string
	installation int64
	key          string
}

// numbers is a list of numbers as a flag.
type numbers []int

func (n *numbers) String() string {
	return strings.Trim(strings.ReplaceAll(fmt.Sprint([]int(*n)), " ", ","), "[]")
}

func (n *numbers) Set(text string) error {
	*n = nil
	for _, part := range strings.Split(text, ",") {
		number, err := strconv.Atoi(strings.TrimSpace(part))
		if err != nil || number < 0 {
			return fmt.Errorf("%q is no Xid", part)
		}
		*n = append(*n, number)
	}
	return nil
}

const usage = `The steward of one cluster: what a canary condemns it takes out of Git, what has soaked
it proposes to the next wave, and it reports both to the commit that was pushed.

Usage: steward --cluster NAME --repository URL --token-file FILE [flags]

In a cluster, with a token that may open pull requests and set commit statuses:
  steward --cluster cluster-aws --token-file /var/run/secrets/forge/token \
    --repository https://github.com/omnivision/omnivision-gitops.git \
    --source-repository https://github.com/omnivision/omnivision.git

As a GitHub App, and with messages to a chat:
  steward --cluster cluster-aws --github-app 12345 --github-installation 678 \
    --github-key-file /var/run/secrets/forge/key.pem --notify-url-file /var/run/secrets/chat/url \
    --repository https://github.com/omnivision/omnivision-gitops.git

From a laptop, for a look at what it would see (it acts, too):
  steward --cluster cluster-aws --kubeconfig ~/.kube/config --lease-namespace default …

Flags:
`

func parse(args []string, getenv func(string) string, stderr io.Writer) (options, error) {
	o := options{hardwareXids: numbers{46, 48, 79}}
	fs := flag.NewFlagSet("steward", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() {
		fmt.Fprint(stderr, usage)
		fs.PrintDefaults()
	}
	fs.StringVar(&o.cluster, "cluster", getenv("OMNIVISION_CLUSTER"), "`name` of this cluster in fleet.yaml, by default $OMNIVISION_CLUSTER")
	fs.StringVar(&o.repository, "repository", "", "clone `URL` of the GitOps repository")
	fs.StringVar(&o.branch, "branch", "main", "`branch` of it that the clusters follow")
	fs.StringVar(&o.source, "source-repository", "", "clone `URL` of the source, whose commits hear how their release is; empty tells the GitOps repository alone")
	fs.StringVar(&o.token.file, "token-file", "", "`file` with the forge's token; it may be replaced at any time")
	fs.StringVar(&o.sourceToken.file, "source-token-file", "", "`file` with a token for the source's forge; by default the same credentials")
	fs.StringVar(&o.token.app, "github-app", "", "client `id` of a GitHub App, in place of a token")
	fs.Int64Var(&o.token.installation, "github-installation", 0, "`id` of the App's installation")
	fs.StringVar(&o.token.key, "github-key-file", "", "`file` with the App's private key")
	fs.StringVar(&o.login, "login", "", "`name` under which the token's comments appear, where the forge does not tell")
	fs.StringVar(&o.caFile, "ca-file", "", "`file` with further certificate authorities of the forge; one that is not there is none")
	fs.StringVar(&o.dir, "dir", os.TempDir(), "`directory` for the clone of the GitOps repository")
	fs.StringVar(&o.notifyFile, "notify-url-file", "", "`file` with the address of a chat's incoming webhook, in Slack's format")
	fs.StringVar(&o.namespace, "namespace", "omnivision", "`namespace` of the platform")
	fs.StringVar(&o.argocd, "argocd-namespace", "argocd", "`namespace` of Argo CD")
	fs.StringVar(&o.kubeconfig, "kubeconfig", "", "`file` of the cluster's access; by default that of the Pod")
	fs.StringVar(&o.leaseNamespace, "lease-namespace", getenv("POD_NAMESPACE"), "`namespace` of the Lease that elects the one that acts, by default $POD_NAMESPACE")
	fs.StringVar(&o.identity, "identity", getenv("POD_NAME"), "`name` of this replica, by default $POD_NAME or the host's")
	fs.StringVar(&o.listen, "listen", ":9090", "`address` of /metrics, /healthz and /readyz")
	fs.DurationVar(&o.every, "every", 30*time.Second, "how often to look at Git without a reason; a change in the cluster is a reason")
	fs.BoolVar(&o.drain, "drain-broken-nodes", false, "cordon and drain nodes whose GPU reports an Xid of broken hardware under a canary, then let it go on; needs the rights of components/steward/drain")
	fs.StringVar(&o.prometheus, "prometheus", "http://prometheus.monitoring.svc:9090", "`address` to ask for such Xids, and how the metrics of an aborted canary went; empty does not ask")
	fs.StringVar(&o.loki, "loki", "http://loki.logging.svc:3100", "`address` to ask for log lines of an aborted canary; without an answer the Kubernetes API is asked")
	fs.Var(&o.hardwareXids, "hardware-xids", "Xids of broken hardware, with commas between")
	fs.TextVar(&o.logLevel, "log-level", slog.LevelInfo, "debug, info, warn or error")
	fs.BoolVar(&o.showVersion, "version", false, "print the version and exit")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	if fs.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q; every option is a flag, see --help", fs.Arg(0))
	}
	if o.showVersion {
		return o, nil
	}
	return o, o.check()
}

func (o *options) check() error {
	switch {
	case o.cluster == "":
		return errors.New("no cluster: give its name in fleet.yaml as --cluster or $OMNIVISION_CLUSTER")
	case o.repository == "":
		return errors.New("no GitOps repository: give its clone URL as --repository")
	case o.token.file == "" && o.token.app == "":
		return errors.New("no credentials: give --token-file, or --github-app with --github-installation and --github-key-file")
	case o.token.file != "" && o.token.app != "":
		return errors.New("two credentials: give either --token-file or --github-app")
	case o.token.app != "" && (o.token.installation == 0 || o.token.key == ""):
		return errors.New("--github-app needs --github-installation and --github-key-file")
	case o.leaseNamespace == "":
		return errors.New("no namespace for the Lease: give --lease-namespace or $POD_NAMESPACE")
	}
	if _, err := os.Stat(o.caFile); errors.Is(err, os.ErrNotExist) {
		o.caFile = ""
	}
	if o.identity == "" {
		o.identity, _ = os.Hostname()
	}
	return nil
}

func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	o, err := parse(args, getenv, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		fmt.Fprintln(stderr, "steward:", err)
		return exitUsage
	case o.showVersion:
		build := version.Get()
		fmt.Fprintf(stdout, "steward %s (commit %s, %s)\n", build.Version, build.Commit, build.Go)
		return exitOK
	}
	log := slog.New(slog.NewJSONHandler(stdout, &slog.HandlerOptions{Level: o.logLevel})).
		With("service", "omnivision-steward", "version", version.Get().Version, "cluster", o.cluster)
	if err := start(ctx, o, log); err != nil {
		log.Error("the steward ended", "error", err.Error())
		return exitFailed
	}
	return exitOK
}
