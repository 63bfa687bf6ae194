package compactjson

import (
	"reflect"
	"strings"
	"testing"

	kjson "sigs.k8s.io/json"
)

// document has every kind of value that the package reads.
type document struct {
	Word   string            `json:"word"`
	Flag   bool              `json:"flag"`
	Maybe  *bool             `json:"maybe"`
	Inner  *document         `json:"inner"`
	List   []document        `json:"list"`
	Labels map[string]string `json:"labels"`
}

func read(text []byte) (d document, done bool) {
	r := New(text)
	d.read(&r)
	return d, r.Done()
}

func (d *document) read(r *Reader) {
	r.Object(func(key []byte) {
		switch string(key) {
		case "word":
			d.Word = r.String()
		case "flag":
			d.Flag = r.Bool()
		case "maybe":
			if !r.Null() {
				yes := r.Bool()
				d.Maybe = &yes
			}
		case "inner":
			if !r.Null() {
				d.Inner = &document{}
				d.Inner.read(r)
			}
		case "list":
			if !r.Null() {
				d.List = []document{}
				r.Array(func() {
					var element document
					element.read(r)
					d.List = append(d.List, element)
				})
			}
		case "labels":
			if !r.Null() {
				d.Labels = map[string]string{}
				r.Object(func(key []byte) { d.Labels[string(key)] = r.String() })
			}
		default:
			r.Skip()
		}
	})
}

func strict(text []byte) (d document, err error) {
	problems, err := kjson.UnmarshalStrict(text, &d, kjson.DisallowDuplicateFields)
	if err == nil && len(problems) > 0 {
		err = problems[0]
	}
	return d, err
}

const whole = `{"word":"a","flag":true,"maybe":false,"inner":{"word":null,"list":[]},"list":[{"word":"b"},null,{}],"labels":{"a/b":"c","d":""},` +
	`"unknown":{"a":[1,-0.5e+3,"\u00e9\"ü",true,false,null,{"b":{}}],"a":1},"Word":"of another key"}`

func TestWhatAPIServersWriteIsRead(t *testing.T) {
	for name, text := range map[string]string{
		"every kind of value": whole, "with a line's end": whole + "\n", "nothing": `{}`, "null": `null`, "nulls": `{"flag":null,"maybe":null,"inner":null,"list":null,"labels":null}`,
	} {
		got, done := read([]byte(text))
		want, err := strict([]byte(text))
		if err != nil || !done || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: read %t as %+v, exactly %+v (%v)", name, done, got, want, err)
		}
	}
}

// Two readers that disagree about a review are a way around the gate: what this one does not know for sure it leaves.
func TestTheRestIsLeftToTheExactReader(t *testing.T) {
	for name, text := range map[string]string{
		"a key twice":              `{"word":"a","word":"b"}`,
		"a label twice":            `{"labels":{"a":"b","a":"c"}}`,
		"an unknown key twice":     `{"x":1,"x":2}`,
		"a key behind an escape":   `{"\u0077ord":"a"}`,
		"an escape in a value":     `{"word":"\u0061"}`,
		"not ASCII":                `{"word":"ü"}`,
		"another document behind":  `{}{}`,
		"something behind":         `{} x`,
		"spaces":                   `{ "word":"a"}`,
		"nothing at all":           ``,
		"a cut document":           whole[:len(whole)-1],
		"a cut string":             `{"word":"a`,
		"a control character":      "{\"x\":\"\x00\"}",
		"no such escape":           `{"x":"\x"}`,
		"half a character":         `{"x":"\u12"}`,
		"a comma too many":         `{"x":1,}`,
		"a comma too many in list": `{"list":[{},]}`,
		"no comma":                 `{"list":[{}{}]}`,
		"no colon":                 `{"x"1}`,
		"no such word":             `{"x":nul}`,
		"a leading zero":           `{"x":01}`,
		"no digits":                `{"x":-}`,
		"no fraction":              `{"x":1.}`,
		"no exponent":              `{"x":1e}`,
		"another type":             `{"word":1}`,
		"a string for a flag":      `{"flag":"true"}`,
		"a list for an object":     `{"inner":[]}`,
		"an object for a list":     `{"list":{}}`,
		"too deep":                 `{"x":` + strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth) + `}`,
		"the end of another":       `{"list":[}`,
		"too many keys":            `{"labels":{` + manyLabels(maxKeys+1) + `}}`,
	} {
		if got, done := read([]byte(text)); done {
			t.Errorf("%s is read as %+v", name, got)
		}
	}
}

func manyLabels(n int) string {
	var labels []string
	for i := range n {
		labels = append(labels, `"`+strings.Repeat("a", i+1)+`":""`)
	}
	return strings.Join(labels, ",")
}

func TestTextOfAValueCanBeHad(t *testing.T) {
	r := New([]byte(`{"a":{"b":[1]},"c":2}`))
	var texts []string
	r.Object(func([]byte) {
		start := r.Offset()
		r.Skip()
		texts = append(texts, string(r.From(start)))
	})
	if !r.Done() || !reflect.DeepEqual(texts, []string{`{"b":[1]}`, "2"}) {
		t.Errorf("values %q", texts)
	}
}

// Whatever is read is what the exact reader reads, and it refuses none of it.
func FuzzReader(f *testing.F) {
	for _, text := range []string{whole, `{"word":"a","word":"b"}`, `{"Word":"a"}`, `{"inner":{"inner":{"maybe":true}}}`, `{"x":[1,2.5e-3],"labels":{"a":"b"}}`, `null`, `{"x":"\ud800"}`} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		got, done := read(text)
		if !done {
			return
		}
		if want, err := strict(text); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q is read as %+v, exactly %+v (%v)", text, got, want, err)
		}
	})
}
