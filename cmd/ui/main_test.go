package main

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"
)

func env(vars map[string]string) func(string) string {
	return func(name string) string { return vars[name] }
}

func TestTheUIRefusesWhatItCannotDo(t *testing.T) {
	const listen, metrics = "--listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0"
	worker := map[string]string{"OMNIVISION_WORKER_URL": "http://worker:8080"}
	cases := map[string]struct {
		args []string
		env  map[string]string
		exit int
		want string // in its output: the next step
	}{
		"no worker":        {[]string{listen, metrics}, nil, exitFailed, "OMNIVISION_WORKER_URL"},
		"no URL":           {[]string{listen, metrics, "--worker-url=http://a b"}, nil, exitFailed, "--worker-url"},
		"malformed digest": {[]string{listen, metrics, "--image-digest=latest"}, worker, exitFailed, "sha256:"},
		"address":          {[]string{"--listen=127.0.0.1:99999", metrics}, worker, exitFailed, "--listen"},
		"unknown flag":     {[]string{"--port=80"}, worker, exitUsage, "-listen"},
		"argument":         {[]string{"serve"}, worker, exitUsage, "--help"},
		"only its version": {[]string{"--version"}, nil, exitOK, "ui "},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			if exit := run(ctx, c.args, env(c.env), &out, &out); exit != c.exit || !strings.Contains(out.String(), c.want) || ctx.Err() != nil {
				t.Errorf("exit %d with %s; want %d and %q", exit, out.String(), c.exit, c.want)
			}
		})
	}
}

func TestTheUIServesUntilItIsToldToStop(t *testing.T) {
	var out, stderr bytes.Buffer
	ctx, stop := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer stop()
	exit := run(ctx, []string{"--listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0", "--drain-delay=0"},
		env(map[string]string{"OMNIVISION_WORKER_URL": "http://worker:8080"}), &out, &stderr)
	if exit != exitOK || !strings.Contains(out.String(), `"msg":"drained"`) {
		t.Errorf("exit %d with %s, want 0 after a drain", exit, out.String())
	}
}
