package cppn

import "math"

// rgb is linear light, 0 to 1.
type rgb [3]float32

// lab is OKLab: colours between two of it look like colours between two.
type lab [3]float32

// lexicon is what the model "knows" about words: the colours they bring. A
// prompt without any of them gets harmonious colours from its hash.
var lexicon = map[string][]uint32{
	"amber": {0x1f0a02, 0xff9d1c, 0xffe0a3}, "aurora": {0x03101f, 0x14e0a0, 0x7a4dff},
	"autumn": {0x2a0d05, 0xd1541a, 0xf6c453}, "black": {0x050507}, "blossom": {0x2b0b1d, 0xff8fb8, 0xfff0f4},
	"blue": {0x06122e, 0x2f7bff}, "candy": {0xff5fa2, 0x7df9ff, 0xfff3b0}, "cherry": {0x3a0414, 0xe0244f, 0xffc2d1},
	"city": {0x0a0d1c, 0x3b4a86, 0xffb04a}, "cloud": {0x5d7fa8, 0xe9f1fa}, "clouds": {0x5d7fa8, 0xe9f1fa},
	"copper": {0x1c0b06, 0xb8612f, 0x4fb7a0}, "coral": {0x082b3a, 0xff6f59, 0xffd6a8}, "cosmic": {0x08051c, 0x6a2bd9, 0xff7ac6},
	"dawn": {0x1b1638, 0xff8c6b, 0xffe3b8}, "desert": {0x3b1508, 0xe08a3c, 0xffe2ae}, "dream": {0x1d1140, 0xb78cff, 0xffd9f2},
	"dusk": {0x150f33, 0x7a3f8f, 0xff9a6a}, "ember": {0x120303, 0xe03c0a, 0xffb347}, "fire": {0x140202, 0xf0420c, 0xffd447},
	"forest": {0x04140c, 0x1f7a45, 0xc8e88a}, "galaxy": {0x05041a, 0x4b2bd0, 0xff8ad8}, "gold": {0x1a1003, 0xd69a1e, 0xfff0b8},
	"golden": {0x1a1003, 0xd69a1e, 0xfff0b8}, "green": {0x04170b, 0x2fbf5b}, "ice": {0x06202f, 0x58c7e8, 0xf2fcff},
	"jade": {0x04170f, 0x18a572, 0xbff5d8}, "jungle": {0x031409, 0x1d8a3a, 0xe6d74a}, "lava": {0x0d0202, 0xd92b04, 0xffa51f},
	"lavender": {0x1b1433, 0x9a7be8, 0xf1e8ff}, "midnight": {0x02030d, 0x1b2a7a, 0x8fb4ff}, "mint": {0x05241d, 0x5fe0b5, 0xeefff8},
	"moon": {0x05070f, 0x55627f, 0xf3f0e2}, "mountain": {0x0d1626, 0x50688c, 0xf0f3f6}, "nebula": {0x07031a, 0x8a2be2, 0xff6fb0},
	"neon": {0x07021a, 0xff2bd6, 0x1ff4ff}, "night": {0x02040f, 0x1c2f6e, 0xa9c1ff}, "ocean": {0x021526, 0x0b7fab, 0xb5f3ee},
	"orange": {0x260b02, 0xff7a1a}, "pink": {0x2b0618, 0xff5fa2}, "purple": {0x12062b, 0x8a3ffc}, "rain": {0x0a141f, 0x3f6a8a, 0xbcd3e0},
	"red": {0x240306, 0xe5263f}, "rose": {0x2a0713, 0xe8527c, 0xffdbe4}, "ruby": {0x1f020b, 0xc9123f, 0xff8fa6},
	"sea": {0x021a2b, 0x1190b8, 0xc4f5ee}, "silver": {0x14161c, 0x8d97a8, 0xf4f6f9}, "sky": {0x0b2a5c, 0x4da3ff, 0xeaf5ff},
	"snow": {0x1c3350, 0x9cc4e4, 0xffffff}, "space": {0x03030f, 0x32208a, 0xe86fff}, "spring": {0x0f2a12, 0x7ccf4a, 0xffc2df},
	"storm": {0x070b14, 0x3c4f73, 0xd7e3ff}, "summer": {0x07304a, 0x22b8c9, 0xffd84d}, "sun": {0x2b0f02, 0xff9a1f, 0xfff3b0},
	"sunrise": {0x1b1440, 0xff7e5f, 0xffe0a0}, "sunset": {0x1a0b33, 0xe8456b, 0xffb15c}, "teal": {0x02191c, 0x12a5a5, 0xb8f5ea},
	"tropical": {0x02242b, 0x10b8a6, 0xffc93c}, "violet": {0x10062b, 0x7f3dff, 0xe3c8ff}, "water": {0x021a2b, 0x1d8fc9, 0xc9f1ff},
	"wave": {0x03182b, 0x1583b5, 0xbdf0f2}, "waves": {0x03182b, 0x1583b5, 0xbdf0f2}, "white": {0xf7f7f5}, "winter": {0x0b1c33, 0x7fb0d9, 0xf5faff},
	"yellow": {0x2b2003, 0xffd21f},
}

