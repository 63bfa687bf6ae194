package webhook

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/omnivision/omnivision/gate/compactjson"
)

// readCompact reads a review that is written as API servers write them, which costs a fraction of what the exact reader
// takes. It reads nothing that that one reads in another way or refuses; ok is false where it cannot tell. object reads the
// request's object.
func readCompact(body []byte, object func(r *compactjson.Reader) *pod) (v review, ok bool) {
	r := compactjson.New(body)
	r.Object(func(key []byte) {
		switch string(key) {
		case "apiVersion":
			v.APIVersion = r.String()
		case "kind":
			v.Kind = r.String()
		case "request":
			v.Request = readRequest(&r, object)
		default:
			r.Skip()
		}
	})
	return v, r.Done()
}

func readRequest(r *compactjson.Reader, object func(r *compactjson.Reader) *pod) *request {
	if r.Null() {
		return nil
	}
	q := &request{}
	r.Object(func(key []byte) {
		switch string(key) {
		case "uid":
			q.UID = r.String()
		case "kind":
			readThree(r, "kind", &q.Kind.Group, &q.Kind.Version, &q.Kind.Kind)
		case "resource":
			readThree(r, "resource", &q.Resource.Group, &q.Resource.Version, &q.Resource.Resource)
		case "subResource":
			q.SubResource = r.String()
		case "name":
			q.Name = r.String()
		case "namespace":
			q.Namespace = r.String()
		case "operation":
			q.Operation = r.String()
		case "userInfo":
			q.UserInfo.Username = r.Member("username")
		case "dryRun":
			q.DryRun = r.Bool()
		case "object":
			start := r.Offset()
			q.Object = object(r)
			q.raw = r.From(start)
		case "oldObject":
			q.OldObject = readPod(r)
		default:
			r.Skip()
		}
	})
	return q
}

// readThree reads what names a kind or a resource of an API.
func readThree(r *compactjson.Reader, last string, group, version, name *string) {
	r.Object(func(key []byte) {
		switch string(key) {
		case "group":
			*group = r.String()
		case "version":
			*version = r.String()
		case last:
			*name = r.String()
		default:
			r.Skip()
		}
	})
}

func readPod(r *compactjson.Reader) *pod {
	if r.Null() {
		return nil
	}
	p := &pod{}
	r.Object(func(key []byte) {
		switch string(key) {
		case "metadata":
			readMetadata(r, &p.Metadata)
		case "spec":
			readSpec(r, &p.Spec)
		default:
			r.Skip()
		}
	})
	return p
}

// readNames reads of a Pod only what it is called.
func readNames(r *compactjson.Reader) *pod {
	if r.Null() {
		return nil
	}
	p := &pod{}
	r.Object(func(key []byte) {
		if string(key) != "metadata" {
			r.Skip()
			return
		}
		r.Object(func(key []byte) {
			switch string(key) {
			case "name":
				p.Metadata.Name = r.String()
			case "generateName":
				p.Metadata.GenerateName = r.String()
			default:
				r.Skip()
			}
		})
	})
	return p
}

func readMetadata(r *compactjson.Reader, m *podMetadata) {
	r.Object(func(key []byte) {
		switch string(key) {
		case "name":
			m.Name = r.String()
		case "generateName":
			m.GenerateName = r.String()
		case "labels":
			if !r.Null() {
				m.Labels = map[string]string{}
				r.Object(func(key []byte) { m.Labels[string(key)] = r.String() })
			}
		case "ownerReferences":
			m.OwnerReferences = readList(r, readOwner)
		default:
			r.Skip()
		}
	})
}

func readOwner(r *compactjson.Reader) (o metav1.OwnerReference) {
	r.Object(func(key []byte) {
		switch string(key) {
		case "apiVersion":
			o.APIVersion = r.String()
		case "kind":
			o.Kind = r.String()
		case "name":
			o.Name = r.String()
		case "uid":
			o.UID = types.UID(r.String())
		case "controller":
			o.Controller = readMaybe(r)
		case "blockOwnerDeletion":
			o.BlockOwnerDeletion = readMaybe(r)
		default:
			r.Skip()
		}
	})
	return o
}

func readMaybe(r *compactjson.Reader) *bool {
	if r.Null() {
		return nil
	}
	value := r.Bool()
	return &value
}

func readSpec(r *compactjson.Reader, s *podSpec) {
	r.Object(func(key []byte) {
		switch string(key) {
		case "serviceAccountName":
			s.ServiceAccountName = r.String()
		case "imagePullSecrets":
			s.ImagePullSecrets = readList(r, func(r *compactjson.Reader) named { return named{r.Member("name")} })
		case "initContainers":
			s.InitContainers = readList(r, readContainer)
		case "containers":
			s.Containers = readList(r, readContainer)
		case "ephemeralContainers":
			s.EphemeralContainers = readList(r, readContainer)
		case "volumes":
			s.Volumes = readList(r, readVolume)
		default:
			r.Skip()
		}
	})
}

func readContainer(r *compactjson.Reader) (c container) {
	r.Object(func(key []byte) {
		switch string(key) {
		case "name":
			c.Name = r.String()
		case "image":
			c.Image = r.String()
		default:
			r.Skip()
		}
	})
	return c
}

func readVolume(r *compactjson.Reader) (v volume) {
	r.Object(func(key []byte) {
		switch string(key) {
		case "name":
			v.Name = r.String()
		case "image":
			if !r.Null() {
				v.Image = &imageVolume{r.Member("reference")}
			}
		default:
			r.Skip()
		}
	})
	return v
}

// readList is nil of null and not of an empty list, as with the exact reader.
func readList[T any](r *compactjson.Reader, element func(r *compactjson.Reader) T) []T {
	if r.Null() {
		return nil
	}
	list := []T{}
	r.Array(func() { list = append(list, element(r)) })
	return list
}
