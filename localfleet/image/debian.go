package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
)

// DefaultMirror and suite are where Debian packages come from. The suite is
// named, not the host's: its Prometheus is the version that the fleet's
// manifests name.
const (
	DefaultMirror  = "http://deb.debian.org"
	suite          = "bookworm"
	archiveKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
)

// packageSet is a root file system made of Debian packages.
//
// Packages are unpacked, not installed: no maintainer script runs, so no root,
// chroot or package database is needed, and it takes seconds where debootstrap
// takes minutes. What scripts would have done and the images need is done in
// arrange.
type packageSet struct {
	Name string
	// Include are the packages; what they depend on comes with them.
	Include []string
	// Exclude are dependencies that only maintainer scripts and commands that
	// nobody calls in the image need.
	Exclude []string
	// Users are added to /etc/passwd, each with a group of its name.
	Users []user
	// Keep names the paths that the image needs, with what they lead to; none
	// keeps everything.
	Keep []string
	// Listed keeps what each package says of itself where scanners look for it, as
	// distroless does.
	Listed bool `json:",omitempty"`
	// Arch is Debian's name of the architecture, which is Go's for those that the
	// fleet runs on; empty is this machine's.
	Arch string `json:",omitempty"`
}

type user struct {
	Name     string
	UID, GID int
	Home     string
}

// installers are what packages depend on for their installation.
var installers = []string{
	"adduser", "debconf", "dpkg", "init-system-helpers", "libpam-modules", "libpam-modules-bin", "libpam0g",
	"libdb5.3", "libsemanage-common", "libsemanage2", "libsepol2", "libaudit-common", "libaudit1", "libcap-ng0",
	"passwd", "perl-base", "perl", "perl-modules-5.36", "libperl5.36", "libgdbm6", "libgdbm-compat4",
	"libfile-find-rule-perl", "libnumber-compare-perl", "libtext-glob-perl", "liberror-perl", "usrmerge",
	"libdebconfclient0", "git-man", "mawk", "openssl",
}

// packageKinds are the sets that are made together.
func packageKinds() [][]packageSet { return [][]packageSet{packageSets, buildSets(runtime.GOARCH)} }

// setsOf returns the sets that are made together with the one called name.
func setsOf(name string) []packageSet {
	for _, sets := range packageKinds() {
		if slices.ContainsFunc(sets, func(s packageSet) bool { return s.Name == name }) {
			return sets
		}
	}
	return nil
}

// packageSets are unpacked in one go, because resolving and downloading is most
// of the work.
var packageSets = []packageSet{
	{
		Name: "argocd",
		// The first line is that of upstream's Dockerfile; the second is what
		// its base image has.
		Include: []string{
			"git", "tini", "ca-certificates", "gpg", "gpg-agent", "tzdata", "connect-proxy", "openssh-client",
			"base-files", "base-passwd", "bash", "coreutils", "dash", "diffutils", "findutils", "grep", "gzip", "libc-bin", "sed", "tar",
		},
		Exclude: installers,
		Users:   []user{{"argocd", 999, 999, "/home/argocd"}},
		Listed:  true, // the steward's image, which stands on it too, is scanned
	},
	{
		Name:    "redis",
		Include: []string{"redis-server", "dash", "base-files", "base-passwd"},
		Exclude: installers,
		Users:   []user{{"redis", 999, 1000, "/data"}},
		Keep:    []string{"tmp", "bin", "usr/bin/redis-server", "usr/bin/redis-cli", "usr/bin/dash", "usr/bin/sh", "etc/passwd", "etc/group", "etc/nsswitch.conf"},
	},
	{
		// What a static program needs around it.
		Name:    "static",
		Include: []string{"ca-certificates", "base-files", "base-passwd"},
		Exclude: installers,
		Users:   []user{{"nonroot", 65532, 65532, "/home/nonroot"}},
		Keep:    []string{"tmp", "etc/ssl/certs/ca-certificates.crt", "etc/passwd", "etc/group", "etc/nsswitch.conf"},
	},
}

