package apng

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"image/png"
	"io"
	"math/rand/v2"
	"testing"
)

// frame is what the decoder of this test gets out of a stream.
type frame struct {
	delayNum, delayDen uint16
	pix                []byte
}

type chunk struct {
	kind string
	data []byte
}

// chunks reads a PNG's chunks and checks what every reader of PNG checks.
func chunks(t *testing.T, stream []byte) []chunk {
	t.Helper()
	rest, ok := bytes.CutPrefix(stream, []byte(signature))
	if !ok {
		t.Fatal("the stream does not begin with PNG's signature")
	}
	var all []chunk
	for len(rest) > 0 {
		if len(rest) < 12 {
			t.Fatalf("%d bytes are left over", len(rest))
		}
		n := int(binary.BigEndian.Uint32(rest))
		body := rest[4 : 8+n]
		if got, want := crc32.ChecksumIEEE(body), binary.BigEndian.Uint32(rest[8+n:]); got != want {
			t.Fatalf("chunk %s has checksum %08x, want %08x", body[:4], want, got)
		}
		all = append(all, chunk{string(body[:4]), body[4:]})
		rest = rest[12+n:]
	}
	return all
}

// decode reads an animation as a browser does: it makes a PNG of each frame and
// gives that to image/png.
func decode(t *testing.T, stream []byte) (declared int, frames []frame) {
	t.Helper()
	var header []byte
	var sequence uint32
	next := func(data []byte) []byte {
		if got := binary.BigEndian.Uint32(data); got != sequence {
			t.Fatalf("sequence number %d, want %d", got, sequence)
		}
		sequence++
		return data[4:]
	}
	for i, c := range chunks(t, stream) {
		switch c.kind {
		case "IHDR":
			header = c.data
		case "acTL":
			if i != 1 || binary.BigEndian.Uint32(c.data[4:]) != 0 {
				t.Fatalf("acTL is chunk %d with %x, want chunk 1, playing for ever", i, c.data)
			}
			declared = int(binary.BigEndian.Uint32(c.data))
		case "fcTL":
			d := next(c.data)
			if !bytes.Equal(d[:8], header[:8]) || !bytes.Equal(d[8:16], make([]byte, 8)) || d[20] != 0 || d[21] != 0 {
				t.Fatalf("frame %d does not cover the picture: %x", len(frames), d)
			}
			frames = append(frames, frame{delayNum: binary.BigEndian.Uint16(d[16:]), delayDen: binary.BigEndian.Uint16(d[18:])})
		case "IDAT", "fdAT":
			if (c.kind == "IDAT") != (len(frames) == 1) {
				t.Fatalf("frame %d is in %s", len(frames), c.kind)
			}
			data := c.data
			if c.kind == "fdAT" {
				data = next(data)
			}
			frames[len(frames)-1].pix = pixels(t, header, data)
		case "IEND":
		default:
			t.Fatalf("unexpected chunk %s", c.kind)
		}
	}
	return declared, frames
}

func pixels(t *testing.T, header, data []byte) []byte {
	t.Helper()
	var still bytes.Buffer
	still.WriteString(signature)
	writeChunk(&still, "IHDR", header)
	writeChunk(&still, "IDAT", data)
	writeChunk(&still, "IEND")
	picture, err := png.Decode(&still)
	if err != nil {
		t.Fatal(err)
	}
	var pix []byte
	b := picture.Bounds()
	for y := b.Min.Y; y < b.Max.Y; y++ {
		for x := b.Min.X; x < b.Max.X; x++ {
			r, g, b, _ := picture.At(x, y).RGBA()
			pix = append(pix, byte(r>>8), byte(g>>8), byte(b>>8))
		}
	}
	return pix
}

