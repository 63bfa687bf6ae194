package tools

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// largest is how large an archive and a program may be. Trivy's has 150 MB.
const largest = 1 << 30

// download gets an archive, and takes the program out only once all of it has the right
// checksum.
func (g Getter) download(ctx context.Context, a Archive, into string) error {
	g.Report("downloading " + a.URL)
	archive, err := os.CreateTemp(filepath.Dir(filepath.Dir(into)), "archive-")
	if err != nil {
		return err
	}
	defer archive.Close() //nolint:errcheck // removed with its folder
	sum := sha256.New()
	if err := g.fetch(ctx, a.URL, io.MultiWriter(archive, sum)); err != nil {
		return fmt.Errorf("downloading %s: %w", a.URL, err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != a.SHA256 {
		return fmt.Errorf("%s has the SHA-256 %s, and pinned is %s: it is not what was reviewed; find out why before you change %s", a.URL, got, a.SHA256, File)
	}
	if _, err := archive.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if err := unpack(archive, a.Member, into); err != nil {
		return fmt.Errorf("unpacking %s: %w", a.URL, err)
	}
	return nil
}

func (g Getter) fetch(ctx context.Context, address string, to io.Writer) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Minute, errors.New("not done within ten minutes"))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	resp, err := g.HTTP.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // read as far as needed
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the answer is %s", resp.Status)
	}
	n, err := io.Copy(to, io.LimitReader(resp.Body, largest+1))
	if err == nil && n > largest {
		err = fmt.Errorf("it has more than %d bytes", largest)
	}
	return err
}

// unpack writes one member of an archive to a file of our own choice: no name in the
// archive decides where anything is written.
func unpack(archive io.Reader, member, into string) error {
	zipped, err := gzip.NewReader(archive)
	if err != nil {
		return err
	}
	files := tar.NewReader(zipped)
	for {
		header, err := files.Next()
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("it has no file %s", member)
		}
		if err != nil {
			return err
		}
		if strings.TrimPrefix(header.Name, "./") != member {
			continue
		}
		if header.Typeflag != tar.TypeReg || header.Size > largest {
			return fmt.Errorf("%s is no file of at most %d bytes", member, largest)
		}
		return write(into, files)
	}
}

func write(path string, content io.Reader) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(file, content)
	return errors.Join(err, file.Close())
}

// compile builds the program from the module that the source pins. The go command checks
// each module against go.sum.
func (g Getter) compile(ctx context.Context, t Tool, into string) error {
	g.Report("compiling " + t.Package + ", which takes minutes")
	ctx, cancel := context.WithTimeoutCause(ctx, 40*time.Minute, errors.New("not compiled within forty minutes"))
	defer cancel()
	into, err := filepath.Abs(into)
	if err != nil {
		return err
	}
	flags := []string{"-s", "-w"}
	for _, variable := range slices.Sorted(maps.Keys(t.Stamps)) {
		flags = append(flags, "-X", variable+"="+t.Stamps[variable])
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", strings.Join(flags, " "), "-o", into, t.Package)
	cmd.Dir, cmd.WaitDelay = filepath.Join(g.Source, t.Source), 5*time.Second
	cmd.Env = append(os.Environ(), append([]string{"CGO_ENABLED=0", "GOWORK=off", "PWD=" + cmd.Dir}, t.Env...)...)
	out, err := cmd.CombinedOutput()
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = fmt.Errorf("%w (%w)", cause, err)
	}
	if err != nil {
		return fmt.Errorf("compiling %s in %s: %w: %s", t.Package, cmd.Dir, err, out[max(0, len(out)-2000):])
	}
	return nil
}
