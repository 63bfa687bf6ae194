package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	clientTimeout = 10 * time.Second
	// maxSocketPath is what the address of a unix socket holds on Linux.
	maxSocketPath = 107
)

// Client speaks to the gpu-substitute of one node.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient makes a client for the control socket at path.
func NewClient(path string) *Client {
	return &Client{socket: path, http: &http.Client{Timeout: clientTimeout, Transport: &http.Transport{
		DisableKeepAlives: true, // one request a command; a connection that idles would keep the server's shutdown waiting
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dial(ctx, path)
		},
	}}}
}

// dial reaches a socket whose path is too long for an address by way of its open directory.
func dial(ctx context.Context, path string) (net.Conn, error) {
	address := path
	if len(path) > maxSocketPath {
		dir, err := os.Open(filepath.Dir(path))
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		address = fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path))
	}
	return (&net.Dialer{}).DialContext(ctx, "unix", address)
}

// ParseTarget reads what a user types for a device: an index, a UUID, or "all" for a reset.
func ParseTarget(text string) (Target, error) {
	target := Target{}
	switch index, err := strconv.Atoi(text); {
	case text == "all":
		target.All = true
	case err == nil:
		target.Index = &index
	case strings.HasPrefix(text, "GPU-"):
		target.UUID = text
	default:
		return Target{}, fmt.Errorf("%q names no GPU: give an index such as 0, or a UUID such as GPU-…", text)
	}
	return target, target.check()
}

// Devices lists the node's devices.
func (c *Client) Devices(ctx context.Context) (DeviceList, error) {
	var list DeviceList
	err := c.call(ctx, "listing the simulated GPUs", http.MethodGet, "/v1/devices", nil, &list)
	return list, err
}

// RaiseXid lets a device report an Xid. When it returns, the event is in the device's log.
func (c *Client) RaiseXid(ctx context.Context, target Target, xid int) (XidResult, error) {
	var result XidResult
	err := c.call(ctx, fmt.Sprintf("raising Xid %d", xid), http.MethodPost, "/v1/xid", XidRequest{Target: target, Xid: xid}, &result)
	return result, err
}

// Reset makes the devices healthy again.
func (c *Client) Reset(ctx context.Context, target Target) (DeviceList, error) {
	var list DeviceList
	err := c.call(ctx, "resetting simulated GPUs", http.MethodPost, "/v1/reset", target, &list)
	return list, err
}

func (c *Client) call(ctx context.Context, doing, method, path string, body, into any) error {
	var content []byte
	if body != nil {
		var err error
		if content, err = json.Marshal(body); err != nil {
			return fmt.Errorf("%s: %w", doing, err)
		}
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://gpu-substitute"+path, bytes.NewReader(content))
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return c.explain(doing, err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("%s: reading the answer of %s: %w", doing, c.socket, err)
	}
	if response.StatusCode != http.StatusOK {
		var refused errorBody
		if json.Unmarshal(answer, &refused) != nil || refused.Error == nil {
			return fmt.Errorf("%s: %s answered %s with %.200q, which is not a gpu-substitute's answer", doing, c.socket, response.Status, answer)
		}
		refused.Error.Status = response.StatusCode
		return fmt.Errorf("%s: %w", doing, refused.Error)
	}
	if err := json.Unmarshal(answer, into); err != nil {
		return fmt.Errorf("%s: reading the answer of %s: %w", doing, c.socket, err)
	}
	return nil
}

// explain says why nobody answered: the user knows a node, not a socket.
func (c *Client) explain(doing string, err error) error {
	switch {
	case errors.Is(err, syscall.ENOENT):
		return fmt.Errorf("%s: no gpu-substitute has run on this node (%w): is it a GPU node, and is its Pod in kube-system with the label app.kubernetes.io/component=gpu-substitute running?", doing, err)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%s: the node's gpu-substitute is not running (%w): look at its Pod in kube-system, label app.kubernetes.io/component=gpu-substitute", doing, err)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%s: %w: the control socket is for root, run the command as root", doing, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}
