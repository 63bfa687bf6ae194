// Package dns is the cluster's CoreDNS: the objects that a cloud puts in every
// cluster it makes, with one addition, the production host names that the
// local fleet answers for.
package dns

import (
	"bytes"
	"embed"
	"fmt"
	"io"
	"sort"
	"text/template"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// Image is CoreDNS as upstream publishes it.
const Image = "registry.k8s.io/coredns/coredns:v1.15.0"

//go:embed manifests/*.yaml
var manifests embed.FS

// Options are what differs between clusters.
type Options struct {
	ServiceIP string   // of the Service kube-dns, which the kubelets hand to Pods
	Address   string   // that the production host names resolve to
	Hosts     []string // production host names
}

// Objects returns the objects of CoreDNS.
func Objects(options Options) ([]*unstructured.Unstructured, error) {
	hosts := append([]string{}, options.Hosts...)
	sort.Strings(hosts)
	data := struct {
		Options
		Image string
	}{Options{options.ServiceIP, options.Address, hosts}, Image}

	parsed, err := template.ParseFS(manifests, "manifests/*.yaml")
	if err != nil {
		return nil, fmt.Errorf("parse CoreDNS manifests: %w", err)
	}
	var objects []*unstructured.Unstructured
	for _, file := range parsed.Templates() {
		var text bytes.Buffer
		if err := file.Execute(&text, data); err != nil {
			return nil, fmt.Errorf("render CoreDNS manifest %s: %w", file.Name(), err)
		}
		object := &unstructured.Unstructured{}
		if err := yaml.NewYAMLOrJSONDecoder(io.Reader(&text), 4096).Decode(object); err != nil {
			return nil, fmt.Errorf("decode CoreDNS manifest %s: %w", file.Name(), err)
		}
		objects = append(objects, object)
	}
	return objects, nil
}