// buildSets are what the base images of this project's Dockerfiles are made of. Only
// the conveyor needs them, so they are made apart from those of the clusters.
func buildSets(arch string) []packageSet {
	sets := []packageSet{{
		Name: "golang",
		Include: append([]string{
			"gcc", "libc6-dev", "ca-certificates", "base-files", "base-passwd", "bash", "coreutils", "dash", "findutils", "grep", "sed",
		}, crossCompilers[arch]...),
		Exclude: installers,
	}}
	for _, arch := range []string{"amd64", "arm64"} {
		sets = append(sets, packageSet{
			Name: "base-nossl-" + arch, Arch: arch, Listed: true,
			Include: []string{"libc6", "ca-certificates", "base-files", "base-passwd", "netbase", "tzdata"},
			Exclude: installers,
			Users:   []user{{"nonroot", 65532, 65532, "/home/nonroot"}},
		}, packageSet{
			Name: "git-" + arch, Arch: arch, Listed: true,
			Include: []string{"git", "ca-certificates", "dash", "base-files", "base-passwd"},
			Exclude: installers,
		})
	}
	return sets
}

// crossCompilers are Debian's packages for the other architecture.
var crossCompilers = map[string][]string{
	"amd64": {"gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"},
	"arm64": {"gcc-x86-64-linux-gnu", "libc6-dev-amd64-cross"},
}

// nobodyReads is documentation and the like: two thirds of the base, and no
// program opens it.
func nobodyReads(name string) bool {
	for _, dir := range []string{
		"usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/lintian", "usr/share/bug",
		"usr/share/bash-completion", "usr/share/gitweb", "usr/share/perl5", "usr/share/common-licenses", "usr/share/doc-base",
		"usr/share/menu", "usr/share/pixmaps", "usr/share/applications", "usr/lib/systemd", "usr/lib/tmpfiles.d",
		"usr/lib/sysusers.d", "etc/init.d", "etc/cron.daily", "etc/cron.d", "etc/logrotate.d", "usr/share/zoneinfo/right",
		"usr/lib/x86_64-linux-gnu/gconv", "usr/lib/aarch64-linux-gnu/gconv", "usr/lib/x86_64-linux-gnu/perl-base", "var/lib/systemd", "var/log", "var/cache",
	} {
		if name == dir || strings.HasPrefix(name, dir+"/") {
			return true
		}
	}
	return false
}

// debian downloads and unpacks package sets in a directory of its own.
type debian struct {
	dir    string
	mirror string
	arch   string // of the packages
	report func(string)
}

// options keep apt away from the host's state; its proxy and network settings
// stay in force.
func (d *debian) options() []string {
	var args []string
	for _, o := range []string{
		"Dir::State::lists=" + filepath.Join(d.dir, "lists"),
		"Dir::State::status=" + filepath.Join(d.dir, "status"),
		"Dir::Cache=" + d.dir,
		"Dir::Cache::archives=" + filepath.Join(d.dir, "archives"),
		"Dir::Etc::sourcelist=" + filepath.Join(d.dir, "sources.list"),
		"Dir::Etc::sourceparts=/dev/null",
		"Dir::Etc::preferences=/dev/null",
		"Dir::Etc::preferencesparts=/dev/null",
		"APT::Architecture=" + d.arch,
		"APT::Architectures=" + d.arch,
		"APT::Install-Recommends=false",
		"APT::Install-Suggests=false",
		"APT::Sandbox::User=root",
		"Acquire::Languages=none",
		"Acquire::Retries=2",
		"Acquire::http::Timeout=20",
		"Debug::NoLocking=true",
	} {
		args = append(args, "-o", o)
	}
	return args
}

