package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/omnivision/omnivision/localfleet/gpu/device"
	"github.com/omnivision/omnivision/localfleet/gpu/podresources"
)

func newServer(t *testing.T) *Server {
	t.Helper()
	devices, err := device.Open(t.Context(), device.Config{Dir: t.TempDir(), Node: "gpu-0", Count: 2, MaxLogBytes: 4000})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(devices.Close)
	list, _ := devices.Devices()
	return &Server{Node: "gpu-0", Devices: devices, Log: slog.New(slog.DiscardHandler),
		Owners: func(context.Context) (map[string]podresources.Owner, error) {
			return map[string]podresources.Owner{list[0].UUID: {Namespace: "omnivision", Pod: "worker-abc", Container: "worker"}}, nil
		}}
}

func do(t *testing.T, server *Server, method, path, body string) (int, []byte) {
	t.Helper()
	recorder := httptest.NewRecorder()
	server.Handler().ServeHTTP(recorder, httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body)))
	if got := recorder.Header().Get("Content-Type"); got != "application/json" {
		t.Errorf("%s %s answers as %q", method, path, got)
	}
	return recorder.Code, recorder.Body.Bytes()
}

func TestRequestsThatAreRefused(t *testing.T) {
	server := newServer(t)
	for _, c := range []struct {
		name, method, path, body string
		status                   int
		code, says               string
	}{
		{"nothing", "POST", "/v1/xid", ``, 400, "invalid-request", "reading the request"},
		{"no JSON", "POST", "/v1/xid", `xid=79`, 400, "invalid-request", "reading the request"},
		{"no device", "POST", "/v1/xid", `{"xid":79}`, 400, "invalid-request", "exactly one of"},
		{"two devices", "POST", "/v1/xid", `{"index":0,"uuid":"GPU-1","xid":79}`, 400, "invalid-request", "exactly one of"},
		{"no xid", "POST", "/v1/xid", `{"index":0}`, 400, "invalid-request", `\"xid\" is 0`},
		{"negative xid", "POST", "/v1/xid", `{"index":0,"xid":-79}`, 400, "invalid-request", `\"xid\" is -79`},
		{"huge xid", "POST", "/v1/xid", `{"index":0,"xid":7979}`, 400, "invalid-request", `from 1 to 1023`},
		{"xid as text", "POST", "/v1/xid", `{"index":0,"xid":"79"}`, 400, "invalid-request", "cannot unmarshal string"},
		{"fraction", "POST", "/v1/xid", `{"index":0,"xid":79.5}`, 400, "invalid-request", "cannot unmarshal number"},
		{"mistyped key", "POST", "/v1/xid", `{"idnex":0,"xid":79}`, 400, "invalid-request", "idnex"},
		{"two objects", "POST", "/v1/xid", `{"index":0,"xid":79}{"index":1,"xid":79}`, 400, "invalid-request", "behind the JSON object"},
		{"all", "POST", "/v1/xid", `{"all":true,"xid":79}`, 400, "invalid-request", "one device at a time"},
		{"negative index", "POST", "/v1/xid", `{"index":-1,"xid":79}`, 400, "invalid-request", "from 0 to 15"},
		{"index that is not there", "POST", "/v1/xid", `{"index":7,"xid":79}`, 404, "no-such-device", "index 7 on node gpu-0, which has 2"},
		{"no UUID", "POST", "/v1/xid", `{"uuid":"../../etc/passwd","xid":79}`, 400, "invalid-request", "not the UUID of a GPU"},
		{"UUID that is not there", "POST", "/v1/xid", `{"uuid":"GPU-/../x","xid":79}`, 404, "no-such-device", "no such GPU"},
		{"too large", "POST", "/v1/xid", `{"uuid":"GPU-` + strings.Repeat("0", maxRequest) + `","xid":79}`, 413, "too-large", "4096 bytes"},
		{"reset of nothing", "POST", "/v1/reset", `{}`, 400, "invalid-request", "exactly one of"},
		{"reset of all and one", "POST", "/v1/reset", `{"all":true,"index":0}`, 400, "invalid-request", "exactly one of"},
		{"wrong method", "GET", "/v1/xid", ``, 404, "no-such-request", "there is no GET /v1/xid"},
		{"wrong path", "POST", "/v2/xid", `{"index":0,"xid":79}`, 404, "no-such-request", "use GET /v1/devices"},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, body := do(t, server, c.method, c.path, c.body)
			var answer errorBody
			if err := json.Unmarshal(body, &answer); err != nil || answer.Error == nil {
				t.Fatalf("answers %s (%v), want an error", body, err)
			}
			if status != c.status || answer.Error.Code != c.code || !strings.Contains(string(body), c.says) || answer.Error.Next == "" {
				t.Errorf("answers %d %s, want %d %s that says %q and what to do next", status, body, c.status, c.code, c.says)
			}
		})
	}
	list, _ := server.Devices.Devices()
	for _, d := range list {
		if d.Last != nil {
			t.Errorf("a request that was refused raised %v", d.Last)
		}
	}
}

