package tools

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
)

const platform = "linux/amd64"

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// script is a program that says its version, as a release without build information does.
func script(version string) string { return "#!/bin/sh\necho Version: " + version + "\n" }

func archive(t *testing.T, members ...tar.Header) []byte {
	t.Helper()
	var out bytes.Buffer
	zipped := gzip.NewWriter(&out)
	files := tar.NewWriter(zipped)
	for _, h := range members {
		content := script(h.Uname)
		h.Uname, h.Mode = "", 0o755
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(content))
		}
		must(t, files.WriteHeader(&h))
		if h.Typeflag == tar.TypeReg {
			_, err := files.Write([]byte(content))
			must(t, err)
		}
	}
	must(t, files.Close())
	must(t, zipped.Close())
	return out.Bytes()
}

// member is a file of an archive: a program that says its version.
func member(name, version string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeReg, Uname: version}
}

// site serves one archive and counts who asked for it.
type site struct {
	*httptest.Server
	asked int
}

func serve(t *testing.T, content []byte) *site {
	s := &site{}
	s.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		s.asked++
		_, _ = w.Write(content)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *site) getter(t *testing.T) Getter {
	return Getter{Cache: filepath.Join(t.TempDir(), "tools"), Platform: platform, HTTP: s.Client(), Report: func(string) {}}
}

func (s *site) tool(sha string) Tool {
	return Tool{Name: "trivy-of-the-test", Version: "0.68.0", Module: "example.com/trivy", Archives: map[string]Archive{
		platform: {URL: s.URL + "/trivy.tar.gz", SHA256: sha, Member: "bin/trivy"},
	}}
}

func sum(content []byte) string {
	s := sha256.Sum256(content)
	return hex.EncodeToString(s[:])
}

func TestToolsOfTheConveyorArePinned(t *testing.T) {
	all, err := Pinned()
	must(t, err)
	found, err := Named(all, "trivy", "buildkitd")
	must(t, err)
	for _, tool := range found {
		pins, err := os.ReadFile(filepath.Join("../..", tool.Source, "go.mod"))
		must(t, err)
		if !strings.Contains(string(pins), "\t"+tool.Module+" v"+tool.Version+" ") || !strings.Contains(string(pins), tool.Package) {
			t.Errorf("%s/go.mod does not pin %s at v%s, as %s does", tool.Source, tool.Package, tool.Version, File)
		}
		for _, platform := range []string{"linux/amd64", "linux/arm64"} {
			if sum, err := tool.Sums(os.DirFS("../.."), platform); err != nil || !strings.HasPrefix(sum, "h1:") && !strings.HasPrefix(sum, "sha256:") {
				t.Errorf("%s: %q, %v", tool.Name, sum, err)
			}
		}
		for platform, a := range tool.Archives {
			if !strings.Contains(a.URL, "/v"+tool.Version+"/") {
				t.Errorf("the archive of %s for %s is not of version %s: %s", tool.Name, platform, tool.Version, a.URL)
			}
		}
	}
	if _, err := Named(all, "cosign"); err == nil || !strings.Contains(err.Error(), "there are buildkitd, trivy") {
		t.Errorf("an unknown name: %v", err)
	}
}

func TestToolWithoutAnyChecksumIsNoPinnedTool(t *testing.T) {
	const sums = "example.com/trivy v0.68.0/go.mod h1:bW9k\nexample.com/trivy v0.68.0 h1:c3Vt\n"
	source := fstest.MapFS{"engines/trivy/go.sum": {Data: []byte(sums)}}
	pinned := Tool{
		Name: "trivy", Version: "0.68.0", Module: "example.com/trivy", Source: "engines/trivy",
		Archives: map[string]Archive{"linux/amd64": {SHA256: strings.Repeat("ab", 32)}, "linux/arm64": {}},
	}
	for platform, want := range map[string]string{"linux/amd64": "sha256:" + strings.Repeat("ab", 32), "linux/arm64": "h1:c3Vt", "linux/riscv64": "h1:c3Vt"} {
		if sum, err := pinned.Sums(source, platform); err != nil || sum != want {
			t.Errorf("%s: %q, %v; want %q", platform, sum, err, want)
		}
	}
	for what, change := range map[string]func(*Tool){
		"another version": func(t *Tool) { t.Version = "0.69.0" },
		"another module":  func(t *Tool) { t.Module = "example.com/trivy/v2" },
		"another folder":  func(t *Tool) { t.Source = "engines/grype" },
		"no folder":       func(t *Tool) { t.Source = "" },
	} {
		tool := pinned
		change(&tool)
		if sum, err := tool.Sums(source, "linux/arm64"); err == nil {
			t.Errorf("%s is pinned by %q", what, sum)
		}
	}
}