// prepare writes apt's configuration and fetches the package lists, whose
// signature apt checks with Debian's key.
func (d *debian) prepare(ctx context.Context) error {
	if _, err := os.Stat(archiveKeyring); err != nil {
		return fmt.Errorf("the key of Debian's archive is missing: %w; install it with `apt-get install debian-archive-keyring`", err)
	}
	for _, dir := range []string{"lists/partial", "archives/partial", "none/partial"} {
		if err := os.MkdirAll(filepath.Join(d.dir, dir), 0o755); err != nil {
			return err
		}
	}
	signed := "deb [signed-by=" + archiveKeyring + "] " + d.mirror
	sources := signed + "/debian " + suite + " main\n" + signed + "/debian-security " + suite + "-security main\n"
	for name, content := range map[string]string{"sources.list": sources, "status": ""} {
		if err := os.WriteFile(filepath.Join(d.dir, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	d.report("reading Debian's package lists")
	// apt-get update exits with 0 when a mirror does not answer, unless told
	// otherwise.
	_, err := d.apt(ctx, "update", "-o", "APT::Update::Error-Mode=any")
	return err
}

func (d *debian) apt(ctx context.Context, args ...string) (string, error) {
	return output(exec.CommandContext(ctx, "apt-get", append(d.options(), args...)...), "getting Debian packages from "+d.mirror)
}

// output runs a command and puts what it complained about into the error.
func output(cmd *exec.Cmd, doing string) (string, error) {
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %s: %w: %s", doing, filepath.Base(cmd.Path), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// deb is one package of a plan.
type deb struct{ name, version, file string }

// plan returns the packages of a set: what is included, and what that depends
// on, as apt resolves it for a machine that has nothing.
func (d *debian) plan(ctx context.Context, set packageSet) ([]deb, error) {
	// apt leaves what it has fetched out of the plan: it plans with an empty cache.
	args := []string{"install", "-y", "-qq", "--print-uris", "-o", "Dir::Cache::archives=" + filepath.Join(d.dir, "none")}
	uris, err := d.apt(ctx, append(args, set.Include...)...)
	if err != nil {
		return nil, err
	}
	var debs []deb
	for line := range strings.Lines(uris) {
		// 'URI' FILE SIZE HASH
		fields := strings.Fields(line)
		if len(fields) < 3 {
			continue
		}
		parts := strings.Split(fields[1], "_")
		if len(parts) != 3 || slices.Contains(set.Exclude, parts[0]) {
			continue
		}
		version, err := url.PathUnescape(parts[1])
		if err != nil {
			return nil, fmt.Errorf("reading apt's plan: %w", err)
		}
		debs = append(debs, deb{name: parts[0], version: version, file: filepath.Join(d.archives(), fields[1])})
	}
	slices.SortFunc(debs, func(a, b deb) int { return strings.Compare(a.file, b.file) })
	return debs, nil
}

func (d *debian) archives() string { return filepath.Join(d.dir, "archives") }

// download fetches packages; apt checks each against the signed lists, and
// skips those that an earlier run has fetched.
func (d *debian) download(ctx context.Context, debs []deb) error {
	d.report(fmt.Sprintf("downloading %d Debian packages", len(debs)))
	args := append(d.options(), "download", "-qq")
	for _, p := range debs {
		args = append(args, p.name+"="+p.version)
	}
	cmd := exec.CommandContext(ctx, "apt-get", args...)
	cmd.Dir = d.archives()
	_, err := output(cmd, "getting Debian packages from "+d.mirror)
	return err
}

// unpack makes the tree of a set.
func (d *debian) unpack(ctx context.Context, set packageSet, debs []deb) (tree, error) {
	spool, err := os.CreateTemp(d.dir, "spool-*")
	if err != nil {
		return nil, err
	}
	// The tree reads from the open file; its name is not needed.
	if err := os.Remove(spool.Name()); err != nil {
		return nil, err
	}
	t := tree{}
	for _, name := range mergedDirs {
		t.symlink(name, "usr/"+name)
	}
	s := &spooler{file: spool}
	for _, p := range debs {
		if err := unpackDeb(ctx, p.file, t, s); err != nil {
			return nil, fmt.Errorf("unpacking %s %s: %w", p.name, p.version, err)
		}
		if set.Listed {
			control, err := output(exec.CommandContext(ctx, "dpkg-deb", "--field", p.file), "reading what "+p.name+" says of itself")
			if err != nil {
				return nil, err
			}
			t.file("var/lib/dpkg/status.d/"+p.name, control, 0o644)
		}
	}
	if err := arrange(t, set.Users); err != nil {
		return nil, err
	}
	t.remove(nobodyReads)
	if len(set.Keep) == 0 {
		return t, nil
	}
	return t.reach(set.Keep...)
}

// spooler keeps the contents of a tree in one file, which the layer's tar is
// then written from.
type spooler struct {
	file   *os.File
	offset atomic.Int64
}

func (s *spooler) add(r io.Reader) (func() (io.ReadCloser, error), error) {
	start := s.offset.Load()
	n, err := io.Copy(s.file, r)
	s.offset.Add(n)
	return func() (io.ReadCloser, error) {
		return io.NopCloser(io.NewSectionReader(s.file, start, n)), nil
	}, err
}

func unpackDeb(ctx context.Context, file string, t tree, s *spooler) error {
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", file)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	addErr := addTar(pipe, t, s)
	_, _ = io.Copy(io.Discard, pipe)
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("dpkg-deb: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return addErr
}

func addTar(r io.Reader, t tree, s *spooler) error {
	for tr := tar.NewReader(r); ; {
		header, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := merged(path.Clean(header.Name))
		if name == "." {
			continue
		}
		n := node{kind: header.Typeflag, mode: header.FileInfo().Mode(), uid: header.Uid, gid: header.Gid, link: header.Linkname, size: header.Size}
		switch header.Typeflag {
		case tar.TypeDir:
			if old, ok := t[name]; ok && old.kind == tar.TypeSymlink {
				continue
			}
		case tar.TypeSymlink:
		case tar.TypeReg:
			if n.open, err = s.add(tr); err != nil {
				return err
			}
		case tar.TypeLink:
			target, ok := t[merged(path.Clean(header.Linkname))]
			if !ok {
				return fmt.Errorf("/%s is a link to %s, which is not there", name, header.Linkname)
			}
			n = target
		default:
			return fmt.Errorf("/%s is of type %q, which no image needs", name, header.Typeflag)
		}
		t[name] = n
	}
}

// mergedDirs are links into /usr in bookworm, though its packages still ship
// files below them.
var mergedDirs = []string{"bin", "sbin", "lib", "lib64"}

// merged moves a path to where it really is.
func merged(name string) string {
	for _, dir := range mergedDirs {
		if name == dir || strings.HasPrefix(name, dir+"/") {
			return "usr/" + name
		}
	}
	return name
}

// arrange does what maintainer scripts would have done.
func arrange(t tree, users []user) error {
	for name, master := range map[string]string{"etc/passwd": "passwd.master", "etc/group": "group.master"} {
		content, err := t.read("usr/share/base-passwd/" + master)
		if err != nil {
			return fmt.Errorf("making /%s: %w", name, err)
		}
		for _, u := range users {
			if name == "etc/passwd" {
				content = fmt.Appendf(content, "%s:x:%d:%d::%s:/bin/sh\n", u.Name, u.UID, u.GID, u.Home)
			} else {
				content = fmt.Appendf(content, "%s:x:%d:\n", u.Name, u.GID)
			}
		}
		t.bytes(name, content, 0o644)
	}
	t.dir("tmp", fs.ModeSticky|0o777, 0, 0)
	t.file("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n", 0o644)
	return bundleCertificates(t)
}

// bundleCertificates makes /etc/ssl/certs/ca-certificates.crt of all that the
// package ships, as update-ca-certificates does by default.
func bundleCertificates(t tree) error {
	const shipped = "usr/share/ca-certificates/"
	var bundle []byte
	for _, name := range slices.Sorted(maps.Keys(t)) {
		if !strings.HasPrefix(name, shipped) || !strings.HasSuffix(name, ".crt") {
			continue
		}
		content, err := t.read(name)
		if err != nil {
			return err
		}
		bundle = append(bundle, content...)
		if len(content) > 0 && content[len(content)-1] != '\n' {
			bundle = append(bundle, '\n')
		}
	}
	t.remove(func(name string) bool { return strings.HasPrefix(name, shipped) })
	if bundle != nil {
		t.bytes("etc/ssl/certs/ca-certificates.crt", bundle, 0o644)
	}
	return nil
}
