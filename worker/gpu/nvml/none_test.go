//go:build !cgo || !linux

package nvml

import (
	"errors"
	"testing"
)

func TestABuildWithoutCgoSaysSo(t *testing.T) {
	if driver, err := Open(Config{}); !errors.Is(err, ErrNotBuiltIn) || driver != nil {
		t.Errorf("Open = %v, %v; want %v", driver, err, ErrNotBuiltIn)
	}
	if devices, err := Visible(); !errors.Is(err, ErrNotBuiltIn) || devices != nil {
		t.Errorf("Visible = %v, %v; want %v", devices, err, ErrNotBuiltIn)
	}
}
