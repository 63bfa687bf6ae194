package main

import (
	"bytes"
	"strings"
	"testing"
)

func run(args ...string) (string, error) {
	cmd := newCommand()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(args)
	err := cmd.Execute()
	return out.String(), err
}

func TestHelpSaysThatItIsASubstitute(t *testing.T) {
	help, err := run("--help")
	if err != nil {
		t.Fatal(err)
	}
	for _, says := range []string{"substitute for NVIDIA's device plugin and dcgm-exporter", "simulated GPUs", "DP_DISABLE_HEALTHCHECKS"} {
		if !strings.Contains(help, says) {
			t.Errorf("the help does not say %q", says)
		}
	}
}

func TestMistakesAreNamed(t *testing.T) {
	t.Setenv("NODE_NAME", "")
	for _, c := range []struct {
		args []string
		says string
	}{
		{nil, "NODE_NAME"},
		{[]string{"--disable-healthchecks=79,eighty"}, `"eighty" is not an Xid`},
		{[]string{"extra"}, "unknown command"},
	} {
		if _, err := run(c.args...); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v: %v, want an error that says %q", c.args, err, c.says)
		}
	}
}