// What the proxy has now must be what go.sum says, whatever the caller's settings are.
func TestModuleThatIsNotWhatGoSumSaysIsNotCompiled(t *testing.T) {
	proxy, source := t.TempDir(), t.TempDir()
	write := func(name string, content []byte) {
		must(t, os.MkdirAll(filepath.Dir(name), 0o755))
		must(t, os.WriteFile(name, content, 0o600))
	}
	const module = "module example.com/dep\n\ngo 1.26.0\n"
	var zipped bytes.Buffer
	files := zip.NewWriter(&zipped)
	for name, content := range map[string]string{"go.mod": module, "dep.go": "package dep\n\nconst Version = \"0.68.0\"\n"} {
		f, err := files.Create("example.com/dep@v1.0.0/" + name)
		must(t, err)
		_, err = f.Write([]byte(content))
		must(t, err)
	}
	must(t, files.Close())
	at := filepath.Join(proxy, "example.com/dep/@v")
	write(filepath.Join(at, "v1.0.0.info"), []byte(`{"Version":"v1.0.0"}`))
	write(filepath.Join(at, "v1.0.0.mod"), []byte(module))
	write(filepath.Join(at, "v1.0.0.zip"), zipped.Bytes())
	dir := filepath.Join(source, "engines/trivy")
	write(filepath.Join(dir, "go.mod"), []byte("module example.com/trivy\n\ngo 1.26.0\n\nrequire example.com/dep v1.0.0\n"))
	write(filepath.Join(dir, "main.go"), []byte("package main\n\nimport \"example.com/dep\"\n\nfunc main() { println(dep.Version) }\n"))
	t.Setenv("GOPROXY", "file://"+filepath.ToSlash(proxy))
	t.Setenv("GONOSUMDB", "*")
	t.Setenv("GOFLAGS", "-mod=mod -modcacherw")
	t.Setenv("GOMODCACHE", t.TempDir())

	g, tool := serve(t, nil).getter(t), Tool{Name: "trivy-of-the-test", Version: "0.68.0", Source: "engines/trivy", Package: "example.com/trivy"}
	g.Source = source
	const another = "h1:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
	for what, tt := range map[string]struct{ sums, want string }{
		"no checksum":      {"", "go.sum"},
		"another checksum": {"example.com/dep v1.0.0 " + another + "\nexample.com/dep v1.0.0/go.mod " + another + "\n", "SECURITY ERROR"},
	} {
		write(filepath.Join(dir, "go.sum"), []byte(tt.sums))
		if path, err := g.Get(t.Context(), tool); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %q, %v; want %q", what, path, err, tt.want)
		}
	}
}

func TestArchiveIsDownloadedOnce(t *testing.T) {
	content := archive(t, member("README", "none"), member("./bin/trivy", "0.68.0"))
	s := serve(t, content)
	g := s.getter(t)
	for range 2 {
		path, err := g.Get(t.Context(), s.tool(sum(content)))
		must(t, err)
		got, err := os.ReadFile(path)
		must(t, err)
		if string(got) != script("0.68.0") || filepath.Base(path) != "trivy-of-the-test" {
			t.Errorf("%s holds %s", path, got)
		}
	}
	left, err := filepath.Glob(filepath.Join(g.Cache, "*"))
	must(t, err)
	hidden, err := filepath.Glob(filepath.Join(g.Cache, ".unfinished-*"))
	must(t, err)
	if s.asked != 1 || len(left) != 1 || len(hidden) != 0 {
		t.Errorf("asked %d times; the cache has %v, %v", s.asked, left, hidden)
	}
}

func TestProgramInPathIsTakenAtTheWantedVersionAlone(t *testing.T) {
	content := archive(t, member("bin/trivy", "0.68.0"))
	for version, downloads := range map[string]int{"0.68.0": 0, "v0.68.0": 0, "0.68.00": 1, "0.67.1": 1} {
		s := serve(t, content)
		bin := t.TempDir()
		must(t, os.WriteFile(filepath.Join(bin, "trivy-of-the-test"), []byte(script(version)), 0o755))
		t.Setenv("PATH", bin+":/usr/bin:/bin")
		path, err := s.getter(t).Get(t.Context(), s.tool(sum(content)))
		must(t, err)
		if s.asked != downloads || (filepath.Dir(path) == bin) != (downloads == 0) {
			t.Errorf("with %s in PATH it is %s after %d downloads", version, path, s.asked)
		}
	}
}

