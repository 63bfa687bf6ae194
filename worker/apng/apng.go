// Package apng writes an animated PNG as a stream, one frame at a time
// (https://www.w3.org/TR/png-3/#apng-frame-based-animation). Each frame is
// written whole, as one fcTL and one data chunk, so that a reader may show it
// as soon as it has arrived and may use it without the frames before it.
//
// Frames are 8-bit RGB and cover the whole picture: no palette, no
// transparency, no difference between frames. It writes; it does not read.
package apng

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
)

// BytesPerPixel of the frames that an Encoder takes: red, green, blue.
const BytesPerPixel = 3

const signature = "\x89PNG\r\n\x1a\n"

// Header describes an animation before its first frame exists.
type Header struct {
	Width, Height int
	Frames        int
	FPS           int
}

// Encoder writes one animation. It is not safe for concurrent use.
type Encoder struct {
	w        io.Writer
	header   Header
	written  int
	sequence uint32 // counts fcTL and fdAT chunks together, section 11.3.6
	filter   filter
	data     bytes.Buffer
	deflate  *zlib.Writer
}

// NewEncoder writes what precedes the first frame.
func NewEncoder(w io.Writer, h Header) (*Encoder, error) {
	if h.Width < 1 || h.Height < 1 || h.Frames < 1 || h.FPS < 1 || h.FPS > math.MaxUint16 {
		return nil, fmt.Errorf("starting an animated PNG: impossible header %+v", h)
	}
	e := &Encoder{w: w, header: h, filter: newFilter(h.Width)}
	// Filtered rows compress about as well at the fastest level, at a third of
	// the time.
	deflate, err := zlib.NewWriterLevel(&e.data, zlib.BestSpeed)
	if err != nil {
		return nil, fmt.Errorf("starting an animated PNG: %w", err)
	}
	e.deflate = deflate

	var out bytes.Buffer
	out.WriteString(signature)
	writeChunk(&out, "IHDR", be32(uint32(h.Width)), be32(uint32(h.Height)), []byte{8, 2, 0, 0, 0}) // 8 bit, RGB
	writeChunk(&out, "acTL", be32(uint32(h.Frames)), be32(0))                                      // 0: loop for ever
	if _, err := w.Write(out.Bytes()); err != nil {
		return nil, fmt.Errorf("writing the header of an animated PNG: %w", err)
	}
	return e, nil
}

// WriteFrame writes the next frame with a single Write. pix has
// BytesPerPixel bytes a pixel, row by row.
func (e *Encoder) WriteFrame(pix []byte) error {
	h := e.header
	if e.written == h.Frames {
		return fmt.Errorf("writing frame %d of an animated PNG that was to have %d", e.written+1, h.Frames)
	}
	stride := h.Width * BytesPerPixel
	if len(pix) != stride*h.Height {
		return fmt.Errorf("writing frame %d of an animated PNG: %d bytes of pixels, want %d", e.written+1, len(pix), stride*h.Height)
	}
	e.data.Reset()
	e.deflate.Reset(&e.data)
	var above []byte
	for y := range h.Height {
		row := pix[y*stride : (y+1)*stride]
		if _, err := e.deflate.Write(e.filter.row(row, above)); err != nil {
			return fmt.Errorf("compressing frame %d: %w", e.written+1, err)
		}
		above = row
	}
	if err := e.deflate.Close(); err != nil {
		return fmt.Errorf("compressing frame %d: %w", e.written+1, err)
	}

	var out bytes.Buffer
	out.Grow(e.data.Len() + 64)
	writeChunk(&out, "fcTL",
		be32(e.next()), be32(uint32(h.Width)), be32(uint32(h.Height)), be32(0), be32(0),
		be16(1), be16(uint16(h.FPS)), // shown for 1/fps of a second
		[]byte{0, 0}) // dispose: none; blend: source
	if e.written == 0 {
		// The first frame is also the picture of readers that know no animation.
		writeChunk(&out, "IDAT", e.data.Bytes())
	} else {
		writeChunk(&out, "fdAT", be32(e.next()), e.data.Bytes())
	}
	if _, err := e.w.Write(out.Bytes()); err != nil {
		return fmt.Errorf("writing frame %d: %w", e.written+1, err)
	}
	e.written++
	return nil
}

// Close ends the animation. It refuses to make a cut stream look whole.
func (e *Encoder) Close() error {
	if e.written != e.header.Frames {
		return fmt.Errorf("ending an animated PNG after %d of %d frames: %w", e.written, e.header.Frames, ErrIncomplete)
	}
	var out bytes.Buffer
	writeChunk(&out, "IEND")
	if _, err := e.w.Write(out.Bytes()); err != nil {
		return fmt.Errorf("ending an animated PNG: %w", err)
	}
	return nil
}

// ErrIncomplete is returned by Close when frames are missing.
var ErrIncomplete = errors.New("frames are missing")

func (e *Encoder) next() uint32 {
	n := e.sequence
	e.sequence++
	return n
}

func writeChunk(out *bytes.Buffer, kind string, parts ...[]byte) {
	size := 0
	for _, p := range parts {
		size += len(p)
	}
	out.Write(be32(uint32(size)))
	start := out.Len()
	out.WriteString(kind)
	for _, p := range parts {
		out.Write(p)
	}
	out.Write(be32(crc32.ChecksumIEEE(out.Bytes()[start:])))
}

func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
func be16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }
