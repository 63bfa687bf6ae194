// Package api is the contract between the worker and whoever calls it: the
// body of POST /v1/generations, its limits, the problem documents, and the
// headers that say who answered. The worker and the ui share it; it does no
// I/O beyond reading a body.
package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// GenerationsPath is where a generation is asked for, on the worker and on the
// ui alike.
const GenerationsPath = "/v1/generations"

// ContentType of an animation: APNG, as registered by the third edition of the
// PNG specification. It is the one format that browsers play everywhere, that
// is lossless (so that equal seeds give equal bytes), and that can be sent
// frame by frame: the number of frames stands at the front and each frame is
// complete when its chunk is. A cut stream still shows the frames it has, and
// is recognisable by its missing IEND.
const ContentType = "image/apng"

// MaxSeed is the largest integer that JavaScript's numbers hold exactly; a
// larger seed would not survive a browser.
const MaxSeed = 1<<53 - 1

// Generation is a valid order for an animation.
type Generation struct {
	Prompt string `json:"prompt"`
	Seed   uint64 `json:"seed"`
	Width  int    `json:"width"`
	Height int    `json:"height"`
	Frames int    `json:"frames"`
	FPS    int    `json:"fps"`
}

// Pixels is the work that the generation asks for.
func (g Generation) Pixels() int { return g.Width * g.Height * g.Frames }

// Limits bound what one generation may cost.
type Limits struct {
	BodyBytes        int64
	PromptCharacters int
	MinSide, MaxSide int
	MaxFrames        int
	MaxFPS           int
	MaxPixels        int // width × height × frames
}

// DefaultLimits keep the longest generation at a few seconds on one CPU core.
func DefaultLimits() Limits {
	return Limits{
		BodyBytes:        16 << 10,
		PromptCharacters: 500,
		MinSide:          32,
		MaxSide:          512,
		MaxFrames:        240,
		MaxFPS:           60,
		MaxPixels:        512 * 512 * 120,
	}
}

// What a request gets that leaves a field out.
const (
	DefaultSide   = 256
	DefaultFrames = 48
	DefaultFPS    = 24
)

// Decode reads a request body. Every error is a *Problem, and one that is the
// caller's fault names every bad field, not only the first.
func Decode(body io.Reader, limits Limits) (Generation, error) {
	raw, err := io.ReadAll(io.LimitReader(body, limits.BodyBytes+1))
	if err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return Generation{}, TooLarge(tooLarge.Limit)
		}
		return Generation{}, &Problem{
			Type: TypeInvalidRequest, Title: "The request body could not be read", Status: http.StatusBadRequest,
			Detail: "The connection ended or stalled before the whole body had arrived. Send it again.", Err: err,
		}
	}
	if int64(len(raw)) > limits.BodyBytes {
		return Generation{}, TooLarge(limits.BodyBytes)
	}
	fields, problem := object(raw)
	if problem != nil {
		return Generation{}, problem
	}

	d := decoder{fields: fields}
	var g Generation
	g.Prompt = d.prompt(limits)
	g.Seed = d.seed()
	g.Width, g.Height = d.size(limits)
	g.Frames = d.integer("frames", DefaultFrames, 1, limits.MaxFrames)
	g.FPS = d.integer("fps", DefaultFPS, 1, limits.MaxFPS)
	d.unknown()
	if len(d.errors) == 0 && g.Pixels() > limits.MaxPixels {
		d.fail("frames", "%d frames of %d×%d are %d pixels, more than the %d that one generation may have; ask for fewer frames or a smaller size",
			g.Frames, g.Width, g.Height, g.Pixels(), limits.MaxPixels)
	}
	if len(d.errors) > 0 {
		return Generation{}, Invalid(d.errors...)
	}
	return g, nil
}

// object splits the body into its members, so that each can fail by name.
func object(raw []byte) (map[string]json.RawMessage, *Problem) {
	syntax := func(err error) *Problem {
		return &Problem{
			Type: TypeInvalidRequest, Title: "The request body is not a JSON object", Status: http.StatusBadRequest,
			Detail: `Send one JSON object in UTF-8, for example {"prompt":"aurora over a quiet sea","seed":7}.`, Err: err,
		}
	}
	if !utf8.Valid(raw) {
		return nil, syntax(errors.New("invalid UTF-8"))
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return nil, syntax(err)
	}
	if fields == nil {
		return nil, syntax(errors.New("the body is null"))
	}
	// null means the same as leaving the member out, but not for one we do not
	// know: that is a typing mistake either way.
	for name, value := range fields {
		if known[name] && bytes.Equal(bytes.TrimSpace(value), []byte("null")) {
			delete(fields, name)
		}
	}
	return fields, nil
}

