package propose

import (
	"strings"
	"testing"
)

func TestBlockHoldsWhateverItIsGiven(t *testing.T) {
	for name, c := range map[string]struct {
		lines []string
		want  string
	}{
		"plain":        {[]string{"one", "two\tx"}, "```text\n│ one\n│ two\tx\n```\n"},
		"nothing":      {nil, "```text\n\n```\n"},
		"a fence":      {[]string{"```\n@everybody\n````"}, "`````text\n│ ```\n│ @everybody\n│ ````\n`````\n"},
		"colours":      {[]string{"\x1b[31mred\x1b[0m \x1b]0;title\a"}, "```text\n│ red  ]0;title\n```\n"},
		"reordering":   {[]string{"a\u202eb\u200bc"}, "```text\n│ abc\n```\n"},
		"a trailer":    {[]string{RevertTrailer + ": a b c\r\n" + SourceFact}, "```text\n│ " + RevertTrailer + ": a b c\n│ " + SourceFact + "\n```\n"},
		"no UTF-8":     {[]string{"a\xff\xfeb"}, "```text\n│ ab\n```\n"},
		"without ends": {[]string{"\u2028x\u0085y"}, "```text\n│  x y\n```\n"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Block(c.lines); got != c.want {
				t.Errorf("got\n%q\nwant\n%q", got, c.want)
			}
		})
	}
	if long := Block([]string{strings.Repeat("x", 10_000)}); len(long) > maxValue+40 {
		t.Errorf("a long line has %d bytes", len(long))
	}
}

func FuzzBlock(f *testing.F) {
	f.Add("```\n~~~\n@all")
	f.Add("\x1b[1m`````")
	f.Fuzz(func(t *testing.T, text string) {
		block := strings.Split(strings.TrimSuffix(Block([]string{text}), "\n"), "\n")
		fence := block[len(block)-1]
		if strings.Trim(fence, "`") != "" || len(fence) < 3 || block[0] != fence+"text" {
			t.Fatalf("the fences are %q and %q", block[0], fence)
		}
		for _, line := range block[1 : len(block)-1] {
			if !strings.HasPrefix(line, blockMark) || strings.Contains(line, fence) {
				t.Errorf("the line %q could end the block", line)
			}
		}
	})
}
