package notify

import (
	"errors"
	"net/url"
)

// unaddressed is an error without the address, which the HTTP client puts into it.
func unaddressed(err error) error {
	if e := new(url.Error); errors.As(err, &e) {
		return e.Err
	}
	return err
}
