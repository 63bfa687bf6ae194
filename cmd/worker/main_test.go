package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/omnivision/omnivision/worker/gpu"
	"github.com/omnivision/omnivision/worker/gpu/nvml"
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
		"no GPU":             {[]string{listen, metrics}, map[string]string{"NVIDIA_VISIBLE_DEVICES": "void"}, exitFailed, "--gpus=cpu"},
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

func TestDevicesAreThoseOfTheVariableAndElseThoseOfNVML(t *testing.T) {
	shows := func(devices ...string) func() ([]string, error) {
		return func() ([]string, error) { return devices, nil }
	}
	fails := func() ([]string, error) { return nil, errors.New("no libnvidia-ml.so.1") }
	for name, c := range map[string]struct {
		variable string
		visible  func() ([]string, error)
		want     string // the devices, or a part of the error
	}{
		"variable":           {"GPU-1", fails, "GPU-1"},
		"no variable, GKE":   {"", shows("GPU-7", "GPU-8"), "GPU-7,GPU-8"},
		"no variable, none":  {"", shows(), "--gpus=cpu"},
		"no variable, fails": {" ", fails, "no libnvidia-ml.so.1"},
		"an image's all":     {"all", shows("GPU-7"), "no device plugin does"},
		"void":               {"void", shows("GPU-7"), "--gpus=cpu"},
	} {
		t.Run(name, func(t *testing.T) {
			devices, err := options{gpus: "auto"}.devices(env(map[string]string{"NVIDIA_VISIBLE_DEVICES": c.variable}), c.visible)
			got := strings.Join(devices, ",")
			if err != nil {
				got = err.Error()
			}
			if (err == nil) != (got == c.want) || !strings.Contains(got, c.want) {
				t.Errorf("devices %q, error %v; want %q", devices, err, c.want)
			}
		})
	}
}

func TestTheXidDriverIsTheLogsElseNVMLsElseNone(t *testing.T) {
	opens := func(nvml.Config) (*nvml.Driver, error) { return &nvml.Driver{}, nil }
	fails := func(nvml.Config) (*nvml.Driver, error) { return nil, errors.New("no libnvidia-ml.so.1") }
	devices, started := []string{"GPU-1"}, time.Now()
	for name, c := range map[string]struct {
		gpus, log string
		open      func(nvml.Config) (*nvml.Driver, error)
		isLog     bool
		isReal    bool
		reason    string
	}{
		"log":                 {"auto", "/xids", fails, true, false, ""},
		"log goes before":     {"auto", "/xids", opens, true, false, ""},
		"NVML":                {"auto", "", opens, false, true, ""},
		"NVML cannot be used": {"auto", "", fails, false, false, "no libnvidia-ml.so.1"},
		"no GPU":              {"cpu", "/xids", opens, false, false, "--gpus=cpu"},
	} {
		t.Run(name, func(t *testing.T) {
			driver, err := options{gpus: c.gpus}.driver(env(map[string]string{gpu.XidLogVariable: c.log}), devices, started, nil, c.open)
			log, isLog := driver.(gpu.XidLog)
			_, isReal := driver.(*nvml.Driver)
			if isLog != c.isLog || isReal != c.isReal || (err == nil) != (driver != nil) {
				t.Fatalf("driver %T, error %v", driver, err)
			}
			if err != nil && !strings.Contains(err.Error(), c.reason) {
				t.Errorf("the reason is %v, want %q", err, c.reason)
			}
			if isLog && (log.Dir != c.log || log.Since != started || len(log.Devices) != 1) {
				t.Errorf("the log is %+v", log)
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