func TestWhatIsNotPinnedDoesNotComeOntoTheMachine(t *testing.T) {
	good := archive(t, member("bin/trivy", "0.68.0"))
	for what, tt := range map[string]struct {
		content []byte
		sha     string
		want    string
	}{
		"no checksum":         {good, "", "no checksum is pinned"},
		"another checksum":    {good, strings.Repeat("ab", 32), "it is not what was reviewed"},
		"cut off":             {good[:len(good)/2], sum(good), "it is not what was reviewed"},
		"no archive":          {[]byte("<html>"), sum([]byte("<html>")), "unpacking"},
		"without the program": {archive(t, member("other", "0.68.0")), "", ""},
		"up and away":         {archive(t, member("../bin/trivy", "0.68.0")), "", ""},
		"a link":              {archive(t, tar.Header{Name: "bin/trivy", Typeflag: tar.TypeSymlink, Linkname: "/bin/sh"}), "", "is no file"},
		"another version":     {archive(t, member("bin/trivy", "0.67.0")), "", "is not version 0.68.0"},
	} {
		t.Run(what, func(t *testing.T) {
			s := serve(t, tt.content)
			sha, want := tt.sha, tt.want
			if sha == "" && what != "no checksum" {
				sha = sum(tt.content)
			}
			if want == "" {
				want = "it has no file bin/trivy"
			}
			g := s.getter(t)
			path, err := g.Get(t.Context(), s.tool(sha))
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %q, %v; want %q", path, err, want)
			}
			if what == "no checksum" && s.asked > 0 {
				t.Error("it was downloaded all the same")
			}
			left, _ := filepath.Glob(filepath.Join(g.Cache, "*", "*"))
			if len(left) > 0 {
				t.Errorf("left is %v", left)
			}
		})
	}
}

func TestToolWithoutAChecksumIsCompiledFromThePinnedModule(t *testing.T) {
	source := t.TempDir()
	dir := filepath.Join(source, "engines/trivy")
	must(t, os.MkdirAll(dir, 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module example.com/trivy\n\ngo 1.26.0\n"), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "main.go"), []byte("package main\n\nimport \"os\"\n\nvar version string\n\nfunc main() { _, _ = os.Stdout.WriteString(\"Version: \" + version + \"\\n\") }\n"), 0o600))
	s := serve(t, nil)
	g, tool := s.getter(t), s.tool("")
	g.Source = source
	tool.Source, tool.Package, tool.Stamps = "engines/trivy", "example.com/trivy", map[string]string{"main.version": "0.68.0"}
	path, err := g.Get(t.Context(), tool)
	must(t, err)
	if !strings.Contains(path, "compiled") || s.asked > 0 {
		t.Errorf("it is %s after %d downloads", path, s.asked)
	}
	tool.Version = "0.69.0"
	if _, err := g.Get(t.Context(), tool); err == nil || !strings.Contains(err.Error(), "is not version 0.69.0") {
		t.Errorf("a module at another version: %v", err)
	}
}

func TestFileIsReadStrictly(t *testing.T) {
	const good = "tools:\n- name: trivy\n  version: 0.68.0\n  archives:\n    linux/amd64: {url: https://x.example/a, sha256: \"\", member: trivy}\n"
	if _, err := Parse([]byte(good)); err != nil {
		t.Error(err)
	}
	for what, change := range map[string][2]string{
		"an unknown key":     {"version:", "versoin:"},
		"a name with a path": {"name: trivy", "name: ../trivy"},
		"plain HTTP":         {"https://", "http://"},
		"half a checksum":    {`sha256: ""`, `sha256: "abcd"`},
		"a path out":         {"member: trivy", "member: ../trivy"},
	} {
		if _, err := Parse([]byte(strings.Replace(good, change[0], change[1], 1))); err == nil {
			t.Errorf("%s is taken", what)
		}
	}
}

func FuzzUnpack(f *testing.F) {
	var small bytes.Buffer
	zipped := gzip.NewWriter(&small)
	_, _ = zipped.Write(make([]byte, 1024))
	_ = zipped.Close()
	f.Add(small.Bytes())
	f.Fuzz(func(t *testing.T, content []byte) {
		dir := t.TempDir()
		_ = unpack(bytes.NewReader(content), "bin/trivy", filepath.Join(dir, "trivy"))
		left, _ := os.ReadDir(dir)
		if len(left) > 1 {
			t.Errorf("unpacked %v", left)
		}
	})
}
