// Package control is the interface through which a rehearsal breaks and repairs simulated GPUs: HTTP with JSON on a
// unix socket in the state directory of the node's gpu-substitute. The nodes of the local fleet share their machine's
// file system, so the command line reaches the socket where the Pod made it; whoever may open it may break GPUs, so
// it is for its owner, root, alone.
//
//	GET  /v1/devices                       the node's devices, their health and their last Xid
//	POST /v1/xid    {"index":0,"xid":79}   raises an Xid on one device, named by "index" or by "uuid"
//	POST /v1/reset  {"index":0}            makes one device healthy again; {"all":true} all of them
//
// An error is {"error":{"code":…,"message":…,"next":…}} with the status that fits.
package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/omnivision/omnivision/localfleet/gpu/device"
)

// SocketName is the name of the socket in the state directory.
const SocketName = "control.sock"

// maxRequest bounds a request's body; a real one has some 60 bytes.
const maxRequest = 4096

// maxUUID is the length that the device plugin's interface allows an ID.
const maxUUID = 63

// Target names one device of a node, by index or by UUID, or all of them.
type Target struct {
	Index *int   `json:"index,omitempty"`
	UUID  string `json:"uuid,omitempty"`
	// All is for resets only.
	All bool `json:"all,omitempty"`
}

// XidRequest is the body of POST /v1/xid.
type XidRequest struct {
	Target
	Xid int `json:"xid"`
}

// Event is an Xid that was raised.
type Event struct {
	Time time.Time `json:"time"`
	Xid  int       `json:"xid"`
}

// Device is a simulated GPU as the interface shows it.
type Device struct {
	Index     int    `json:"index"`
	UUID      string `json:"uuid"`
	Model     string `json:"model"`
	MemoryMiB int    `json:"memoryMiB"`
	Healthy   bool   `json:"healthy"`
	// Cause is the Xid that made the device unhealthy; Last the last one raised, whatever was reset since.
	Cause *Event `json:"cause,omitempty"`
	Last  *Event `json:"last,omitempty"`
	// Namespace, Pod and Container use the device; empty when none does.
	Namespace string `json:"namespace,omitempty"`
	Pod       string `json:"pod,omitempty"`
	Container string `json:"container,omitempty"`
}

// DeviceList is the answer to GET /v1/devices and POST /v1/reset.
type DeviceList struct {
	// Substitute says that these GPUs are simulated; its value is the name of the program.
	Substitute string   `json:"substitute"`
	Node       string   `json:"node"`
	Devices    []Device `json:"devices"`
	// Attribution is empty when the kubelet said which Pods use the devices, and otherwise why it did not.
	Attribution string `json:"attribution,omitempty"`
}

// XidResult is the answer to POST /v1/xid: the device after the event.
type XidResult struct {
	Substitute string `json:"substitute"`
	Node       string `json:"node"`
	Event      Event  `json:"event"`
	Device     Device `json:"device"`
}

// Error is what the interface answers when it does not do what was asked.
type Error struct {
	Status int `json:"-"`
	// Code is for programs, Message for people, Next says what to do about it.
	Code    string `json:"code"`
	Message string `json:"message"`
	Next    string `json:"next"`
}

func (e *Error) Error() string {
	if e.Next == "" {
		return e.Message
	}
	return e.Message + ": " + e.Next
}

type errorBody struct {
	Error *Error `json:"error"`
}

// ParseXidRequest reads and checks the body of POST /v1/xid.
func ParseXidRequest(body io.Reader) (XidRequest, error) {
	var request XidRequest
	if err := decode(body, &request); err != nil {
		return XidRequest{}, err
	}
	if request.All {
		return XidRequest{}, invalid("\"all\" is for resets", "raise an Xid on one device at a time")
	}
	if err := request.Target.check(); err != nil {
		return XidRequest{}, err
	}
	if request.Xid < 1 || request.Xid > device.MaxXid {
		return XidRequest{}, invalid(fmt.Sprintf("\"xid\" is %d", request.Xid), fmt.Sprintf("give an Xid from 1 to %d, such as 31 (a fault of the program) or 79 (a GPU that fell off the bus)", device.MaxXid))
	}
	return request, nil
}

// ParseResetRequest reads and checks the body of POST /v1/reset.
func ParseResetRequest(body io.Reader) (Target, error) {
	var target Target
	if err := decode(body, &target); err != nil {
		return Target{}, err
	}
	return target, target.check()
}

func (t Target) check() error {
	named := 0
	for _, is := range []bool{t.Index != nil, t.UUID != "", t.All} {
		if is {
			named++
		}
	}
	switch {
	case named != 1:
		return invalid("which device is not clear", "give exactly one of \"index\", \"uuid\" and, for a reset, \"all\"")
	case t.Index != nil && (*t.Index < 0 || *t.Index >= device.MaxCount):
		return invalid(fmt.Sprintf("\"index\" is %d", *t.Index), fmt.Sprintf("give an index from 0 to %d that GET /v1/devices lists", device.MaxCount-1))
	case t.UUID != "" && (!strings.HasPrefix(t.UUID, "GPU-") || len(t.UUID) > maxUUID):
		return invalid(fmt.Sprintf("%.64q is not the UUID of a GPU", t.UUID), "give one that GET /v1/devices lists; it starts with GPU-")
	}
	return nil
}

func decode(body io.Reader, into any) error {
	content, err := io.ReadAll(io.LimitReader(body, maxRequest+1))
	if err != nil {
		return invalid("reading the request: "+err.Error(), "send it again")
	}
	if len(content) > maxRequest {
		return &Error{Status: http.StatusRequestEntityTooLarge, Code: "too-large", Message: fmt.Sprintf("the request has more than %d bytes", maxRequest), Next: "send one JSON object that names a device"}
	}
	decoder := json.NewDecoder(strings.NewReader(string(content)))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return invalid("reading the request: "+err.Error(), `send one JSON object such as {"index":0,"xid":79}`)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return invalid("there is something behind the JSON object", "send one object")
	}
	return nil
}

func invalid(message, next string) *Error {
	return &Error{Status: http.StatusBadRequest, Code: "invalid-request", Message: message, Next: next}
}
