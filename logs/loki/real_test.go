package loki_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/omnivision/omnivision/logs/loki"
	"github.com/omnivision/omnivision/logs/loki/lokitest"
	"github.com/omnivision/omnivision/shipper"
)

const limit = 2 * time.Minute

// The tree's configurations of both sides fit: what the sidecar ships is in Loki, with labels and structured metadata, a
// line of 1 MiB and binary garbage included, and is counted as delivered.
func TestShippedLinesAreInARealLoki(t *testing.T) {
	server := lokitest.Start(t, "../..")
	dir := t.TempDir()
	for _, d := range []string{"config", "logs/main"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	replacer := strings.NewReplacer("/var/log/pod", filepath.Join(dir, "logs"), "/var/lib/fluent-bit", filepath.Join(dir, "state"), "/fluent-bit/config", filepath.Join(dir, "config"),
		"loki.logging.svc", "127.0.0.1", "port    3100", "port    "+server.Port, "Http_Server    true", "Http_Server    false", "Flush    1", "Flush    0.1")
	for _, name := range []string{"parsers.conf", "parsers_multiline.conf", "fluent-bit.conf"} {
		text, err := os.ReadFile(filepath.Join("../../gate/logconfig/testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "config", name), []byte(replacer.Replace(string(text))), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, value := range map[string]string{"OMNIVISION_CLUSTER": "cluster-aws", "OMNIVISION_REGION": "us-west-2", "POD_NAMESPACE": "omnivision", "OMNIVISION_WORKLOAD": "worker", "OMNIVISION_VERSION": "1.4.0", "POD_NAME": "worker-0", "POD_UID": "uid", "NODE_NAME": "gpu-0"} {
		t.Setenv(name, value)
	}
	start := time.Now().Add(-time.Minute)
	at := start
	line := func(tag, text string) string {
		at = at.Add(time.Millisecond)
		return at.UTC().Format(time.RFC3339Nano) + " stderr " + tag + " " + text + "\n"
	}
	long := strings.Repeat("0123456789abcdef", 1<<16)
	var log strings.Builder
	const lines = 2000
	for i := range lines {
		log.WriteString(line("F", fmt.Sprintf(`{"n":%d,"level":"info"}`, i)))
	}
	log.WriteString(line("F", "\xff\x00garbage"))
	for part := range 64 {
		tag := "P"
		if part == 63 {
			tag = "F"
		}
		log.WriteString(line(tag, long[part<<14:(part+1)<<14]))
	}
	if err := os.WriteFile(filepath.Join(dir, "logs/main/0.log"), []byte(log.String()), 0o640); err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	ended := make(chan error, 1)
	shipping, stop := context.WithCancel(ctx)
	go func() {
		ended <- shipper.New(filepath.Join(dir, "config/fluent-bit.conf"), shipper.Options{}).Run(shipping)
	}()
	client := &loki.Client{URL: server.URL}
	var got []loki.Entry
	following, enough := context.WithCancel(ctx)
	defer enough()
	err := client.Follow(following, loki.Selector(map[string]string{"namespace": "omnivision", "container": "main"}), start, 200*time.Millisecond, 2*time.Minute, func(e loki.Entry) error {
		if got = append(got, e); len(got) == lines+2 {
			enough()
		}
		return nil
	})
	stop()
	if shipErr := <-ended; err != nil || shipErr != nil || len(got) != lines+2 {
		t.Fatalf("%d of %d entries; following: %v; shipping: %v", len(got), lines+2, err, shipErr)
	}
	if got[7].Line != `{"n":7,"level":"info"}` || got[lines].Line != "\ufffd\x00garbage" || got[lines+1].Line != long {
		t.Errorf("lines %q, %q, %d bytes", got[7].Line, got[lines].Line, len(got[lines+1].Line))
	}
	for name, value := range map[string]string{"cluster": "cluster-aws", "region": "us-west-2", "workload": "worker", "pod": "worker-0", "version": "1.4.0", "stream": "stderr", "node": "gpu-0", "restart": "0"} {
		if got[0].Labels[name] != value {
			t.Errorf("%s is %q, want %q: %v", name, got[0].Labels[name], value, got[0].Labels)
		}
	}
	found, err := client.Query(ctx, loki.Selector(map[string]string{"workload": "worker"})+` | json | n = 1234`, start, time.Now(), 10, true)
	if err != nil || len(found) != 1 {
		t.Errorf("the fields of JSON: %v, %v", found, err)
	}
	worker := loki.Source{Namespace: "omnivision", Pod: "worker-0", Container: "main"}
	if delivered, err := client.Delivered(ctx, "omnivision", 10*time.Minute); err != nil || !delivered[worker] || len(delivered) != 1 {
		t.Errorf("delivered are %v: %v", delivered, err)
	}
	// Its lines are a minute old.
	if delivered, err := client.Delivered(ctx, "omnivision", time.Second); err != nil || delivered[worker] {
		t.Errorf("delivered within the last second: %v, %v", delivered, err)
	}
	if latest, err := client.Latest(ctx, loki.Everything, start, time.Now(), lines); err != nil || len(latest) != lines || latest[lines-1].Line != long {
		t.Errorf("%d of the latest %d lines: %v", len(latest), lines, err)
	}
	for text, want := range map[string]int{`"n":777,`: 1, "\x00garbage": 1, "`": 0, `\`: 0, "\ufffd": 1, `" or "`: 0} {
		if found, err := client.Query(ctx, loki.Everything+loki.Containing(text), start, time.Now(), 10, true); err != nil || len(found) != want {
			t.Errorf("%q is in %d lines, want %d: %v", text, len(found), want, err)
		}
	}
}
