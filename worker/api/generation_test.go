package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestDecodeNamesEveryBadField(t *testing.T) {
	const p = `"prompt":"x",`
	cases := map[string]struct {
		body   string
		status int
		fields []string
	}{
		"empty body":              {``, 400, nil},
		"not an object":           {`["prompt"]`, 400, nil},
		"null":                    {`null`, 400, nil},
		"two objects":             {`{"prompt":"x"}{}`, 400, nil},
		"not UTF-8":               {"{\"prompt\":\"\xff\"}", 400, nil},
		"body beyond the limit":   {`{"prompt":"` + strings.Repeat("x", 17<<10) + `"}`, 413, nil},
		"no prompt":               {`{}`, 400, []string{"prompt"}},
		"null prompt":             {`{"prompt":null}`, 400, []string{"prompt"}},
		"blank prompt":            {`{"prompt":" \n\t "}`, 400, []string{"prompt"}},
		"prompt is a number":      {`{"prompt":7}`, 400, []string{"prompt"}},
		"prompt too long":         {`{"prompt":"` + strings.Repeat("é", 501) + `"}`, 400, []string{"prompt"}},
		"control characters":      {`{"prompt":"a\u0007b"}`, 400, []string{"prompt"}},
		"seed negative":           {`{` + p + `"seed":-1}`, 400, []string{"seed"}},
		"seed too large for JS":   {`{` + p + `"seed":9007199254740992}`, 400, []string{"seed"}},
		"seed is a fraction":      {`{` + p + `"seed":1.5}`, 400, []string{"seed"}},
		"seed is a string":        {`{` + p + `"seed":"1"}`, 400, []string{"seed"}},
		"width too small":         {`{` + p + `"width":31}`, 400, []string{"width"}},
		"height too large":        {`{` + p + `"height":513}`, 400, []string{"height"}},
		"size and width":          {`{` + p + `"size":64,"width":64}`, 400, []string{"size"}},
		"size is no size":         {`{` + p + `"size":"64x"}`, 400, []string{"size"}},
		"size too large":          {`{` + p + `"size":"64x4096"}`, 400, []string{"size"}},
		"frames zero":             {`{` + p + `"frames":0}`, 400, []string{"frames"}},
		"frames overflow":         {`{` + p + `"frames":99999999999999999999}`, 400, []string{"frames"}},
		"fps too large":           {`{` + p + `"fps":61}`, 400, []string{"fps"}},
		"more pixels than may be": {`{` + p + `"size":512,"frames":121}`, 400, []string{"frames"}},
		"a typing mistake":        {`{` + p + `"frame":12}`, 400, []string{"frame"}},
		"null typing mistake":     {`{` + p + `"frame":null}`, 400, []string{"frame"}},
		"all at once":             {`{"seed":-1,"fps":0,"size":1,"z":1}`, 400, []string{"prompt", "seed", "size", "fps", "z"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := Decode(strings.NewReader(c.body), DefaultLimits())
			var p *Problem
			if !errors.As(err, &p) {
				t.Fatalf("error is %v, want a *Problem", err)
			}
			var fields []string
			for _, e := range p.Errors {
				fields = append(fields, e.Field)
				if !strings.Contains(p.Detail, e.Field+" "+e.Detail) {
					t.Errorf("detail %q does not say that %s %s", p.Detail, e.Field, e.Detail)
				}
			}
			if p.Status != c.status || !slices.Equal(fields, c.fields) {
				t.Errorf("got %d that names %q, want %d that names %q", p.Status, fields, c.status, c.fields)
			}
			if p.Detail == "" {
				t.Error("the problem does not say what to do")
			}
		})
	}
}

func TestDecodeFillsInWhatWasLeftOut(t *testing.T) {
	full := Generation{Prompt: "a b", Seed: 7, Width: 256, Height: 256, Frames: 48, FPS: 24}
	with := func(change func(*Generation)) Generation { g := full; change(&g); return g }
	cases := map[string]struct {
		body string
		want Generation
	}{
		"only a prompt":      {`{"prompt":" a\r\n b ","seed":7}`, full},
		"null is left out":   {`{"prompt":"a b","seed":7,"frames":null,"size":null}`, full},
		"square":             {`{"prompt":"a b","seed":7,"size":64}`, with(func(g *Generation) { g.Width, g.Height = 64, 64 })},
		"square as a string": {`{"prompt":"a b","seed":7,"size":"64"}`, with(func(g *Generation) { g.Width, g.Height = 64, 64 })},
		"rectangle":          {`{"prompt":"a b","seed":7,"size":"64x32"}`, with(func(g *Generation) { g.Width, g.Height = 64, 32 })},
		"width alone":        {`{"prompt":"a b","seed":7,"width":64}`, with(func(g *Generation) { g.Width = 64 })},
		"the largest seed":   {`{"prompt":"a b","seed":9007199254740991}`, with(func(g *Generation) { g.Seed = MaxSeed })},
		"the most pixels":    {`{"prompt":"a b","seed":7,"size":512,"frames":120}`, with(func(g *Generation) { g.Width, g.Height, g.Frames = 512, 512, 120 })},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got, err := Decode(strings.NewReader(c.body), DefaultLimits()); err != nil || got != c.want {
				t.Errorf("Decode = %+v, %v; want %+v", got, err, c.want)
			}
		})
	}
}

