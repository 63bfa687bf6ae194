package main

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"strings"
	"testing"
)

func TestArgumentsAreThoseOfASidecarsFluentBit(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), []string{"-h"}, &out); !errors.Is(err, flag.ErrHelp) || !strings.Contains(out.String(), "/fluent-bit/config/fluent-bit.conf") {
		t.Errorf("%v\n%s", err, out.String())
	}
	if err := run(t.Context(), []string{"-c", "nowhere.conf"}, &out); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v", err)
	}
	if err := run(t.Context(), []string{"more"}, &out); err == nil {
		t.Error("an argument too many is taken")
	}
}
