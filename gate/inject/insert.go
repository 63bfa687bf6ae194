package inject

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/omnivision/omnivision/gate/compactjson"
)

// Insert is Mutate without the Pod being read and compared as a whole, which is what an injection would cost most: what
// decides is picked out of the Pod's text, and what is added was prepared. A Pod that has something of the sidecar's
// already is left to Mutate, unless it has what Mutate would give it.
func (i *Injector) Insert(ctx context.Context, request *admissionv1.AdmissionRequest, add func(path string, value []byte)) bool {
	p, ok := readPod(request.Object.Raw)
	if !ok || !isPlain(request.Namespace) {
		return false
	}
	result, err := i.decide(ctx, request, &p.Pod)
	switch {
	case err != nil:
		return false // Mutate asks once more, and says so
	case result == "":
		return true
	}
	sidecar := i.prepared.sidecar(shape{result, p.Spec.HostNetwork, p.guaranteed}, request.Namespace, workload(&p.Pod), version(&p.Pod))
	volumes := i.prepared.volumes[result]
	had := len(p.sidecars)+len(p.ours) > 0
	if had && !p.has(sidecar, volumes) {
		return false
	}
	if p.Annotations[StatusAnnotation] != string(result) {
		addStatus(p, result, add)
	}
	if len(sidecar.each) > 0 && !had {
		sidecar.addTo("/spec/initContainers", 0, p.initContainers, add)
		volumes.addTo("/spec/volumes", p.volumes, p.volumes, add)
	}
	i.count(request, result)
	return true
}

func addStatus(p *podText, result Result, add func(path string, value []byte)) {
	if p.Annotations == nil {
		add("/metadata/annotations", []byte(`{"`+StatusAnnotation+`":"`+string(result)+`"}`))
		return
	}
	add("/metadata/annotations/"+strings.ReplaceAll(StatusAnnotation, "/", "~1"), []byte(`"`+string(result)+`"`))
}

// elements are texts of a list's elements, and that of the list of them all.
type elements struct {
	each [][]byte
	list []byte
}

// addTo adds the elements at a place of a list, which has so many. A list without any may not be there at all.
func (e elements) addTo(path string, at, length int, add func(path string, value []byte)) {
	if length == 0 {
		add(path, e.list)
		return
	}
	for i, text := range e.each {
		add(path+"/"+strconv.Itoa(at+i), text)
	}
}

// podText is what an injection depends on, as the text of a Pod says. The Pod in it has no more than that: of the
// annotations, labels and owners those that are asked for, and of the containers the first one's image.
type podText struct {
	corev1.Pod
	guaranteed              bool
	initContainers, volumes int // how many there are
	sidecars, ours          []element
}

// element is one of a list, under a name of the sidecar's.
type element struct {
	at   int
	text []byte
}

// has reports whether the Pod has the sidecar and the volumes at their places, and nothing else under their names.
func (p *podText) has(sidecar, volumes elements) bool {
	return same(p.sidecars, sidecar, 0) && same(p.ours, volumes, p.volumes-len(volumes.each))
}

func same(found []element, want elements, at int) bool {
	if len(found) != len(want.each) || len(found) == 0 {
		return false
	}
	for i, f := range found {
		if f.at != at+i || !bytes.Equal(f.text, want.each[i]) {
			return false
		}
	}
	return true
}

// readPod is not ok where the text is not as API servers write it.
func readPod(text []byte) (*podText, bool) {
	p := &podText{}
	r := compactjson.New(text)
	limited, containers := true, 0
	count := func(c corev1.ResourceRequirements) {
		limited = limited && allLimited(c)
		containers++
	}
	metadata, spec := false, false // what is added is added to them
	r.Object(func(key []byte) {
		switch string(key) {
		case "metadata":
			metadata = !r.Null()
			p.readMetadata(&r)
		case "spec":
			spec = !r.Null()
			p.readSpec(&r, count)
		default:
			r.Skip()
		}
	})
	p.guaranteed = limited && containers > 0
	return p, r.Done() && metadata && spec
}

func (p *podText) readMetadata(r *compactjson.Reader) {
	r.Object(func(key []byte) {
		switch string(key) {
		case "name":
			p.Name = r.String()
		case "generateName":
			p.GenerateName = r.String()
		case "annotations":
			p.Annotations = readSome(r, corev1.MirrorPodAnnotationKey, OptOutAnnotation, StatusAnnotation)
		case "labels":
			p.Labels = readSome(r, readLabels...)
		case "ownerReferences":
			r.Array(func() { p.readOwner(r) })
		default:
			r.Skip()
		}
	})
}

// readSome reads those of a map that are asked for. It is nil of null alone.
func readSome(r *compactjson.Reader, wanted ...string) map[string]string {
	if r.Null() {
		return nil
	}
	some := map[string]string{}
	r.Object(func(key []byte) {
		for _, w := range wanted {
			if string(key) == w {
				some[w] = r.String()
				return
			}
		}
		r.Skip()
	})
	return some
}

func (p *podText) readOwner(r *compactjson.Reader) {
	var owner metav1.OwnerReference
	controls := false
	r.Object(func(key []byte) {
		switch string(key) {
		case "kind":
			owner.Kind = r.String()
		case "name":
			owner.Name = r.String()
		case "controller":
			controls = r.Bool()
		default:
			r.Skip()
		}
	})
	if controls {
		owner.Controller = &controls
		p.OwnerReferences = append(p.OwnerReferences, owner)
	}
}

