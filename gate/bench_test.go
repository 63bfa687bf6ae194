package gate_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
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

	"github.com/prometheus/client_golang/prometheus"
	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"

	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/gate"
	"github.com/omnivision/omnivision/gate/inject"
	"github.com/omnivision/omnivision/gate/server"
	"github.com/omnivision/omnivision/gate/webhook"
	"github.com/omnivision/omnivision/internal/freeport"
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

// Files of a role: who signs, and one that is there once it listens.
const (
	trustedRoot = "trusted_root.json"
	listening   = "listening"
)

// benchJudge is who judges in the benchmark: the gate's own Judge, which reads the registry of the benchmark.
func benchJudge(dir string, size int) (gate.Judge, error) {
	root, err := os.ReadFile(filepath.Join(dir, trustedRoot))
	if err != nil {
		return nil, err
	}
	return realJudge(root, size)
}

// emptyPair answers yes without looking: the least that a mutating and a validating webhook can cost. patch, if any,
// is what the mutating one answers: whoever changes a Pod has the API server apply a patch and read the Pod again,
// which the gate does to tags and not to digests.
func emptyPair(patch string) http.Handler {
	if patch != "" {
		patch = `,"patchType":"JSONPatch","patch":"` + base64.StdEncoding.EncodeToString([]byte(patch)) + `"`
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		_, rest, ok := strings.Cut(string(body), `"uid":"`)
		if uid, _, ended := strings.Cut(rest, `"`); err == nil && ok && ended {
			patch := patch
			if r.URL.Path != webhook.MutatePath {
				patch = ""
			}
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"uid":%q,"allowed":true%s}}`, uid, patch)
		}
	})
}

// pinsTwo changes the images of a Pod's two containers, as the gate does to tags.
func pinsTwo() string {
	image := "127.0.0.1:5000/omnivision-worker:1.4.0@" + digest
	return fmt.Sprintf(`[{"op":"replace","path":"/spec/containers/0/image","value":%q},{"op":"replace","path":"/spec/containers/1/image","value":%q}]`, image, image)
}

// samePatch gives every Pod the patch that the first one got: the least that a webhook can cost that changes a Pod as the
// injection does. What is left beyond an empty webhook is the API server's own work with the patch.
func samePatch(first http.Handler) http.Handler {
	var once sync.Once
	var before, after string // around the uid
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		_, rest, ok := strings.Cut(string(body), `"uid":"`)
		uid, _, ended := strings.Cut(rest, `"`)
		if err != nil || !ok || !ended {
			return
		}
		once.Do(func() {
			r.Body = io.NopCloser(bytes.NewReader(body))
			answer := httptest.NewRecorder()
			first.ServeHTTP(answer, r)
			before, after, _ = strings.Cut(answer.Body.String(), uid)
		})
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, before, uid, after)
	})
}

// The webhooks run in processes of their own, so that their CPU and memory can be told from the load's.
const (
	roleVariable    = "OMNIVISION_BENCH_ROLE"
	addressVariable = "OMNIVISION_BENCH_ADDRESS"
	filesVariable   = "OMNIVISION_BENCH_FILES"
	sidecarVariable = "OMNIVISION_BENCH_SIDECAR"
)

// remembered answers as the gate's cache does: without asking anybody.
type remembered struct{}

func (remembered) NamespaceLabels(context.Context, string) (map[string]string, error) {
	return map[string]string{inject.NamespaceLabel: inject.NamespaceEnabled, "pod-security.kubernetes.io/enforce": "restricted"}, nil
}
func (remembered) DriverInstalled(context.Context) (bool, error) { return true, nil }