const paletteSize = 1024

// maxAnchors keeps long prompts from becoming a rainbow.
const maxAnchors = 7

// palette maps a position in [0,1] to a colour, through the anchors of the
// prompt, and back to the first so that it has no seam.
func palette(prompt string, seed uint64) *[paletteSize]rgb {
	var anchors []lab
	for _, w := range words(prompt) {
		for _, c := range lexicon[w] {
			if len(anchors) < maxAnchors {
				anchors = append(anchors, toLab(c))
			}
		}
	}
	r := rng(hash(prompt) ^ seed)
	hue := 2 * math.Pi * float64(r.unit())
	for len(anchors) < 3 { // from dark to light, neighbouring hues
		light := [...]float64{0.2, 0.62, 0.9}[len(anchors)]
		chroma := [...]float64{0.07, 0.2, 0.1}[len(anchors)]
		anchors = append(anchors, lab{float32(light), float32(chroma * math.Cos(hue)), float32(chroma * math.Sin(hue))})
		hue += 0.5 + 1.1*float64(r.unit())
	}
	var p [paletteSize]rgb
	for i := range p {
		at := float32(i) / paletteSize * float32(len(anchors))
		k := int(at)
		a, b := anchors[k], anchors[(k+1)%len(anchors)]
		t := at - float32(k)
		t = t * t * (3 - 2*t)
		var mix lab
		for j := range mix {
			mix[j] = a[j] + float32((b[j]-a[j])*t)
		}
		p[i] = mix.linear()
	}
	return &p
}

// toLab and linear are Björn Ottosson's OKLab.
func toLab(hex uint32) lab {
	r, g, b := expand(byte(hex>>16)), expand(byte(hex>>8)), expand(byte(hex))
	l := math.Cbrt(0.4122214708*r + 0.5363325363*g + 0.0514459929*b)
	m := math.Cbrt(0.2119034982*r + 0.6806995451*g + 0.1073969566*b)
	s := math.Cbrt(0.0883024619*r + 0.2817188376*g + 0.6299787005*b)
	return lab{
		float32(0.2104542553*l + 0.7936177850*m - 0.0040720468*s),
		float32(1.9779984951*l - 2.4285922050*m + 0.4505937099*s),
		float32(0.0259040371*l + 0.7827717662*m - 0.8086757660*s),
	}
}

func (c lab) linear() rgb {
	L, a, b := float64(c[0]), float64(c[1]), float64(c[2])
	l := L + 0.3963377774*a + 0.2158037573*b
	m := L - 0.1055613458*a - 0.0638541728*b
	s := L - 0.0894841775*a - 1.2914855480*b
	l, m, s = l*l*l, m*m*m, s*s*s
	return rgb{
		clamp01(float32(4.0767416621*l - 3.3077115913*m + 0.2309699292*s)),
		clamp01(float32(-1.2684380046*l + 2.6097574011*m - 0.3413193965*s)),
		clamp01(float32(-0.0041960863*l - 0.7034186147*m + 1.7076147010*s)),
	}
}

// expand is sRGB's transfer function, from a byte to linear light.
func expand(b byte) float64 {
	v := float64(b) / 255
	if v <= 0.04045 {
		return v / 12.92
	}
	return math.Pow((v+0.055)/1.055, 2.4)
}

const gammaSize = 4096

// gamma is the way back, from linear light to a byte.
var gamma = func() (table [gammaSize]byte) {
	for i := range table {
		v := float64(i) / (gammaSize - 1)
		if v <= 0.0031308 {
			v *= 12.92
		} else {
			v = 1.055*math.Pow(v, 1/2.4) - 0.055
		}
		table[i] = byte(v*255 + 0.5)
	}
	return table
}()

func clamp01(v float32) float32 { return min(max(v, 0), 1) }

func sqrt32(v float32) float32 { return float32(math.Sqrt(float64(v))) }
