package fleet

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Problem is something wrong in a tree, where a person finds it.
type Problem struct {
	File    string `json:"file"`
	Line    int    `json:"line,omitempty"` // 0: the file as a whole
	Message string `json:"message"`
	Fix     string `json:"fix,omitempty"`
}

func (p Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d", p.Line)
	}
	b.WriteString(": " + p.Message)
	if p.Fix != "" {
		b.WriteString(" (" + p.Fix + ")")
	}
	return b.String()
}

// reason is an error of the file system without the path that Problem.File already has.
func reason(err error) string {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		return pathErr.Err.Error()
	}
	return err.Error()
}

var (
	yamlLine    = regexp.MustCompile(`line (\d+)(?::|,| column \d+:?) ?`)
	yamlUnknown = regexp.MustCompile(`^field (\S+) not found in type \S+$`)
)

// yamlProblem turns the parser's text into file, line and message.
func yamlProblem(file string, err error) Problem {
	text := err.Error()
	var typeErr *yaml.TypeError
	if errors.As(err, &typeErr) && len(typeErr.Errors) > 0 {
		text = typeErr.Errors[0]
	}
	text = strings.TrimPrefix(text, "yaml: ")
	p := Problem{File: file}
	if m := yamlLine.FindStringSubmatchIndex(text); m != nil {
		p.Line, _ = strconv.Atoi(text[m[2]:m[3]])
		text = text[:m[0]] + text[m[1]:]
	}
	p.Message = text
	if m := yamlUnknown.FindStringSubmatch(text); m != nil {
		p.Message, p.Fix = fmt.Sprintf("unknown key %q", m[1]), "check its spelling"
	}
	return p
}

// parse reads exactly one YAML document and refuses keys that are there twice: of those
// one would win, and not the same one for every program.
func parse(file string, src []byte) (*yaml.Node, error) {
	docs, err := parseAll(file, src)
	if err != nil {
		return nil, err
	}
	switch len(docs) {
	case 0:
		return &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Line: 1}, nil
	case 1:
		return docs[0], nil
	}
	return nil, Problem{File: file, Line: docs[1].Line, Message: "a second YAML document begins here", Fix: "keep one document in a file"}
}

func parseAll(file string, src []byte) ([]*yaml.Node, error) {
	dec := yaml.NewDecoder(bytes.NewReader(src))
	var docs []*yaml.Node
	for {
		var doc yaml.Node
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return docs, nil
		}
		if err != nil {
			return nil, yamlProblem(file, err)
		}
		if len(doc.Content) == 0 {
			continue
		}
		if p := duplicate(file, doc.Content[0]); p != nil {
			return nil, *p
		}
		docs = append(docs, doc.Content[0])
	}
}

func duplicate(file string, n *yaml.Node) *Problem {
	if n.Kind == yaml.MappingNode {
		lines := map[string]int{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i]
			if first, ok := lines[key.Value]; ok && key.Kind == yaml.ScalarNode {
				return &Problem{File: file, Line: key.Line, Message: fmt.Sprintf("key %q is already in line %d", key.Value, first), Fix: "keep one of them"}
			}
			lines[key.Value] = key.Line
		}
	}
	if n.Kind == yaml.AliasNode {
		return nil
	}
	for _, child := range n.Content {
		if p := duplicate(file, child); p != nil {
			return p
		}
	}
	return nil
}

// find follows keys of mappings and indexes of sequences; nil if the path ends early.
func find(n *yaml.Node, keys ...string) *yaml.Node {
	for _, key := range keys {
		if n = child(n, key); n == nil {
			return nil
		}
	}
	return n
}

func child(n *yaml.Node, key string) *yaml.Node {
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Kind == yaml.ScalarNode && n.Content[i].Value == key {
				return n.Content[i+1]
			}
		}
	case yaml.SequenceNode:
		if i, err := strconv.Atoi(key); err == nil && i >= 0 && i < len(n.Content) {
			return n.Content[i]
		}
	}
	return nil
}

// nearest is the line of the deepest node on the path that exists.
func nearest(n *yaml.Node, keys ...string) int {
	line := n.Line
	for _, key := range keys {
		if n = child(n, key); n == nil {
			break
		}
		line = n.Line
	}
	return line
}