func benchInjector(image string) (*inject.Injector, error) {
	config := inject.DefaultConfig()
	config.Image, config.Cluster, config.Region = image, "cluster-aws", "us-west-2"
	return inject.New(config, remembered{}, nil, prometheus.NewRegistry())
}

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
	handler := emptyPair("")
	if role == "patching" {
		handler = emptyPair(pinsTwo())
	}
	if size, gated := map[string]int{"gate": 0, "cold": coldSize, "injecting": 0, "ready": 0}[role]; gated {
		j, err := benchJudge(dir, size)
		if err != nil {
			return err
		}
		o := webhook.Options{Judge: j, Audit: slog.New(slog.NewJSONHandler(os.Stdout, nil))}
		if role == "injecting" || role == "ready" {
			injector, err := benchInjector(os.Getenv(sidecarVariable))
			if err != nil {
				return err
			}
			o.Injectors = []webhook.Mutator{injector}
		}
		if handler = webhook.New(o).Handler(); role == "ready" {
			handler = samePatch(handler)
		}
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"))
	if err != nil {
		return err
	}
	listener, err := server.ListenShared(context.Background(), os.Getenv(addressVariable))
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, listening), nil, 0o600); err != nil {
		return err
	}
	go func() { // ends with the benchmark, whose end of the pipe closes
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	mux := http.NewServeMux()
	mux.Handle("/", handler)
	mux.HandleFunc("/readyz", func(http.ResponseWriter, *http.Request) {}) // for the front
	s := &http.Server{Handler: mux, IdleTimeout: 3 * time.Minute}
	return s.Serve(tls.NewListener(listener, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}}))
}

// scenario is a row of the table. The Pod's label chooses which webhooks it passes.
type scenario struct {
	name, label string
	images      func(i int64) []string
	process     *process
	injects     bool

	p50, p99 []time.Duration // of each round
	rate     []float64
	cpu      time.Duration
	creates  int64
	failed   atomic.Int64 // on a machine that is too busy webhooks run into their timeout
}

const (
	warm       = 900 * time.Millisecond
	openRate   = 100 // a second
	closedWith = 50
)

// coldRounds are fewer: verifications keep the machine busy for longer than their turn, and nothing is demanded of them.
const coldRounds = 3

// Rounds are many and short: what else the machine does falls on a few of them, and the median leaves those out.
// With -short it is seen to run; its figures are for nobody.
var (
	rounds    = 9
	openFor   = 1500 * time.Millisecond
	closedFor = time.Second
)

// BenchmarkAdmission measures dry-run creates of Pods on one real API server in one run: an open loop, which
// shows latency as a controller would see it, and a closed loop, which shows throughput. The scenarios take
// turns, and are compared with each other round by round.
func BenchmarkAdmission(b *testing.B) {
	if os.Getenv("OMNIVISION_ENGINES") == "" {
		b.Skip("OMNIVISION_ENGINES is not set: there is no API server to measure (make engines)")
	}
	if testing.Short() {
		rounds, openFor, closedFor = 1, time.Second, time.Second
	}
	config := apiservertest.Start(b).Config
	config.QPS = -1
	client, err := kubernetes.NewForConfig(config)
	check(b, err)
	createLogged(b, client)
	authority, err := ca.LoadOrCreate(b.TempDir())
	check(b, err)
	site := newSite(b)
	releases := make([]string, coldImages)
	for i := range releases {
		releases[i] = site.release(b, fmt.Sprintf("1.4.%d", i))
	}
	byDigest, byTag := releases[0], site.repository.Tag("1.4.0").String()
	roles := map[string]*process{}
	for _, role := range []string{"empty", "patching", "gate", "cold", "injecting", "ready"} {
		roles[role] = startRole(b, role, authority, site.root, releases[1])
	}
	pair := hooks{pin: true, validate: true}
	register(b, client, "empty", roles["empty"], authority, pair)
	register(b, client, "patching", roles["patching"], authority, pair)
	register(b, client, "empty-mutating", roles["empty"], authority, hooks{inject: true})
	pair.conditions = true
	register(b, client, "gate", roles["gate"], authority, pair)
	register(b, client, "cold", roles["cold"], authority, pair)
	register(b, client, "injection", roles["injecting"], authority, hooks{inject: true})
	register(b, client, "ready", roles["ready"], authority, hooks{inject: true})
	register(b, client, "injecting", roles["injecting"], authority, hooks{inject: true, pin: true, validate: true, conditions: true})
	same := func(image string) func(int64) []string { return func(int64) []string { return []string{image, image} } }
	all := []*scenario{
		{name: "no webhook", label: "none", images: same(byDigest)},
		{name: "empty pair", label: "empty", images: same(byDigest), process: roles["empty"]},
		{name: "empty pair, patching", label: "patching", images: same(byTag), process: roles["patching"]},
		{name: "gate, digests, cached", label: "gate", images: same(byDigest), process: roles["gate"]},
		{name: "gate, tags, cached", label: "gate", images: same(byTag), process: roles["gate"]},
		{name: "gate, digests, cold", label: "cold", images: func(i int64) []string { return []string{releases[i%coldImages]} }, process: roles["cold"]},
		{name: "gate with injection", label: "injecting", images: same(byDigest), process: roles["injecting"], injects: true},
		{name: "empty mutating", label: "empty-mutating", images: same(byDigest), process: roles["empty"]},
		{name: "the same patch, ready", label: "ready", images: same(byDigest), process: roles["ready"], injects: true},
		{name: "injection alone", label: "injection", images: same(byDigest), process: roles["injecting"], injects: true},
	}
	for _, s := range all {
		s.closed(b, client, warm)
	}
	for i := range rounds {
		turn := slices.Clone(all)
		if i%2 > 0 { // what one leaves behind does not always fall on the same other one
			slices.Reverse(turn)
		}
		for _, s := range turn {
			if s.label == "cold" && i >= coldRounds {
				continue
			}
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
	created, err := client.CoreV1().Pods(apps).Create(context.Background(), p, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err == nil && hasSidecar(created) != s.injects {
		err = fmt.Errorf("a Pod has a sidecar: %t, want %t", !s.injects, s.injects)
	}
	return err
}

func hasSidecar(p *corev1.Pod) bool {
	return len(p.Spec.InitContainers) > 0 && p.Spec.InitContainers[0].Name == inject.ContainerName
}

// createLogged makes the applications' namespace, with logging enabled.
func createLogged(t testing.TB, client kubernetes.Interface) {
	t.Helper()
	_, err := client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: apps, Labels: map[string]string{inject.NamespaceLabel: inject.NamespaceEnabled}}}, metav1.CreateOptions{})
	check(t, err)
}

