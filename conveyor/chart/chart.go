// Package chart packages a Helm chart and publishes it as an OCI artifact, as Helm itself
// expects one: https://helm.sh/docs/topics/registries/#oci-feature-parity.
//
// The same files are the same digest, on every machine and whatever commit they are of:
// nothing in the archive or the manifest says when or where it was made. A version that
// is there with another content is never replaced, since clusters pin versions.
//
// Helm's own client cannot do either: it writes the time into the manifest, and pushes
// over what is there.
package chart

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"maps"
	"math"
	"path"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"helm.sh/helm/v4/pkg/chart/common"
	helmchart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
)

// Media types of a chart in a registry.
const (
	ConfigType  = types.MediaType("application/vnd.cncf.helm.config.v1+json")
	ContentType = types.MediaType("application/vnd.cncf.helm.chart.content.v1.tar+gzip")
)

// Packed is a chart as registries keep it.
type Packed struct {
	Name    string
	Version string
	Digest  string // of the manifest, which is what clusters and signatures name

	manifest, config, archive []byte
}

// Tag is the version as a tag. A tag has no plus sign; Helm writes an underscore.
func (p *Packed) Tag() string { return strings.ReplaceAll(p.Version, "+", "_") }

// Pack reads the chart in a directory, without what its .helmignore names.
func Pack(dir string) (*Packed, error) {
	chart, err := loader.LoadDir(dir)
	if err == nil {
		err = chart.Validate()
	}
	if err != nil {
		return nil, fmt.Errorf("reading the chart in %s: %w", dir, err)
	}
	p := &Packed{Name: chart.Name(), Version: chart.Metadata.Version}
	if p.archive, err = archive(chart); err == nil {
		p.config, err = json.Marshal(chart.Metadata)
	}
	if err == nil {
		err = p.describe(chart.Metadata)
	}
	if err != nil {
		return nil, fmt.Errorf("packaging %s %s: %w", p.Name, p.Version, err)
	}
	return p, nil
}

// archive holds the files as they are, in order, with plain modes and the time zero. It
// is not compressed, although it is gzip: what a compressor writes changes with its
// version, and a chart is small.
func archive(chart *helmchart.Chart) ([]byte, error) {
	files := slices.Clone(chart.Raw)
	slices.SortFunc(files, func(a, b *common.File) int { return strings.Compare(a.Name, b.Name) })
	// Helm wants to meet Chart.yaml first.
	slices.SortStableFunc(files, func(a, b *common.File) int { return rank(a.Name) - rank(b.Name) })
	var out bytes.Buffer
	tape := tar.NewWriter(&out)
	for _, f := range files {
		header := tar.Header{
			Typeflag: tar.TypeReg, Name: path.Join(chart.Name(), f.Name), Mode: 0o644, Size: int64(len(f.Data)),
			ModTime: time.Unix(0, 0), Format: tar.FormatPAX,
		}
		if err := tape.WriteHeader(&header); err != nil {
			return nil, err
		}
		if _, err := tape.Write(f.Data); err != nil {
			return nil, err
		}
	}
	err := tape.Close()
	return stored(out.Bytes()), err
}

// stored is gzip (RFC 1952) around blocks without compression (RFC 1951, 3.2.4). Go's own
// writer cuts even those differently from version to version.
func stored(content []byte) []byte {
	out := []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff} // no name, no time, no system
	for rest, last := content, false; !last; {
		block := rest[:min(len(rest), math.MaxUint16)]
		rest = rest[len(block):]
		last = len(rest) == 0
		head := byte(0)
		if last {
			head = 1
		}
		size := uint16(len(block)) //nolint:gosec // it is at most that large
		out = append(out, head)
		out = binary.LittleEndian.AppendUint16(out, size)
		out = binary.LittleEndian.AppendUint16(out, ^size)
		out = append(out, block...)
	}
	out = binary.LittleEndian.AppendUint32(out, crc32.ChecksumIEEE(content))
	return binary.LittleEndian.AppendUint32(out, uint32(len(content))) //nolint:gosec // modulo 2^32, as the RFC says
}

func rank(name string) int {
	if name == "Chart.yaml" {
		return 0
	}
	return 1
}

// describe makes the manifest.
func (p *Packed) describe(m *helmchart.Metadata) error {
	config, err := descriptor(ConfigType, p.config)
	if err != nil {
		return err
	}
	content, err := descriptor(ContentType, p.archive)
	if err != nil {
		return err
	}
	p.manifest, err = json.Marshal(v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1,
		Config: config, Layers: []v1.Descriptor{content}, Annotations: annotations(m),
	})
	if err != nil {
		return err
	}
	digest, _, err := v1.SHA256(bytes.NewReader(p.manifest))
	p.Digest = digest.String()
	return err
}

// annotations are those that Helm writes, without the time.
func annotations(m *helmchart.Metadata) map[string]string {
	all := maps.Clone(m.Annotations)
	if all == nil {
		all = map[string]string{}
	}
	for key, value := range map[string]string{
		"title": m.Name, "version": m.Version, "description": m.Description, "url": m.Home, "source": first(m.Sources),
	} {
		if value != "" {
			all["org.opencontainers.image."+key] = value
		}
	}
	return all
}

func first(all []string) string {
	if len(all) == 0 {
		return ""
	}
	return all[0]
}

func descriptor(mediaType types.MediaType, content []byte) (v1.Descriptor, error) {
	digest, size, err := v1.SHA256(bytes.NewReader(content))
	return v1.Descriptor{MediaType: mediaType, Digest: digest, Size: size}, err
}
