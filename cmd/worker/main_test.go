package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func env(vars map[string]string) func(string) string {
	return func(name string) string { return vars[name] }
}

func TestTheWorkerRefusesWhatItCannotDo(t *testing.T) {
	const listen, metrics = "--listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0"
	cases := map[string]struct {
		args []string
		env  map[string]string
		exit int
		want string // in its output: the next step
	}{
		"no GPU":             {[]string{listen, metrics}, nil, exitFailed, "--gpus=cpu"},
		"an image's all":     {[]string{listen, metrics}, map[string]string{"NVIDIA_VISIBLE_DEVICES": "all"}, exitFailed, "--gpus=cpu"},
		"no Xid directory":   {[]string{listen, metrics}, map[string]string{"NVIDIA_VISIBLE_DEVICES": "GPU-1", "OMNIVISION_GPU_XID_LOG": "/nonexistent"}, exitFailed, "device plugin"},
		"malformed digest":   {[]string{listen, metrics, "--gpus=cpu"}, map[string]string{"OMNIVISION_IMAGE_DIGEST": "latest"}, exitFailed, "sha256:"},
		"address is taken":   {[]string{"--listen=127.0.0.1:99999", "--gpus=cpu"}, nil, exitFailed, "--listen"},
		"unknown gpus":       {[]string{"--gpus=amd"}, nil, exitUsage, "auto or cpu"},
		"no slots":           {[]string{"--gpus=cpu", "--cpu-slots=0"}, nil, exitUsage, "at least 1"},
		"unknown flag":       {[]string{"--port=80"}, nil, exitUsage, "-listen"},
		"argument":           {[]string{"serve"}, nil, exitUsage, "--help"},
		"only its version":   {[]string{"--version"}, nil, exitOK, "worker "},
		"only its own usage": {[]string{"--help"}, nil, exitOK, "-drain-timeout"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			exit := run(ctx, c.args, env(c.env), &out, &out, time.Now())
			if exit != c.exit || !strings.Contains(out.String(), c.want) || ctx.Err() != nil {
				t.Errorf("exit %d with %s; want %d and %q", exit, out.String(), c.exit, c.want)
			}
		})
	}
}

func TestTheWorkerServesAndLogsJSON(t *testing.T) {
	dir := t.TempDir()
	event := `{"time":"` + time.Now().Add(time.Hour).Format(time.RFC3339Nano) + `","uuid":"GPU-1","xid":31}` + "\n"
	if err := os.WriteFile(filepath.Join(dir, "GPU-1.jsonl"), []byte(event), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, stderr bytes.Buffer
	ctx, stop := context.WithTimeout(t.Context(), time.Second)
	defer stop()
	exit := run(ctx, []string{"--listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0", "--drain-delay=0"}, env(map[string]string{
		"NVIDIA_VISIBLE_DEVICES": "GPU-1", "OMNIVISION_GPU_XID_LOG": dir, "OMNIVISION_CLUSTER": "cluster-aws", "OMNIVISION_REGION": "us-west-2",
	}), &out, &stderr, time.Now())
	if exit != exitOK || stderr.Len() > 0 {
		t.Errorf("exit %d, stderr %q; want 0 and nothing", exit, stderr.String())
	}
	messages := map[string]map[string]any{}
	for line := range strings.Lines(out.String()) {
		var entry map[string]any
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Fatalf("%q is not JSON: %v", line, err)
		}
		messages[entry["msg"].(string)] = entry
	}
	if messages["starting"]["cluster"] != "cluster-aws" || messages["GPU error"]["xid"] != 31.0 || messages["drained"] == nil {
		t.Errorf("the log lacks a start in cluster-aws, the Xid 31 or the drain:\n%s", out.String())
	}
}