// BenchmarkInjection is what the gate itself has to do for one Pod, without an API server.
func BenchmarkInjection(b *testing.B) {
	image := "ghcr.io/omnivision/worker:1@" + digest
	injector, err := benchInjector(image)
	check(b, err)
	p := pod(apps, "bench", image, image)
	p.Labels = map[string]string{"app.kubernetes.io/name": "worker", "app.kubernetes.io/part-of": "platform"}
	for c := range p.Spec.Containers {
		p.Spec.Containers[c].Env = []corev1.EnvVar{{Name: "OMNIVISION_CLUSTER", Value: "cluster-aws"}, {Name: "OMNIVISION_REGION", Value: "us-west-2"}}
		p.Spec.Containers[c].Args = []string{"--listen=:8080", "--metrics-listen=:9090"}
	}
	object, err := json.Marshal(p)
	check(b, err)
	pods := metav1.GroupVersionResource{Version: "v1", Resource: "pods"}
	kind := metav1.GroupVersionKind{Version: "v1", Kind: "Pod"}
	review, err := json.Marshal(admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"},
		Request:  &admissionv1.AdmissionRequest{UID: "u", Kind: kind, Resource: pods, Namespace: apps, Operation: admissionv1.Create, Object: runtime.RawExtension{Raw: object}},
	})
	check(b, err)
	h := webhook.New(webhook.Options{Judge: judge{}, Injectors: []webhook.Mutator{injector}, Audit: slog.New(slog.NewJSONHandler(io.Discard, nil))}).Handler()
	b.ReportAllocs()
	for b.Loop() {
		r := httptest.NewRequestWithContext(b.Context(), http.MethodPost, webhook.InjectPath+"?timeout=5s", bytes.NewReader(review))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		if h.ServeHTTP(w, r); !strings.Contains(w.Body.String(), `"patch"`) {
			b.Fatalf("no sidecar: %s", w.Body)
		}
	}
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

// Demands on the gate with cached digests; the first is also the injection's, against an empty mutating webhook.
const (
	maxAddedRatio = 1.3                   // of p50 added, to what the empty one adds
	maxAddedP99   = 10 * time.Millisecond // more than without a webhook
	minRateRatio  = 0.8                   // of the empty pair's throughput
)