func TestFullLogIsAConflict(t *testing.T) {
	server := newServer(t) // without InUse, every device counts as used
	status, body := http.StatusOK, []byte(nil)
	for i := 0; i < 100 && status == http.StatusOK; i++ {
		status, body = do(t, server, "POST", "/v1/xid", `{"index":0,"xid":31}`)
	}
	if status != http.StatusConflict || !strings.Contains(string(body), "delete its Pod") {
		t.Errorf("answers %d %s, want a conflict with the next step", status, body)
	}
}

// serve lets the server listen where a client finds it.
func serve(t *testing.T, server *Server, path string) {
	t.Helper()
	listener, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	httpServer := httptest.NewUnstartedServer(server.Handler())
	_ = httpServer.Listener.Close()
	httpServer.Listener = listener
	httpServer.Start()
	t.Cleanup(httpServer.Close)
}

func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "control-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func TestClientBreaksAndRepairsADevice(t *testing.T) {
	server, socket := newServer(t), filepath.Join(socketDir(t), SocketName)
	serve(t, server, socket)
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket is %v (%v), want it for its owner alone", info.Mode(), err)
	}
	client := NewClient(socket)
	list, err := client.Devices(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if list.Substitute != "gpu-substitute" || list.Node != "gpu-0" || len(list.Devices) != 2 || list.Devices[0].Pod != "worker-abc" || list.Devices[1].Pod != "" || !list.Devices[0].Healthy {
		t.Errorf("the devices are %+v", list)
	}
	second, err := ParseTarget(list.Devices[1].UUID)
	if err != nil {
		t.Fatal(err)
	}
	result, err := client.RaiseXid(t.Context(), second, 79)
	if err != nil {
		t.Fatal(err)
	}
	if result.Event.Xid != 79 || result.Device.Index != 1 || result.Device.Healthy || result.Device.Cause.Xid != 79 {
		t.Errorf("raised %+v", result)
	}
	first, err := ParseTarget("0")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.RaiseXid(t.Context(), first, 48); err != nil {
		t.Fatal(err)
	}
	if list, err = client.Reset(t.Context(), second); err != nil || len(list.Devices) != 1 || !list.Devices[0].Healthy || list.Devices[0].Last.Xid != 79 {
		t.Errorf("reset %+v (%v)", list, err)
	}
	if list, err = client.Devices(t.Context()); err != nil || list.Devices[0].Healthy || !list.Devices[1].Healthy {
		t.Errorf("the devices are %+v (%v), want the first unhealthy alone", list, err)
	}
	if list, err = client.Reset(t.Context(), Target{All: true}); err != nil || len(list.Devices) != 2 || !list.Devices[0].Healthy {
		t.Errorf("reset all: %+v (%v)", list, err)
	}
	_, err = client.RaiseXid(t.Context(), first, 0)
	if refused, ok := errors.AsType[*Error](err); !ok || refused.Status != http.StatusBadRequest || !strings.Contains(err.Error(), "give an Xid from 1 to") {
		t.Errorf("raising Xid 0: %v, want the server's error", err)
	}
}

