package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"

	"github.com/omnivision/omnivision/localfleet/gpu/device"
	"github.com/omnivision/omnivision/localfleet/gpu/podresources"
)

// substitute is the name under which the interface shows that the GPUs are simulated.
const substitute = "gpu-substitute"

// Server answers the interface's requests.
type Server struct {
	Node    string
	Devices *device.Set
	// Owners asks which container uses which device.
	Owners func(ctx context.Context) (map[string]podresources.Owner, error)
	Log    *slog.Logger
}

// Listen makes the socket, for root alone. A socket that a killed predecessor left is replaced: the lock on the
// devices' state says that the predecessor is gone.
func Listen(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("making the control socket: %w", err)
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("making the control socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = listener.Close()
		return nil, fmt.Errorf("making the control socket: %w", err)
	}
	return listener, nil
}

// Handler routes the requests.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /v1/devices", s.answer(s.listDevices))
	mux.Handle("POST /v1/xid", s.answer(s.raiseXid))
	mux.Handle("POST /v1/reset", s.answer(s.reset))
	mux.Handle("/", s.answer(func(r *http.Request) (any, error) {
		return nil, &Error{Status: http.StatusNotFound, Code: "no-such-request", Message: "there is no " + r.Method + " " + r.URL.Path,
			Next: "use GET /v1/devices, POST /v1/xid or POST /v1/reset"}
	}))
	return mux
}

// answer writes what a request's function returns; it is the one place that writes answers and errors.
func (s *Server) answer(handle func(*http.Request) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		status := http.StatusOK
		body, err := handle(r)
		if err != nil {
			problem := problemOf(err)
			status, body = problem.Status, errorBody{problem}
			s.Log.Warn("refused a control request", "method", r.Method, "path", r.URL.Path, "status", status, "error", err)
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		if err := json.NewEncoder(w).Encode(body); err != nil {
			s.Log.Warn("answering a control request", "path", r.URL.Path, "error", err)
		}
	})
}

// problemOf gives an error of the devices the status and the next step that a user needs.
func problemOf(err error) *Error {
	if problem, ok := errors.AsType[*Error](err); ok {
		return problem
	}
	switch {
	case errors.Is(err, device.ErrUnknownDevice):
		return &Error{Status: http.StatusNotFound, Code: "no-such-device", Message: err.Error(), Next: "see GET /v1/devices"}
	case errors.Is(err, device.ErrLogFull):
		return &Error{Status: http.StatusConflict, Code: "log-full", Message: err.Error()}
	default:
		return &Error{Status: http.StatusInternalServerError, Code: "failed", Message: err.Error(), Next: "see the log of the gpu-substitute Pod; is its disk full?"}
	}
}

func (s *Server) listDevices(r *http.Request) (any, error) {
	devices, _ := s.Devices.Devices()
	return s.list(r.Context(), devices), nil
}

func (s *Server) raiseXid(r *http.Request) (any, error) {
	request, err := ParseXidRequest(r.Body)
	if err != nil {
		return nil, err
	}
	target, err := s.resolve(request.Target)
	if err != nil {
		return nil, err
	}
	event, err := s.Devices.Raise(r.Context(), target[0].UUID, request.Xid)
	if err != nil {
		return nil, err
	}
	s.Log.Info("raised an Xid on a simulated GPU", "gpu", event.UUID, "xid", event.Xid)
	after, err := s.resolve(Target{UUID: event.UUID})
	if err != nil {
		return nil, err
	}
	list := s.list(r.Context(), after)
	return XidResult{Substitute: substitute, Node: s.Node, Event: *shown(&event), Device: list.Devices[0]}, nil
}

func (s *Server) reset(r *http.Request) (any, error) {
	request, err := ParseResetRequest(r.Body)
	if err != nil {
		return nil, err
	}
	targets, err := s.resolve(request)
	if err != nil {
		return nil, err
	}
	for i, target := range targets {
		if targets[i], err = s.Devices.Reset(target.UUID); err != nil {
			return nil, err
		}
		s.Log.Info("reset a simulated GPU", "gpu", target.UUID)
	}
	return s.list(r.Context(), targets), nil
}

// resolve finds the devices that a target names.
func (s *Server) resolve(target Target) ([]device.Device, error) {
	devices, _ := s.Devices.Devices()
	if target.All {
		return devices, nil
	}
	for _, d := range devices {
		if d.UUID == target.UUID || target.Index != nil && d.Index == *target.Index {
			return []device.Device{d}, nil
		}
	}
	name := target.UUID
	if target.Index != nil {
		name = fmt.Sprintf("index %d", *target.Index)
	}
	return nil, fmt.Errorf("%w: %s on node %s, which has %d", device.ErrUnknownDevice, name, s.Node, len(devices))
}

func (s *Server) list(ctx context.Context, devices []device.Device) DeviceList {
	list := DeviceList{Substitute: substitute, Node: s.Node, Devices: make([]Device, 0, len(devices))}
	owners, err := s.Owners(ctx)
	if err != nil {
		list.Attribution = err.Error()
	}
	for _, d := range devices {
		owner := owners[d.UUID]
		list.Devices = append(list.Devices, Device{
			Index: d.Index, UUID: d.UUID, Model: d.Model, MemoryMiB: d.MemoryMiB,
			Healthy: d.Healthy, Cause: shown(d.Cause), Last: shown(d.Last),
			Namespace: owner.Namespace, Pod: owner.Pod, Container: owner.Container,
		})
	}
	return list
}

func shown(event *device.Event) *Event {
	if event == nil {
		return nil
	}
	return &Event{Time: event.Time, Xid: event.Xid}
}
