//go:build !cgo || !linux

package nvml

func load() (library, error) { return nil, ErrNotBuiltIn }