func TestClientReachesASocketBehindALongPath(t *testing.T) {
	server := newServer(t)
	dir := socketDir(t)
	serve(t, server, filepath.Join(dir, SocketName))
	long := filepath.Join(dir, strings.Repeat("n", 100))
	if err := os.Symlink(dir, long); err != nil {
		t.Fatal(err)
	}
	if _, err := NewClient(filepath.Join(long, SocketName)).Devices(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestClientSaysWhyNobodyAnswers(t *testing.T) {
	dir := socketDir(t)
	if _, err := NewClient(filepath.Join(dir, SocketName)).Devices(t.Context()); err == nil || !strings.Contains(err.Error(), "is it a GPU node") {
		t.Errorf("without a socket: %v", err)
	}
	listener, err := Listen(filepath.Join(dir, SocketName))
	if err != nil {
		t.Fatal(err)
	}
	file, err := listener.(interface{ File() (*os.File, error) }).File() // keeps nobody listening but the file there
	if err != nil {
		t.Fatal(err)
	}
	listener.(interface{ SetUnlinkOnClose(bool) }).SetUnlinkOnClose(false)
	_ = errors.Join(listener.Close(), file.Close())
	if _, err := NewClient(filepath.Join(dir, SocketName)).Devices(t.Context()); err == nil || !strings.Contains(err.Error(), "is not running") {
		t.Errorf("with a dead socket: %v", err)
	}
	serve(t, newServer(t), filepath.Join(dir, SocketName)) // replaces the dead one
	if _, err := NewClient(filepath.Join(dir, SocketName)).Devices(t.Context()); err != nil {
		t.Errorf("after the replacement: %v", err)
	}
}

func TestParseTarget(t *testing.T) {
	for text, good := range map[string]bool{"0": true, "15": true, "all": true, "GPU-1": true, "16": false, "-1": false, "": false, "gpu": false, "nvidia0": false} {
		if _, err := ParseTarget(text); (err == nil) != good {
			t.Errorf("ParseTarget(%q): %v", text, err)
		}
	}
}

func FuzzParseXidRequest(f *testing.F) {
	for _, seed := range []string{`{"index":0,"xid":79}`, `{"uuid":"GPU-46cfd0a6","xid":31}`, `{"all":true}`, `{"Index":1,"XID":1}`, `{"index":0,"xid":1e2}`,
		`{"index":null,"uuid":"GPU-","xid":1}`, `[]`, `null`, `{"index":0,"xid":79} x`, "\xff", `{"index":18446744073709551616,"xid":1}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		request, err := ParseXidRequest(bytes.NewReader(body))
		if err != nil {
			problem, ok := errors.AsType[*Error](err)
			if !ok || problem.Status < 400 || problem.Status > 499 || problem.Code == "" || problem.Message == "" || problem.Next == "" {
				t.Fatalf("refused with %#v, want the caller's fault and the next step", err)
			}
			return
		}
		if request.Xid < 1 || request.Xid > device.MaxXid || request.All || (request.Index != nil) == (request.UUID != "") {
			t.Fatalf("%q passes as %+v", body, request)
		}
		if request.Index != nil && (*request.Index < 0 || *request.Index >= device.MaxCount) {
			t.Fatalf("%q passes with index %d", body, *request.Index)
		}
		// What was understood can be said again.
		again, err := json.Marshal(request)
		if err != nil {
			t.Fatal(err)
		}
		reread, err := ParseXidRequest(bytes.NewReader(again))
		if err != nil || fmt.Sprint(reread.Xid, reread.UUID) != fmt.Sprint(request.Xid, request.UUID) {
			t.Fatalf("%q became %s, which reads as %+v (%v)", body, again, reread, err)
		}
	})
}

func FuzzParseResetRequest(f *testing.F) {
	for _, seed := range []string{`{"index":0}`, `{"all":true}`, `{"uuid":"GPU-46cfd0a6"}`, `{}`, `{"index":0,"all":true}`, `{"index":-1}`, `{"index":1.5}`,
		`{"uuid":"nvidia0"}`, `{"all":"true"}`, `null`, `[{}]`, `{"index":0}{"index":1}`, `{"index":0,"xid":1}`, "\x00"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		target, err := ParseResetRequest(bytes.NewReader(body))
		if err != nil {
			problem, ok := errors.AsType[*Error](err)
			if !ok || problem.Status < 400 || problem.Status > 499 || problem.Code == "" || problem.Message == "" || problem.Next == "" {
				t.Fatalf("refused with %#v, want the caller's fault and the next step", err)
			}
			return
		}
		if target.check() != nil {
			t.Fatalf("%q passes as %+v", body, target)
		}
		again, err := json.Marshal(target)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseResetRequest(bytes.NewReader(again)); err != nil {
			t.Fatalf("%q became %s, which is refused: %v", body, again, err)
		}
	})
}

func FuzzParseTarget(f *testing.F) {
	for _, seed := range []string{"0", "15", "16", "-1", "+1", "all", "GPU-", "GPU-46cfd0a6", "", "9999999999999999999", "0x1", "\xff"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		target, err := ParseTarget(text)
		if err != nil {
			return
		}
		if target.check() != nil || target.Index != nil && (*target.Index < 0 || *target.Index >= device.MaxCount) {
			t.Fatalf("%q passes as %+v", text, target)
		}
	})
}

func TestRequestThatCannotBeReadIsRefused(t *testing.T) {
	if _, err := ParseXidRequest(io.MultiReader(strings.NewReader("{"), failing{})); err == nil || !strings.Contains(err.Error(), "cut off") {
		t.Errorf("passes: %v", err)
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("cut off") }