func (p *podText) readSpec(r *compactjson.Reader, count func(corev1.ResourceRequirements)) {
	r.Object(func(key []byte) {
		switch string(key) {
		case "hostNetwork":
			p.Spec.HostNetwork = r.Bool()
		case "os":
			p.Spec.OS = &corev1.PodOS{Name: corev1.OSName(r.Member("name"))}
		case "initContainers":
			r.Array(func() { p.readInitContainer(r, count) })
		case "containers":
			r.Array(func() { p.readContainer(r, count) })
		case "volumes":
			r.Array(func() { p.readVolume(r) })
		default:
			r.Skip()
		}
	})
}

func (p *podText) readInitContainer(r *compactjson.Reader, count func(corev1.ResourceRequirements)) {
	start := r.Offset()
	name, _, resources := readContainer(r)
	if name == ContainerName {
		p.sidecars = append(p.sidecars, element{p.initContainers, r.From(start)})
	} else {
		count(resources)
	}
	p.initContainers++
}

func (p *podText) readContainer(r *compactjson.Reader, count func(corev1.ResourceRequirements)) {
	_, image, resources := readContainer(r)
	if count(resources); p.Spec.Containers == nil {
		p.Spec.Containers = []corev1.Container{{Image: image}}
	}
}

func readContainer(r *compactjson.Reader) (name, image string, resources corev1.ResourceRequirements) {
	r.Object(func(key []byte) {
		switch string(key) {
		case "name":
			name = r.String()
		case "image":
			image = r.String()
		case "resources":
			resources = readResources(r)
		default:
			r.Skip()
		}
	})
	return name, image, resources
}

func readResources(r *compactjson.Reader) (resources corev1.ResourceRequirements) {
	r.Object(func(key []byte) {
		switch string(key) {
		case "limits":
			resources.Limits = readQuantities(r)
		case "requests":
			resources.Requests = readQuantities(r)
		default:
			r.Skip()
		}
	})
	return resources
}

func readQuantities(r *compactjson.Reader) corev1.ResourceList {
	list := corev1.ResourceList{}
	r.Object(func(key []byte) {
		quantity, err := resource.ParseQuantity(r.String())
		if err != nil {
			r.GiveUp()
		}
		list[corev1.ResourceName(key)] = quantity
	})
	return list
}

func (p *podText) readVolume(r *compactjson.Reader) {
	start := r.Offset()
	name := r.Member("name")
	if name == logsVolume || name == bufferVolume || name == configVolume {
		p.ours = append(p.ours, element{p.volumes, r.From(start)})
	}
	p.volumes++
}

// prepared is what Pods get, in JSON.
type prepared struct {
	sidecars map[shape]template
	volumes  map[Result]elements
}

// template is a sidecar's text in four parts, between which namespace, workload and version belong.
type template [4][]byte

// prepare writes the sidecars of all shapes, and the volumes.
func (c Config) prepare() (p prepared, err error) {
	p = prepared{map[shape]template{}, map[Result]elements{}}
	for _, result := range []Result{Injected, InjectedHostPath} {
		if p.volumes[result], err = elementsOf(c.volumes(result)); err != nil {
			return p, err
		}
		for i := range 4 {
			shape := shape{result, i&1 != 0, i&2 != 0}
			if p.sidecars[shape], err = c.template(shape); err != nil {
				return p, err
			}
		}
	}
	return p, nil
}

func elementsOf(volumes []corev1.Volume) (e elements, err error) {
	for _, v := range volumes {
		text, err := json.Marshal(v)
		if err != nil {
			return e, fmt.Errorf("write the volume %s: %w", v.Name, err)
		}
		e.each = append(e.each, text)
	}
	e.list = fmt.Appendf(nil, "[%s]", bytes.Join(e.each, []byte(",")))
	return e, nil
}

func (c Config) template(shape shape) (t template, err error) {
	places := []string{"{namespace}", "{workload}", "{version}"} // none of which an image, a cluster or a region can be
	rest, err := json.Marshal(c.sidecar(shape, places[0], places[1], places[2]))
	if err != nil {
		return t, fmt.Errorf("write the sidecar: %w", err)
	}
	for _, place := range places {
		if bytes.Count(rest, []byte(place)) != 1 {
			return t, fmt.Errorf("the sidecar's configuration contains %s", place)
		}
	}
	for i, place := range places {
		t[i], rest, _ = bytes.Cut(rest, []byte(place))
	}
	t[len(places)] = rest
	return t, nil
}

// sidecar is the text of a Pod's sidecar, as a list of one; of none for a Pod that gets none.
func (p prepared) sidecar(shape shape, namespace, workload, version string) elements {
	t, injected := p.sidecars[shape]
	if !injected {
		return elements{}
	}
	b := append(make([]byte, 0, 2<<10), '[')
	for i, value := range []string{namespace, workload, version} {
		b = append(append(b, t[i]...), value...)
	}
	b = append(append(b, t[3]...), ']')
	return elements{[][]byte{b[1 : len(b)-1]}, b}
}
