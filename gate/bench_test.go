package gate_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"

	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/gate"
	"github.com/omnivision/omnivision/gate/webhook"
	"github.com/omnivision/omnivision/localfleet/ca"
	"github.com/omnivision/omnivision/localfleet/edge/apiservertest"
)

// coldSize is how many digests the gate of the cold rows keeps. Of coldImages that are asked about in turn each is
// forgotten before its next turn, so that every create costs a verification, and more of them than creates in
// flight, so that none waits for another's.
const (
	coldSize   = 1
	coldImages = 2 * closedWith
)

// trustedRoot is the file of who signs, among those of a role.
const trustedRoot = "trusted_root.json"

// benchJudge is who judges in the benchmark: the gate's own Judge, which reads the registry of the benchmark.
func benchJudge(dir string, size int) (gate.Judge, error) {
	root, err := os.ReadFile(filepath.Join(dir, trustedRoot))
	if err != nil {
		return nil, err
	}
	return realJudge(root, size)
}

// emptyPair answers yes without looking: the least that a mutating and a validating webhook can cost.
func emptyPair() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		_, rest, ok := strings.Cut(string(body), `"uid":"`)
		if uid, _, ended := strings.Cut(rest, `"`); err == nil && ok && ended {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"uid":%q,"allowed":true}}`, uid)
		}
	})
}

// The webhooks run in processes of their own, so that their CPU and memory can be told from the load's.
const (
	roleVariable    = "OMNIVISION_BENCH_ROLE"
	addressVariable = "OMNIVISION_BENCH_ADDRESS"
	filesVariable   = "OMNIVISION_BENCH_FILES"
)

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		if err := serveRole(role); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

func serveRole(role string) error {
	dir := os.Getenv(filesVariable)
	handler := emptyPair()
	if size, gated := map[string]int{"gate": 0, "cold": coldSize}[role]; gated {
		j, err := benchJudge(dir, size)
		if err != nil {
			return err
		}
		handler = webhook.New(webhook.Options{Judge: j, Audit: slog.New(slog.NewJSONHandler(os.Stdout, nil))}).Handler()
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"))
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", os.Getenv(addressVariable))
	if err != nil {
		return err
	}
	go func() { // ends with the benchmark, whose end of the pipe closes
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	s := &http.Server{Handler: handler, IdleTimeout: 3 * time.Minute}
	return s.Serve(tls.NewListener(listener, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}}))
}

// scenario is a row of the table. The Pod's label chooses which webhooks it passes.
type scenario struct {
	name, label string
	images      func(i int64) []string
	process     *process

	p50, p99 []time.Duration // of each round
	rate     []float64
	cpu      time.Duration
	creates  int64
	failed   atomic.Int64 // on a machine that is too busy webhooks run into their timeout
}

const (
	rounds     = 3
	openFor    = 4 * time.Second
	closedFor  = 3 * time.Second
	openRate   = 100 // a second
	closedWith = 50
)

// BenchmarkAdmission measures dry-run creates of Pods on one real API server in one run: an open loop, which
// shows latency as a controller would see it, and a closed loop, which shows throughput. The scenarios take
// turns, so that what else the machine does falls on all of them.
func BenchmarkAdmission(b *testing.B) {
	if os.Getenv("OMNIVISION_ENGINES") == "" {
		b.Skip("OMNIVISION_ENGINES is not set: there is no API server to measure (make engines)")
	}
	config := apiservertest.Start(b).Config
	config.QPS = -1
	client, err := kubernetes.NewForConfig(config)
	check(b, err)
	_, err = client.CoreV1().Namespaces().Create(b.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: apps}}, metav1.CreateOptions{})
	check(b, err)
	authority, err := ca.LoadOrCreate(b.TempDir())
	check(b, err)
	site := newSite(b)
	empty, gated, cold := startRole(b, "empty", authority, site.root), startRole(b, "gate", authority, site.root), startRole(b, "cold", authority, site.root)
	register(b, client, "empty", empty.address, authority.CertPEM(), false)
	register(b, client, "gate", gated.address, authority.CertPEM(), true)
	register(b, client, "cold", cold.address, authority.CertPEM(), true)
	same := func(image string) func(int64) []string { return func(int64) []string { return []string{image, image} } }
	releases := make([]string, coldImages)
	for i := range releases {
		releases[i] = site.release(b, fmt.Sprintf("1.4.%d", i))
	}
	byDigest, byTag := releases[0], site.repository.Tag("1.4.0").String()
	all := []*scenario{
		{name: "no webhook", label: "none", images: same(byDigest)},
		{name: "empty pair", label: "empty", images: same(byDigest), process: empty},
		{name: "gate, digests, cached", label: "gate", images: same(byDigest), process: gated},
		{name: "gate, tags, cached", label: "gate", images: same(byTag), process: gated},
		{name: "gate, digests, cold", label: "cold", images: func(i int64) []string { return []string{releases[i%coldImages]} }, process: cold},
	}
	for _, s := range all {
		s.closed(b, client, time.Second) // warm
	}
	for range rounds {
		for _, s := range all {
			before := s.process.cpu()
			s.open(b, client)
			s.closed(b, client, closedFor)
			s.cpu += s.process.cpu() - before
		}
	}
	printTable(b, all)
}

func (s *scenario) create(client kubernetes.Interface, i int64) error {
	p := pod(apps, "bench", s.images(i)...)
	p.Labels = map[string]string{"bench": s.label, "app.kubernetes.io/name": "worker", "app.kubernetes.io/part-of": "platform"}
	for c := range p.Spec.Containers {
		p.Spec.Containers[c].Env = []corev1.EnvVar{{Name: "OMNIVISION_CLUSTER", Value: "cluster-aws"}, {Name: "OMNIVISION_REGION", Value: "us-west-2"}}
		p.Spec.Containers[c].Args = []string{"--listen=:8080", "--metrics-listen=:9090"}
	}
	_, err := client.CoreV1().Pods(apps).Create(context.Background(), p, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	return err
}

func (s *scenario) count(b *testing.B, err error) {
	if err != nil && s.failed.Add(1) == 1 {
		b.Logf("%s: the first create that failed: %v", s.name, err)
	}
}

// open starts a create every 10 ms, whether or not the one before has ended.
func (s *scenario) open(b *testing.B, client kubernetes.Interface) {
	n := int(openFor.Seconds() * openRate)
	took := make([]time.Duration, n)
	var running sync.WaitGroup
	start := time.Now()
	for i := range n {
		due := start.Add(time.Duration(i) * time.Second / openRate)
		time.Sleep(time.Until(due))
		running.Go(func() {
			s.count(b, s.create(client, int64(i)))
			took[i] = time.Since(due) // what waited for a late start has waited
		})
	}
	running.Wait()
	slices.Sort(took)
	s.p50, s.p99 = append(s.p50, took[n/2]), append(s.p99, took[n*99/100])
	s.creates += int64(n)
}

func (s *scenario) closed(b *testing.B, client kubernetes.Interface, for_ time.Duration) {
	var running sync.WaitGroup
	var count atomic.Int64
	start := time.Now()
	for range closedWith {
		running.Go(func() {
			for time.Since(start) < for_ {
				s.count(b, s.create(client, count.Add(1)))
			}
		})
	}
	running.Wait()
	if for_ == closedFor {
		s.rate = append(s.rate, float64(count.Load())/time.Since(start).Seconds())
		s.creates += count.Load()
	}
}

// Demands on the gate with cached digests.
const (
	maxAddedRatio = 1.3                   // of p50 added, to what the empty pair adds
	maxAddedP99   = 10 * time.Millisecond // more than without a webhook
	minRateRatio  = 0.8                   // of the empty pair's throughput
)

func printTable(b *testing.B, all []*scenario) {
	none, empty := all[0], all[1]
	var table strings.Builder
	fmt.Fprintf(&table, "\n%-24s %9s %9s %11s %11s %11s %10s %10s %9s %8s %7s\n", "", "p50", "p99", "p50 added", "p99 added", "x empty p50", "creates/s", "x empty", "CPU/create", "RSS", "failed")
	for _, s := range all {
		p50, p99 := median(s.p50), median(s.p99)
		addedP50, addedP99 := p50-median(none.p50), p99-median(none.p99)
		ratio := float64(addedP50) / float64(median(empty.p50)-median(none.p50))
		rate := median(s.rate)
		fmt.Fprintf(&table, "%-24s %9s %9s %11s %11s %11.2f %10.0f %10.2f %9s %8s %7d\n", s.name, ms(p50), ms(p99), ms(addedP50), ms(addedP99), ratio, rate, rate/median(empty.rate),
			(s.cpu / time.Duration(s.creates)).Round(time.Microsecond), s.process.rss(), s.failed.Load())
	}
	for _, s := range all[2:4] {
		ratio := float64(median(s.p50)-median(none.p50)) / float64(median(empty.p50)-median(none.p50))
		added, rate := median(s.p99)-median(none.p99), median(s.rate)/median(empty.rate)
		fmt.Fprintf(&table, "%s: p50 added %.2f times the empty pair's (at most %.1f: %s), p99 added %s (below %s: %s), throughput %.0f %% (at least %.0f %%: %s)\n", s.name,
			ratio, maxAddedRatio, met(ratio <= maxAddedRatio), ms(added), ms(maxAddedP99), met(added < maxAddedP99), 100*rate, 100*minRateRatio, met(rate >= minRateRatio))
		key := strings.NewReplacer(" ", "-", ",", "").Replace(s.name)
		b.ReportMetric(ratio, key+"-p50-x-empty")
		b.ReportMetric(rate, key+"-rate-x-empty")
	}
	fmt.Print(table.String()) // a benchmark's log is cut after ten lines
}

func met(yes bool) string {
	if yes {
		return "met"
	}
	return "MISSED"
}

func ms(d time.Duration) string { return fmt.Sprintf("%.2fms", float64(d)/float64(time.Millisecond)) }

func median[T time.Duration | float64](values []T) T {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// process is a webhook server of the benchmark.
type process struct {
	address string
	pid     int
}

func startRole(b *testing.B, role string, authority *ca.Authority, root []byte) *process {
	dir := b.TempDir()
	check(b, os.WriteFile(filepath.Join(dir, trustedRoot), root, 0o600))
	_, err := authority.IssueFiles(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"), ca.Request{CommonName: role, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}})
	check(b, err)
	l := listen(b)
	address := l.Addr().String()
	l.Close()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleVariable+"="+role, addressVariable+"="+address, filesVariable+"="+dir)
	log, err := os.Create(filepath.Join(dir, "audit.log"))
	check(b, err)
	cmd.Stdout, cmd.Stderr = log, os.Stderr
	stdin, err := cmd.StdinPipe()
	check(b, err)
	check(b, cmd.Start())
	b.Cleanup(func() { stdin.Close(); _ = cmd.Wait(); log.Close() })
	until(b, role+" does not listen", func() bool {
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return &process{address, cmd.Process.Pid}
}

// tick is a hundredth of a second on every Linux that Go runs on.
const tick = 10 * time.Millisecond

func (p *process) cpu() time.Duration {
	if p == nil {
		return 0
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	user, _ := strconv.Atoi(fields[11])
	kernel, _ := strconv.Atoi(fields[12])
	return time.Duration(user+kernel) * tick
}

func (p *process) rss() string {
	if p == nil {
		return "-"
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.pid))
	if err != nil {
		return "-"
	}
	pages, _ := strconv.Atoi(strings.Fields(string(text))[1])
	return fmt.Sprintf("%dMB", pages*os.Getpagesize()>>20)
}

// register adds a pair of webhooks for Pods with a label. The gate's are those of the tree, conditions included.
func register(b *testing.B, client kubernetes.Interface, label, address string, bundle []byte, conditions bool) {
	mutating, validating := treeWebhooks(b)
	path := func(p string) admissionregistrationv1.WebhookClientConfig {
		url := "https://" + address + p
		return admissionregistrationv1.WebhookClientConfig{URL: &url, CABundle: bundle}
	}
	selector := &metav1.LabelSelector{MatchLabels: map[string]string{"bench": label}}
	mutating.Name, mutating.ClientConfig, mutating.ObjectSelector = label+".mutate.example.com", path(webhook.MutatePath), selector
	validating.Name, validating.ClientConfig, validating.ObjectSelector = label+".validate.example.com", path(webhook.ValidatePath), selector
	if !conditions {
		mutating.MatchConditions, validating.MatchConditions = nil, nil
	}
	_, err := client.AdmissionregistrationV1().MutatingWebhookConfigurations().Create(b.Context(), &admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: label}, Webhooks: []admissionregistrationv1.MutatingWebhook{mutating}}, metav1.CreateOptions{})
	check(b, err)
	_, err = client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Create(b.Context(), &admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: label}, Webhooks: []admissionregistrationv1.ValidatingWebhook{validating}}, metav1.CreateOptions{})
	check(b, err)
}

// treeWebhooks are the pinning and the judging webhook as clusters get them.
func treeWebhooks(b *testing.B) (pin admissionregistrationv1.MutatingWebhook, validate admissionregistrationv1.ValidatingWebhook) {
	objects, err := fleet.RenderSource(os.DirFS("../omnivision-gitops"), fleet.Source{Path: "components/gate/manifests"}, system)
	check(b, err)
	for _, o := range objects {
		switch o.GetKind() {
		case "MutatingWebhookConfiguration":
			var c admissionregistrationv1.MutatingWebhookConfiguration
			typed(b, o, &c)
			pin = c.Webhooks[len(c.Webhooks)-1]
		case "ValidatingWebhookConfiguration":
			var c admissionregistrationv1.ValidatingWebhookConfiguration
			typed(b, o, &c)
			validate = c.Webhooks[0]
		}
	}
	return pin, validate
}

func typed(b *testing.B, o *unstructured.Unstructured, into any) {
	check(b, runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, into))
}
