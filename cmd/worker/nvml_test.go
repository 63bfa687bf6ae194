//go:build cgo && linux

package main

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/omnivision/omnivision/worker/gpu/nvml/nvmltest"
)

// The whole program as it starts on GKE: no variable, a library, two GPUs.
func TestTheWorkerCountsTheXidsOfNVML(t *testing.T) {
	if !nvmltest.Inside() {
		nvmltest.Run(t, nvmltest.Library(t), "FAKE_NVML_SCRIPT=0:31,1:79")
		return
	}
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	logs, stdout := io.Pipe()
	exit := make(chan int, 1)
	go func() {
		args := []string{"--listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0", "--drain-delay=0"}
		exit <- run(ctx, args, env(nil), stdout, stdout, time.Now())
		stdout.Close()
	}()
	w := watcher{t: t}
	for decoder := json.NewDecoder(logs); ; {
		entry := map[string]any{}
		if err := decoder.Decode(&entry); err != nil {
			break // the program ended
		}
		if w.take(entry) {
			w.read()
			stop()
		}
	}
	if got := <-exit; got != exitOK {
		t.Errorf("exit %d, want 0", got)
	}
	for _, want := range []string{`omnivision_worker_cuda_errors_total{xid="31"} 1`, `omnivision_worker_cuda_errors_total{xid="79"} 1`, `omnivision_worker_cuda_errors_total{xid="13"} 0`, "omnivision_worker_gpus 2"} {
		if !strings.Contains(w.metrics, want+"\n") {
			t.Errorf("the metrics lack %s:\n%s", want, w.metrics)
		}
	}
}

// watcher follows the program's log until it serves and has counted Xid 79.
type watcher struct {
	t       *testing.T
	address string
	counted bool
	metrics string
}

// take says whether it is time to read the metrics.
func (w *watcher) take(entry map[string]any) bool {
	switch entry["msg"] {
	case "serving":
		w.address, _ = entry["metrics_listen"].(string)
	case "GPU error":
		w.counted = w.counted || entry["xid"] == 79.0
	default:
		return false
	}
	return w.counted && w.address != "" && w.metrics == ""
}

func (w *watcher) read() {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, "http://"+w.address+"/metrics", http.NoBody)
	if err != nil {
		w.t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		w.t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	w.metrics = string(body)
}
