package logconfig

import (
	"bufio"
	"bytes"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	fluentbit "github.com/fluent/fluent-operator/v3/apis/fluentbit/v1alpha2"
	"github.com/fluent/fluent-operator/v3/apis/fluentbit/v1alpha2/plugins"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/omnivision/omnivision/gate/inject"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const manifests = "../../omnivision-gitops/components/fluent-operator/manifests"

// tree holds the CRs of the tree, read strictly: a field that the operator does not know is an error.
type tree struct {
	config  fluentbit.ClusterFluentBitConfig
	bits    fluentbit.FluentBitList
	inputs  fluentbit.ClusterInputList
	filters fluentbit.ClusterFilterList
	outputs fluentbit.ClusterOutputList
	parsers fluentbit.ClusterParserList
	multi   fluentbit.ClusterMultilineParserList
}

func readTree(t testing.TB) (found tree) {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := fluentbit.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	files, err := filepath.Glob(filepath.Join(manifests, "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no manifests: %v", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for documents := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text))); ; {
			document, err := documents.Read()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(document), "apiVersion: fluentbit.fluent.io/v1alpha2") {
				continue
			}
			object, _, err := decoder.Decode(document, nil, nil)
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			found.add(t, object)
		}
	}
	return found
}

func (f *tree) add(t testing.TB, object runtime.Object) {
	t.Helper()
	switch o := object.(type) {
	case *fluentbit.ClusterFluentBitConfig:
		f.config = *o
	case *fluentbit.FluentBit:
		f.bits.Items = append(f.bits.Items, *o)
	case *fluentbit.ClusterInput:
		f.inputs.Items = append(f.inputs.Items, *o)
	case *fluentbit.ClusterFilter:
		f.filters.Items = append(f.filters.Items, *o)
	case *fluentbit.ClusterOutput:
		f.outputs.Items = append(f.outputs.Items, *o)
	case *fluentbit.ClusterParser:
		f.parsers.Items = append(f.parsers.Items, *o)
	case *fluentbit.ClusterMultilineParser:
		f.multi.Items = append(f.multi.Items, *o)
	default:
		t.Fatalf("%T is not rendered by this test", object)
	}
}

func (f *tree) all() map[string]client.Object {
	objects := map[string]client.Object{}
	for i := range f.inputs.Items {
		objects["input "+f.inputs.Items[i].Name] = &f.inputs.Items[i]
	}
	for i := range f.filters.Items {
		objects["filter "+f.filters.Items[i].Name] = &f.filters.Items[i]
	}
	for i := range f.outputs.Items {
		objects["output "+f.outputs.Items[i].Name] = &f.outputs.Items[i]
	}
	for i := range f.parsers.Items {
		objects["parser "+f.parsers.Items[i].Name] = &f.parsers.Items[i]
	}
	return objects
}

// render is what the operator's reconciler writes into the Secret (controllers/fluentbitconfig_controller.go, v3.5.0).
func render(t testing.TB) map[string]string {
	t.Helper()
	f := readTree(t)
	loader := plugins.NewSecretLoader(nil, SourceNamespace)
	main, err := f.config.RenderMainConfigWithTargetFormat(loader, f.inputs, f.filters, f.outputs, nil, nil, nil, f.config.Spec.ConfigFileFormat)
	if err != nil {
		t.Fatal(err)
	}
	parsers, err := f.config.RenderParserConfig(loader, f.parsers, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	multi, err := f.config.RenderMultilineParserConfig(loader, f.multi, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]string{"fluent-bit.conf": main, "parsers.conf": parsers, "parsers_multiline.conf": multi}
}

// The operator's own renderer makes this of the tree's CRs; package shipper reads it from here, too.
func TestOperatorRendersTheConfigurationAsRecorded(t *testing.T) {
	for name, text := range render(t) {
		golden := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(golden, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if text != string(want) {
			t.Errorf("%s differs; look at the difference of go test ./gate/logconfig -update:\n%s", golden, text)
		}
	}
}

// A CR that no selector matches would be left out without a word.
func TestConfigurationSelectsEveryCR(t *testing.T) {
	f := readTree(t)
	for name, object := range f.all() {
		kind, _, _ := strings.Cut(name, " ")
		selector := map[string]metav1.LabelSelector{
			"input": f.config.Spec.InputSelector, "filter": f.config.Spec.FilterSelector,
			"output": f.config.Spec.OutputSelector, "parser": f.config.Spec.ParserSelector,
		}[kind]
		s, err := metav1.LabelSelectorAsSelector(&selector)
		if err != nil {
			t.Fatal(err)
		}
		if !s.Matches(labels.Set(object.GetLabels())) {
			t.Errorf("%s is selected by nothing", name)
		}
	}
	if len(f.bits.Items) != 1 || f.bits.Items[0].Spec.FluentBitConfigName != f.config.Name || f.config.Name != SourceName {
		t.Errorf("the FluentBit object does not name the configuration %s that is copied", SourceName)
	}
	if *f.config.Spec.Namespace != SourceNamespace {
		t.Errorf("the configuration is rendered into namespace %s, and copied from %s", *f.config.Spec.Namespace, SourceNamespace)
	}
	if f.bits.Items[0].Spec.NodeSelector == nil {
		t.Error("the FluentBit's DaemonSet would run on every node")
	}
}

// What the sidecar is given and what its configuration expects are one.
func TestConfigurationFitsTheInjectedSidecar(t *testing.T) {
	conf := render(t)["fluent-bit.conf"]
	for _, env := range []string{inject.EnvCluster, inject.EnvRegion, inject.EnvNamespace, inject.EnvWorkload, inject.EnvVersion, inject.EnvPod, inject.EnvUID, inject.EnvNode} {
		if !strings.Contains(conf, "${"+env+"}") {
			t.Errorf("nobody reads %s", env)
		}
	}
	for _, part := range []string{inject.LogsPath + "/*/*.log", inject.LogsPath + "/" + inject.ContainerName + "/*.log", inject.BufferPath + "/positions.db", inject.BufferPath + "/buffer", inject.ConfigPath + "/parsers.conf", "Http_Port    21020"} {
		if !strings.Contains(conf, part) {
			t.Errorf("the configuration lacks %q", part)
		}
	}
	for line := range strings.Lines(conf) {
		if _, list, ok := strings.Cut(strings.TrimSpace(line), "labels    "); ok {
			if n := strings.Count(list, ",") + 1; n > 15 {
				t.Errorf("%d labels, and Loki takes 15 (P31)", n)
			}
		}
	}
}
