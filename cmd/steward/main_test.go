package main

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"
)

func TestTheStewardRefusesWhatItCannotDo(t *testing.T) {
	given := []string{"--cluster=cluster-aws", "--repository=https://git.example.com/o/r.git", "--token-file=token", "--lease-namespace=default"}
	for name, c := range map[string]struct {
		args []string
		exit int
		want string
	}{
		"no cluster":         {given[1:], exitUsage, "--cluster"},
		"no repository":      {append([]string{given[0]}, given[2:]...), exitUsage, "--repository"},
		"no credentials":     {[]string{given[0], given[1], given[3]}, exitUsage, "--token-file"},
		"two credentials":    {append(given, "--github-app=1"), exitUsage, "either"},
		"half an App":        {[]string{given[0], given[1], given[3], "--github-app=1"}, exitUsage, "--github-key-file"},
		"no namespace":       {given[:3], exitUsage, "--lease-namespace"},
		"an Xid that is one": {append(given, "--hardware-xids=46,x"), exitUsage, "is no Xid"},
		"argument":           {append(given, "run"), exitUsage, "--help"},
		"no such kubeconfig": {append(given, "--kubeconfig=/nonexistent"), exitFailed, "--kubeconfig"},
		"its version":        {[]string{"--version"}, exitOK, "steward "},
		"its help":           {[]string{"--help"}, exitOK, "--github-installation 678"},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if exit := run(ctx, c.args, func(string) string { return "" }, &out, &out); exit != c.exit || !strings.Contains(out.String(), c.want) {
				t.Errorf("exit %d with %s; want %d and %q", exit, out.String(), c.exit, c.want)
			}
		})
	}
}
