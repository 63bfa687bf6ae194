package propose

import (
	"regexp"
	"strings"
	"unicode"
)

// ansi are the escape sequences that colour a terminal (ECMA-48, control sequences).
var ansi = regexp.MustCompile(`\x1b\[[0-?]*[ -/]*[@-~]`)

// blockMark begins each line of a block: no line is a fence, nor one of those that programs
// look for in a pull request's text.
const blockMark = "│ "

// Block shows lines that may be anybody's as a code block: what Code is for a value. Long
// lines are cut; a text with line breaks becomes several lines.
func Block(lines []string) string {
	var shown []string
	longest := 2
	for _, text := range lines {
		for line := range strings.SplitSeq(strings.TrimRight(text, "\r\n"), "\n") {
			line = plain(line)
			longest = max(longest, longestRun(line))
			shown = append(shown, blockMark+line)
		}
	}
	// https://spec.commonmark.org/0.31.2/#fenced-code-blocks: it ends at as many backticks.
	fence := strings.Repeat("`", longest+1)
	return fence + "text\n" + strings.Join(shown, "\n") + "\n" + fence + "\n"
}

// plain is a line without what colours, hides or reorders characters.
func plain(line string) string {
	line = strings.Map(func(r rune) rune {
		switch {
		case r == '\t':
			return r
		case unicode.IsSpace(r) || unicode.IsControl(r):
			return ' '
		case unicode.Is(unicode.Cf, r) || r == unicode.ReplacementChar:
			return -1
		}
		return r
	}, ansi.ReplaceAllString(line, ""))
	line = strings.TrimRight(line, " \t")
	if runes := []rune(line); len(runes) > maxValue {
		line = string(runes[:maxValue-1]) + "…"
	}
	return line
}
