package admission

import (
	"encoding/json"
	"io"
	"io/fs"
	"log"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/omnivision/omnivision/conveyor/scan"
	"github.com/omnivision/omnivision/conveyor/sign"
	"github.com/omnivision/omnivision/conveyor/sign/signtest"
	"github.com/omnivision/omnivision/fleet"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// site is two clusters, each with its registry, that run one image.
type site struct {
	t       *testing.T
	checker Checker
	signer  *sign.Signer
	repos   []name.Repository // of the worker, by cluster
	index   v1.ImageIndex
	digests []string // index, then its images
	files   fstest.MapFS
}

func newSite(t *testing.T) *site {
	t.Helper()
	private, _ := signtest.Key(t)
	signer, err := sign.WithKey(private)
	check(t, err)
	s := &site{t: t, signer: signer, files: fstest.MapFS{}}
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(true)))
	t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "http://")
	tree := os.DirFS("../../omnivision-gitops")
	file, err := fs.ReadFile(tree, fleet.File)
	check(t, err)
	s.files[fleet.File] = &fstest.MapFile{Data: []byte(strings.NewReplacer(
		"123456789012.dkr.ecr.us-west-2.amazonaws.com", host+"/aws", "europe-west1-docker.pkg.dev", host+"/gcp").Replace(string(file)))}
	described, err := fleet.Load(s.files)
	check(t, err)
	s.index, err = random.Index(20, 1, 2)
	check(t, err)
	s.digests = digestsOf(t, s.index)
	for _, cluster := range described.Clusters {
		repository, err := name.NewRepository(cluster.ImageRegistry+"/omnivision-worker", name.Insecure)
		check(t, err)
		check(t, remote.WriteIndex(repository.Tag("0.1.0-57"), s.index))
		s.repos = append(s.repos, repository)
		s.release(cluster.Name, s.digests[0])
	}
	s.checker = Checker{Tree: s.files, Fleet: described, Policy: signer.Policy(), Insecure: true, Now: time.Now()}
	return s
}

func digestsOf(t *testing.T, index v1.ImageIndex) []string {
	t.Helper()
	digest, err := index.Digest()
	check(t, err)
	manifest, err := index.IndexManifest()
	check(t, err)
	digests := []string{digest.String()}
	for _, m := range manifest.Manifests {
		digests = append(digests, m.Digest.String())
	}
	return digests
}

// release makes Git name an image in a cluster.
func (s *site) release(cluster, digest string) {
	tag := "0.1.0-57"
	s.files["apps/omnivision-worker/"+cluster+".yaml"] = &fstest.MapFile{Data: []byte("aiWorker:\n  tag: \"" + tag + "\"\n  digest: \"" + digest + "\"\n")}
}

// sign states of the image what the conveyor does, with a scan that found something.
func (s *site) sign(report string) {
	s.t.Helper()
	begin := time.Date(2026, 11, 24, 10, 0, 0, 0, time.UTC)
	request := sign.Request{
		Digest: s.digests[0], Version: "0.1.0-57", Repositories: s.repos,
		Origin: sign.Origin{Source: "https://github.com/omnivision/omnivision", Commit: strings.Repeat("ab", 20), Dockerfile: "cmd/worker/Dockerfile"},
	}
	for _, digest := range s.digests[1:] {
		request.Platforms = append(request.Platforms, sign.Platform{
			Platform: "linux/amd64", Digest: digest, SBOM: json.RawMessage(`{"bomFormat":"CycloneDX"}`),
			Scan: sign.ScanResult{Scanner: "trivy 0.68.0", DatabaseVersion: "2", DatabaseUpdated: begin, Scanned: begin, Result: json.RawMessage(report)},
		})
	}
	_, err := sign.Publish(s.t.Context(), s.signer, request, func(string) {})
	check(s.t, err)
}

// want fails unless each cluster says what is wanted: + and - are for admitted and
// refused, followed by a part of a reason.
func (s *site) want(image name.Digest, wants ...string) {
	s.t.Helper()
	verdicts, err := s.checker.Image(s.t.Context(), image)
	check(s.t, err)
	if len(verdicts) != len(wants) {
		s.t.Fatalf("%d clusters spoke, want %d", len(verdicts), len(wants))
	}
	for i, want := range wants {
		v := verdicts[i]
		if v.Admit != strings.HasPrefix(want, "+") || !strings.Contains(strings.Join(v.Reasons, "; "), want[1:]) {
			s.t.Errorf("%s of %s: %v, want %s", v.Cluster, image, v, want)
		}
	}
}