func TestSeedsThatNobodyChoseDiffer(t *testing.T) {
	a, err1 := Decode(strings.NewReader(`{"prompt":"x"}`), DefaultLimits())
	b, err2 := Decode(strings.NewReader(`{"prompt":"x"}`), DefaultLimits())
	if err1 != nil || err2 != nil || a.Seed == b.Seed || a.Seed > MaxSeed {
		t.Errorf("seeds %d and %d (%v, %v), want two different ones up to %d", a.Seed, b.Seed, err1, err2, uint64(MaxSeed))
	}
}

func TestTheAnswerStaysShortHoweverManyFieldsAreUnknown(t *testing.T) {
	var body strings.Builder
	body.WriteString(`{"prompt":"x"`)
	for i := range 1000 {
		fmt.Fprintf(&body, `,"%d":1`, i)
	}
	body.WriteString(`,"` + strings.Repeat("é", 1000) + `":1}`)
	_, err := Decode(strings.NewReader(body.String()), DefaultLimits())
	var p *Problem
	if !errors.As(err, &p) || len(p.Errors) != 5 || len(p.Detail) > 2000 {
		t.Errorf("got %v, want a short problem", err)
	}
}

func TestIdentityRefusesWhatIsNoEvidence(t *testing.T) {
	digest := "sha256:" + strings.Repeat("0a", 32)
	cases := map[string]struct {
		in   Identity
		want string // of the error
	}{
		"nothing known":       {Identity{}, ""},
		"complete":            {Identity{"us-west-2", "cluster-aws", "1.0.0+x", "abc", digest}, ""},
		"digest of a tag":     {Identity{Digest: "latest"}, "image digest"},
		"digest in capitals":  {Identity{Digest: strings.ToUpper(digest)}, "image digest"},
		"header in a cluster": {Identity{Cluster: "a\r\nX-Evil: 1"}, "cluster"},
		"region too long":     {Identity{Region: strings.Repeat("r", 129)}, "region"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := c.in.Validate()
			switch {
			case c.want == "" && (err != nil || got.Region == "" || got.Digest == ""):
				t.Errorf("Validate = %+v, %v; want a complete identity", got, err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("error is %v, want one that names the %s", err, c.want)
			}
		})
	}
}

// FuzzDecode looks for a body that gets past a limit, that fails without being
// told why, or that does not mean the same when it is sent again.
func FuzzDecode(f *testing.F) {
	for _, seed := range []string{
		`{"prompt":"aurora","seed":7,"size":"64x32","frames":2,"fps":60}`, `{"prompt":"x","width":32,"height":512}`,
		`{"prompt":"","fps":1e2}`, `{"PROMPT":"x"}`, `{"prompt":"\ud800","seed":-0}`, `{"size":{}}`, "\xff", `[]`, `{"prompt":"x","size":"+64"}`,
	} {
		f.Add([]byte(seed))
	}
	limits := DefaultLimits()
	f.Fuzz(func(t *testing.T, body []byte) {
		g, err := Decode(bytes.NewReader(body), limits)
		if err != nil {
			var p *Problem
			if !errors.As(err, &p) || p.Status < 400 || p.Status > 499 || p.Detail == "" {
				t.Fatalf("error %#v is not a client's problem with a detail", err)
			}
			return
		}
		if g.Width < limits.MinSide || g.Width > limits.MaxSide || g.Height < limits.MinSide || g.Height > limits.MaxSide ||
			g.Frames < 1 || g.Frames > limits.MaxFrames || g.FPS < 1 || g.FPS > limits.MaxFPS || g.Pixels() > limits.MaxPixels ||
			g.Seed > MaxSeed || g.Prompt == "" {
			t.Fatalf("%q got past the limits: %+v", body, g)
		}
		again, err := json.Marshal(g)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := Decode(bytes.NewReader(again), limits); err != nil || back != g {
			t.Fatalf("%s reads back as %+v, %v", again, back, err)
		}
	})
}
