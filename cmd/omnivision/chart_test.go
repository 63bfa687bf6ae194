package main

import (
	"encoding/json"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
)

func TestChartIsPublishedAndVerifies(t *testing.T) {
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(true)))
	t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "http://")
	dir := sourceCheckout(t)
	edit(t, filepath.Join(dir, "omnivision-gitops/fleet.yaml"), "ghcr.io/omnivision/charts", host+"/charts")
	must(t, os.CopyFS(filepath.Join(dir, "charts/omnivision-platform"), os.DirFS("../../charts/omnivision-platform")))
	commitAll(t, dir)
	private, public := keyPair(t)
	publish := []string{"chart", "publish", "--source", dir, "--evidence", t.TempDir(), "--key", private, "--plain-http", "--output", "json"}
	var first, second struct {
		Version string
		Stages  []struct {
			Stage  string
			Kept   bool
			Result json.RawMessage
		}
	}
	out, code, err := command(t, publish...)
	if code != 0 {
		t.Fatalf("exit code %d: %v\n%s", code, err, out)
	}
	must(t, json.Unmarshal([]byte(out[strings.Index(out, "{"):]), &first)) // after the progress
	out, _, err = command(t, publish...)
	must(t, err)
	must(t, json.Unmarshal([]byte(out[strings.Index(out, "{"):]), &second))
	if len(second.Stages) != 2 || !second.Stages[0].Kept || !second.Stages[1].Kept {
		t.Errorf("the second run says %s", out)
	}
	out, code, err = command(t, "verify", "--key", public, "--plain-http", host+"/charts/omnivision-platform:"+first.Version)
	if code != 0 || !strings.Contains(out, "signed by") || strings.Contains(out, "MISSING") {
		t.Errorf("exit code %d: %v\n%s", code, err, out)
	}
}

func TestChartIsNotPublishedByNobody(t *testing.T) {
	dir := sourceCheckout(t)
	if _, code, err := command(t, "chart", "publish", "--source", t.TempDir()); code != exitFailed || !strings.Contains(err.Error(), "no Git checkout") {
		t.Errorf("exit code %d: %v", code, err)
	}
	// The checkout has no chart.
	if _, code, err := command(t, "chart", "publish", "--source", dir, "--evidence", t.TempDir()); code != exitUsage || !strings.Contains(err.Error(), "charts/omnivision-platform") {
		t.Errorf("exit code %d: %v", code, err)
	}
}