func TestEveryFrameReadsBackAsItWasWritten(t *testing.T) {
	for name, h := range map[string]Header{
		"square":    {Width: 33, Height: 33, Frames: 5, FPS: 24},
		"one pixel": {Width: 1, Height: 1, Frames: 2, FPS: 60},
		"one frame": {Width: 8, Height: 3, Frames: 1, FPS: 1},
	} {
		t.Run(name, func(t *testing.T) {
			random := rand.New(rand.NewPCG(1, 2))
			var want [][]byte
			var stream bytes.Buffer
			e, err := NewEncoder(&stream, h)
			if err != nil {
				t.Fatal(err)
			}
			for i := range h.Frames {
				pix := make([]byte, h.Width*h.Height*BytesPerPixel)
				for k := range pix { // a slope, so that each filter wins somewhere, with noise
					pix[k] = byte(k*(i+1)/7) + byte(random.IntN(4))
				}
				want = append(want, pix)
				if err := e.WriteFrame(pix); err != nil {
					t.Fatal(err)
				}
			}
			if err := e.Close(); err != nil {
				t.Fatal(err)
			}
			declared, got := decode(t, stream.Bytes())
			if declared != h.Frames || len(got) != h.Frames {
				t.Fatalf("the stream declares %d frames and has %d, want %d", declared, len(got), h.Frames)
			}
			for i := range got {
				if !bytes.Equal(got[i].pix, want[i]) {
					t.Errorf("frame %d reads back differently", i)
				}
				if got[i].delayNum != 1 || got[i].delayDen != uint16(h.FPS) {
					t.Errorf("frame %d is shown for %d/%d s, want 1/%d", i, got[i].delayNum, got[i].delayDen, h.FPS)
				}
			}
		})
	}
}

func TestAFrameIsCompleteInTheStreamBeforeTheNextIsWritten(t *testing.T) {
	h := Header{Width: 4, Height: 4, Frames: 3, FPS: 10}
	var stream bytes.Buffer
	e, err := NewEncoder(&stream, h)
	if err != nil {
		t.Fatal(err)
	}
	for i := range h.Frames {
		if err := e.WriteFrame(make([]byte, 48)); err != nil {
			t.Fatal(err)
		}
		if declared, got := decode(t, stream.Bytes()); declared != 3 || len(got) != i+1 || got[i].pix == nil {
			t.Errorf("after frame %d the stream has %d of %d frames", i+1, len(got), declared)
		}
	}
}

func TestAnIncompleteAnimationIsNotEnded(t *testing.T) {
	var stream bytes.Buffer
	e, err := NewEncoder(&stream, Header{Width: 1, Height: 1, Frames: 2, FPS: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.WriteFrame([]byte{1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); !errors.Is(err, ErrIncomplete) || bytes.Contains(stream.Bytes(), []byte("IEND")) {
		t.Errorf("Close = %v, want ErrIncomplete and no IEND", err)
	}
}

func TestImpossibleFramesAreRefused(t *testing.T) {
	if _, err := NewEncoder(io.Discard, Header{Width: 1, Height: 1, Frames: 1}); err == nil {
		t.Error("0 frames per second were accepted")
	}
	e, err := NewEncoder(io.Discard, Header{Width: 2, Height: 2, Frames: 1, FPS: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.WriteFrame(make([]byte, 11)); err == nil {
		t.Error("a frame with a byte too few was accepted")
	}
	if err := e.WriteFrame(make([]byte, 12)); err != nil {
		t.Error(err)
	}
	if err := e.WriteFrame(make([]byte, 12)); err == nil {
		t.Error("a frame more than declared was accepted")
	}
}

type brokenPipe struct{ after int }

var errPipe = errors.New("broken pipe")

func (b *brokenPipe) Write(p []byte) (int, error) {
	if b.after--; b.after < 0 {
		return 0, errPipe
	}
	return len(p), nil
}

func TestErrorsOfTheWriterComeThrough(t *testing.T) {
	for after := range 3 {
		e, err := NewEncoder(&brokenPipe{after}, Header{Width: 1, Height: 1, Frames: 1, FPS: 1})
		if err == nil {
			err = e.WriteFrame([]byte{1, 2, 3})
		}
		if err == nil {
			err = e.Close()
		}
		if !errors.Is(err, errPipe) {
			t.Errorf("with a pipe that breaks after %d writes the error is %v", after, err)
		}
	}
}

func BenchmarkWriteFrame(b *testing.B) {
	h := Header{Width: 256, Height: 256, Frames: 1 << 30, FPS: 24}
	pix := make([]byte, h.Width*h.Height*BytesPerPixel)
	for i := range pix {
		x, y := i/3%h.Width, i/3/h.Width
		pix[i] = byte((x*x+y*y*(1+i%3))/300) + byte(i*7919>>5&1)
	}
	e, err := NewEncoder(io.Discard, h)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(pix)))
	for b.Loop() {
		if err := e.WriteFrame(pix); err != nil {
			b.Fatal(err)
		}
	}
}