func printTable(b *testing.B, all []*scenario) {
	none, empty := all[0], all[1]
	var table strings.Builder
	fmt.Fprintf(&table, "\n%-24s %9s %9s %11s %13s %11s %11s %10s %10s %9s %8s %7s\n", "", "p50", "p99", "p50 added", "half of it", "p99 added", "x empty p50", "creates/s", "x empty", "CPU/create", "RSS", "failed")
	for _, s := range all {
		low, high := quartiles(differences(s.p50, none.p50))
		fmt.Fprintf(&table, "%-24s %9s %9s %11s %13s %11s %11.2f %10.0f %10.2f %9s %8s %7d\n", s.name, ms(median(s.p50)), ms(median(s.p99)), ms(added(s.p50, none.p50)), ms(low)+"-"+ms(high),
			ms(added(s.p99, none.p99)), ratio(s, empty, none), median(s.rate), rateRatio(s, empty), (s.cpu / time.Duration(s.creates)).Round(time.Microsecond), s.process.rss(), s.failed.Load())
	}
	for i, s := range all[3:5] {
		// The peer has the API server do the same: of a Pod with tags, which is changed, it is the pair that changes one.
		empty := all[1+i]
		ratio, added, rate := ratio(s, empty, none), added(s.p99, none.p99), rateRatio(s, empty)
		fmt.Fprintf(&table, "%s: p50 added %.2f times what the %s adds (at most %.1f: %s), p99 added %s (below %s: %s), throughput %.0f %% (at least %.0f %%: %s)\n", s.name,
			ratio, empty.name, maxAddedRatio, met(ratio <= maxAddedRatio), ms(added), ms(maxAddedP99), met(added < maxAddedP99), 100*rate, 100*minRateRatio, met(rate >= minRateRatio))
		key := strings.NewReplacer(" ", "-", ",", "").Replace(s.name)
		b.ReportMetric(ratio, key+"-p50-x-empty")
		b.ReportMetric(rate, key+"-rate-x-empty")
	}
	printInjection(b, &table, none, all[7], all[8], all[9])
	if low, high := quartiles(differences(empty.p50, none.p50)); high-low > added(empty.p50, none.p50) {
		fmt.Fprintln(&table, "The rounds differ by more than what is measured: this machine has other work, and its latencies are not worth reading.")
	}
	fmt.Print(table.String()) // a benchmark's log is cut after ten lines
}

// printInjection compares the injection by itself with a mutating webhook that does nothing.
func printInjection(b *testing.B, table io.Writer, none, empty, ready, injection *scenario) {
	p50 := func(s *scenario) string { return ms(added(s.p50, none.p50)) }
	x := ratio(injection, empty, none)
	fmt.Fprintf(table, "%s: p50 added %s, %.2f times the %s webhook's %s (at most %.1f: %s); %s adds %s\n", injection.name, p50(injection), x, empty.name, p50(empty), maxAddedRatio, met(x <= maxAddedRatio), ready.name, p50(ready))
	b.ReportMetric(x, "injection-p50-x-empty-mutating")
	b.ReportMetric(ratio(injection, ready, none), "injection-p50-x-same-patch")
}

// differences are those of two scenarios, round by round: the machine is seldom the same for long.
func differences(of, than []time.Duration) []time.Duration {
	all := make([]time.Duration, len(of))
	for i := range of {
		all[i] = of[i] - than[i]
	}
	return all
}

func added(of, than []time.Duration) time.Duration { return median(differences(of, than)) }

// ratio is how many times what another scenario adds to the p50 one adds; no number, which meets no demand, where the other
// one adds nothing that could be measured.
func ratio(of, than, none *scenario) float64 {
	base := added(than.p50, none.p50)
	if base <= 0 {
		return math.NaN()
	}
	return float64(added(of.p50, none.p50)) / float64(base)
}

func rateRatio(of, than *scenario) float64 {
	all := make([]float64, len(of.rate))
	for i := range of.rate {
		all[i] = of.rate[i] / than.rate[i]
	}
	return median(all)
}

// quartiles are the values between which half of all are.
func quartiles(values []time.Duration) (low, high time.Duration) {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/4], sorted[len(sorted)*3/4]
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