var known = map[string]bool{
	"prompt": true, "seed": true, "width": true, "height": true, "size": true, "frames": true, "fps": true,
}

type decoder struct {
	fields map[string]json.RawMessage
	errors []FieldError
}

func (d *decoder) fail(field, format string, args ...any) {
	d.errors = append(d.errors, FieldError{Field: field, Detail: fmt.Sprintf(format, args...)})
}

func (d *decoder) prompt(limits Limits) string {
	raw, ok := d.fields["prompt"]
	if !ok {
		d.fail("prompt", "is required: say in a few words what the animation shows")
		return ""
	}
	var text string
	if err := json.Unmarshal(raw, &text); err != nil {
		d.fail("prompt", "must be a string")
		return ""
	}
	text = strings.Join(strings.Fields(text), " ") // a textarea sends line breaks
	switch n := utf8.RuneCountInString(text); {
	case n == 0:
		d.fail("prompt", "must not be empty: say in a few words what the animation shows")
	case n > limits.PromptCharacters:
		d.fail("prompt", "has %d characters; at most %d are allowed", n, limits.PromptCharacters)
	case strings.ContainsFunc(text, unicode.IsControl):
		d.fail("prompt", "must not contain control characters")
	}
	return text
}

// seed picks one when the caller has no preference; the response names it, so
// that the animation can be had again.
func (d *decoder) seed() uint64 {
	raw, ok := d.fields["seed"]
	if !ok {
		return rand.Uint64N(MaxSeed + 1)
	}
	seed, err := strconv.ParseUint(string(raw), 10, 64)
	if err != nil || seed > MaxSeed {
		d.fail("seed", "must be an integer from 0 to %d", uint64(MaxSeed))
	}
	return seed
}

// size takes width and height, or the short form size: 256 or "320x180".
func (d *decoder) size(limits Limits) (width, height int) {
	raw, ok := d.fields["size"]
	if !ok {
		return d.integer("width", DefaultSide, limits.MinSide, limits.MaxSide),
			d.integer("height", DefaultSide, limits.MinSide, limits.MaxSide)
	}
	for _, other := range []string{"width", "height"} {
		if _, both := d.fields[other]; both {
			d.fail("size", "stands for width and height together; leave out %s or size", other)
			return 0, 0
		}
	}
	text := string(raw)
	var quoted string
	if json.Unmarshal(raw, &quoted) == nil {
		text = quoted
	}
	w, h, rectangle := strings.Cut(text, "x")
	if !rectangle {
		h = w
	}
	width, errW := strconv.Atoi(w)
	height, errH := strconv.Atoi(h)
	if errW != nil || errH != nil || !within(width, limits.MinSide, limits.MaxSide) || !within(height, limits.MinSide, limits.MaxSide) {
		d.fail("size", `must be a side or "WIDTHxHEIGHT", each from %d to %d`, limits.MinSide, limits.MaxSide)
	}
	return width, height
}

func (d *decoder) integer(field string, def, low, high int) int {
	raw, ok := d.fields[field]
	if !ok {
		return def
	}
	n, err := strconv.Atoi(string(raw))
	if err != nil || !within(n, low, high) {
		d.fail(field, "must be an integer from %d to %d", low, high)
	}
	return n
}

// unknown names the members that do not belong, but not thousands of them and
// not at any length: what a caller sends comes back in the answer and the log.
func (d *decoder) unknown() {
	const most, longest = 5, 64
	named := 0
	for _, name := range slices.Sorted(maps.Keys(d.fields)) {
		if known[name] {
			continue
		}
		if named++; named > most {
			return
		}
		if runes := []rune(name); len(runes) > longest {
			name = string(runes[:longest]) + "…"
		}
		d.fail(name, "is not a field of a generation; the fields are %s", strings.Join(slices.Sorted(maps.Keys(known)), ", "))
	}
}

func within(n, low, high int) bool { return low <= n && n <= high }