const (
	clean      = `{"SchemaVersion":2}`
	vulnerable = `{"SchemaVersion":2,"Results":[{"Vulnerabilities":[{"VulnerabilityID":"CVE-2026-1","PkgName":"x","Severity":"HIGH"},{"VulnerabilityID":"CVE-2026-2","PkgName":"x","Severity":"LOW"}]}]}`
)

func TestClusterAdmitsWhatGitNamesInItsOwnRegistry(t *testing.T) {
	s := newSite(t)
	s.sign(clean)
	s.want(s.repos[0].Digest(s.digests[0]), "+Git names it as 0.1.0-57; signed by key", "-holds no app of this cluster")
	s.want(s.repos[1].Digest(s.digests[0]), "-holds no app of this cluster", "+Git names it as 0.1.0-57")
	for _, platform := range s.digests[1:] {
		s.want(s.repos[0].Digest(platform), "+it is of the index that Git names as 0.1.0-57", "-holds no app")
	}
}

// An old image is still signed (P32).
func TestClusterRefusesWhatGitDoesNotName(t *testing.T) {
	s := newSite(t)
	s.sign(clean)
	s.release("cluster-aws", "sha256:"+strings.Repeat("1", 64))
	s.want(s.repos[0].Digest(s.digests[0]), "-which cannot be read", "-holds no app")
	other, err := random.Index(20, 1, 2)
	check(t, err)
	check(t, remote.WriteIndex(s.repos[0].Tag("0.1.0-58"), other))
	s.release("cluster-aws", digestsOf(t, other)[0])
	s.want(s.repos[0].Digest(s.digests[0]), "-Git names 0.1.0-57, "+digestsOf(t, other)[0], "-holds no app")
	s.want(s.repos[0].Digest(s.digests[1]), "-Git names 0.1.0-57", "-holds no app")
	s.release("cluster-aws", "")
	s.want(s.repos[0].Digest(s.digests[0]), "-Git names no release", "-holds no app")
	delete(s.files, "apps/omnivision-worker/cluster-aws.yaml")
	s.want(s.repos[0].Digest(s.digests[0]), "-cannot be read", "-holds no app")
}

func TestClusterRefusesWhatTheTrustedSignerDidNotSign(t *testing.T) {
	s := newSite(t)
	s.want(s.repos[0].Digest(s.digests[0]), "-no signature by key", "-no signature by key")
	s.sign(clean)
	private, _ := signtest.Key(t)
	stranger, err := sign.WithKey(private)
	check(t, err)
	s.checker.Policy = stranger.Policy()
	s.want(s.repos[0].Digest(s.digests[1]), "-no scan by key", "-no scan by key")
	s.checker.Distrust = "nobody is trusted"
	s.want(s.repos[0].Digest(s.digests[0]), "-nobody is trusted", "-nobody is trusted")
}

// One image of an index without a scan is enough: a node may run it (P35).
func TestClusterRefusesAnIndexWithAnImageThatIsNotSigned(t *testing.T) {
	s := newSite(t)
	all := s.digests
	s.digests = all[:2]
	s.sign(clean)
	s.want(s.repos[0].Digest(all[0]), "-its image "+short(all[2])+": no signature", "-holds no app")
	s.want(s.repos[0].Digest(all[1]), "+it is of the index", "-holds no app")
}

func TestClusterRefusesWhatItsScanStops(t *testing.T) {
	s := newSite(t)
	s.sign(vulnerable)
	image := s.repos[0].Digest(s.digests[1])
	s.want(image, "-its scan found HIGH CVE-2026-1, for which no exception is given", "-holds no app")
	s.checker.Exceptions = scan.Exceptions{{ID: "CVE-2026-1", Package: "x", App: "omnivision-worker", Reason: "not reachable", Expires: "2026-12-31"}}
	s.checker.Now = time.Date(2026, 12, 31, 12, 0, 0, 0, time.UTC)
	s.want(image, "+a scan that stops no release", "-holds no app")
	s.checker.Now = s.checker.Now.AddDate(0, 0, 1)
	s.want(image, "-CVE-2026-1", "-holds no app")
}

func TestRegistryThatIsAwayIsNoVerdict(t *testing.T) {
	s := newSite(t)
	s.checker.Registry = []remote.Option{remote.WithRetryPredicate(func(error) bool { return false })}
	nowhere, err := name.NewDigest("127.0.0.1:1/omnivision-worker@"+s.digests[0], name.Insecure)
	check(t, err)
	if verdicts, err := s.checker.Image(t.Context(), nowhere); err == nil {
		t.Errorf("verdicts are %+v", verdicts)
	}
}