func startRole(b testing.TB, role string, authority *ca.Authority, root []byte, sidecar string) *process {
	b.Helper()
	return startRoleAt(b, freeport.Address(b), role, authority, root, sidecar)
}

// startRoleAt starts a process at an address that others of this test may have as well.
func startRoleAt(b testing.TB, address, role string, authority *ca.Authority, root []byte, sidecar string) *process {
	b.Helper()
	dir := b.TempDir()
	check(b, os.WriteFile(filepath.Join(dir, trustedRoot), root, 0o600))
	_, err := authority.IssueFiles(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"), ca.Request{CommonName: role, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}})
	check(b, err)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleVariable+"="+role, addressVariable+"="+address, filesVariable+"="+dir, sidecarVariable+"="+sidecar)
	log, err := os.Create(filepath.Join(dir, "audit.log"))
	check(b, err)
	cmd.Stdout, cmd.Stderr = log, os.Stderr
	stdin, err := cmd.StdinPipe()
	check(b, err)
	check(b, cmd.Start())
	b.Cleanup(func() { stdin.Close(); _ = cmd.Wait(); log.Close() })
	until(b, role+" does not listen", func() bool {
		_, err := os.Stat(filepath.Join(dir, listening))
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

// hooks are which of the gate's webhooks a label's Pods pass, and whether by the tree's conditions.
type hooks struct{ inject, pin, validate, conditions bool }

// register adds webhooks for Pods with a label. They are those of the tree, at a process's address.
func register(b testing.TB, client kubernetes.Interface, label string, to *process, authority *ca.Authority, h hooks) {
	b.Helper()
	injecting, pin, validate := treeWebhooks(b)
	at := func(p string) admissionregistrationv1.WebhookClientConfig {
		url := "https://" + to.address + p
		return admissionregistrationv1.WebhookClientConfig{URL: &url, CABundle: authority.CertPEM()}
	}
	selector := &metav1.LabelSelector{MatchLabels: map[string]string{"bench": label}}
	injecting.Name, injecting.ClientConfig, injecting.ObjectSelector = label+".inject.example.com", at(webhook.InjectPath), selector
	pin.Name, pin.ClientConfig, pin.ObjectSelector = label+".mutate.example.com", at(webhook.MutatePath), selector
	validate.Name, validate.ClientConfig, validate.ObjectSelector = label+".validate.example.com", at(webhook.ValidatePath), selector
	if !h.conditions {
		pin.MatchConditions, validate.MatchConditions = nil, nil
	}
	mutating := &admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: label}}
	if h.inject {
		mutating.Webhooks = append(mutating.Webhooks, injecting)
	}
	if h.pin {
		mutating.Webhooks = append(mutating.Webhooks, pin)
	}
	_, err := client.AdmissionregistrationV1().MutatingWebhookConfigurations().Create(b.Context(), mutating, metav1.CreateOptions{})
	check(b, err)
	if h.validate {
		_, err := client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Create(b.Context(), &admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: label}, Webhooks: []admissionregistrationv1.ValidatingWebhook{validate}}, metav1.CreateOptions{})
		check(b, err)
	}
}

// treeWebhooks are the injecting, the pinning and the judging webhook as clusters get them.
func treeWebhooks(b testing.TB) (injecting, pin admissionregistrationv1.MutatingWebhook, validate admissionregistrationv1.ValidatingWebhook) {
	objects, err := fleet.RenderSource(os.DirFS("../omnivision-gitops"), fleet.Source{Path: "components/gate/manifests"}, system)
	check(b, err)
	for _, o := range objects {
		switch o.GetKind() {
		case "MutatingWebhookConfiguration":
			var c admissionregistrationv1.MutatingWebhookConfiguration
			typed(b, o, &c)
			injecting, pin = c.Webhooks[0], c.Webhooks[len(c.Webhooks)-1]
		case "ValidatingWebhookConfiguration":
			var c admissionregistrationv1.ValidatingWebhookConfiguration
			typed(b, o, &c)
			validate = c.Webhooks[0]
		}
	}
	return injecting, pin, validate
}

func typed(b testing.TB, o *unstructured.Unstructured, into any) {
	check(b, runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, into))
}
