// Package chartdoc makes the table of a chart's values from the comments in its
// values.yaml, in the style of helm-docs: a comment that begins with "# --"
// describes the key below it, up to the next line that is no comment.
//
// It knows YAML and Markdown and nothing of Helm.
package chartdoc

import (
	"encoding/json"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Value is one documented key.
type Value struct {
	// Key is the path of the value, such as ui.expose.type. A part that has dots
	// itself is in quotes.
	Key         string
	Type        string
	Default     string
	Description string
}

// Values lists the documented keys in the file's order. A key whose value has
// neither keys of its own nor a description is an error: nobody would know what
// it is for.
func Values(data []byte) ([]Value, error) {
	var document yaml.Node
	if err := yaml.Unmarshal(data, &document); err != nil {
		return nil, fmt.Errorf("reading the values: %w", err)
	}
	if len(document.Content) != 1 || document.Content[0].Kind != yaml.MappingNode {
		return nil, fmt.Errorf("reading the values: they are no mapping")
	}
	return list("", document.Content[0])
}

func list(prefix string, mapping *yaml.Node) ([]Value, error) {
	var values []Value
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		key, node := mapping.Content[i], mapping.Content[i+1]
		path := join(prefix, key.Value)
		text, documented := description(key.HeadComment)
		switch {
		case documented:
			value, err := describe(path, node)
			if err != nil {
				return nil, err
			}
			value.Description = text
			values = append(values, value)
		case node.Kind == yaml.MappingNode && len(node.Content) > 0:
			below, err := list(path, node)
			if err != nil {
				return nil, err
			}
			values = append(values, below...)
		default:
			return nil, fmt.Errorf("line %d: %s has no description: write `# -- what it is for` above it", key.Line, path)
		}
	}
	return values, nil
}

func join(prefix, key string) string {
	if strings.Contains(key, ".") {
		key = `"` + key + `"`
	}
	if prefix == "" {
		return key
	}
	return prefix + "." + key
}

// description returns what follows the last "# --" of a comment.
func description(comment string) (string, bool) {
	at := strings.LastIndex(comment, "# --")
	if at < 0 {
		return "", false
	}
	var words []string
	for line := range strings.Lines(comment[at+len("# --"):]) {
		words = append(words, strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(line), "#")))
	}
	return strings.TrimSpace(strings.Join(words, " ")), true
}

func describe(path string, node *yaml.Node) (Value, error) {
	var content any
	if err := node.Decode(&content); err != nil {
		return Value{}, fmt.Errorf("line %d: %s: %w", node.Line, path, err)
	}
	text, err := json.Marshal(content)
	if err != nil {
		return Value{}, fmt.Errorf("line %d: %s: %w", node.Line, path, err)
	}
	kind := map[string]string{"!!str": "string", "!!int": "int", "!!float": "float", "!!bool": "bool", "!!seq": "list", "!!map": "object", "!!null": "null"}[node.ShortTag()]
	return Value{Key: path, Type: kind, Default: string(text)}, nil
}

// Table is the Markdown table of values.
func Table(values []Value) string {
	var b strings.Builder
	b.WriteString("| Key | Type | Default | Description |\n|-----|------|---------|-------------|\n")
	for _, v := range values {
		fmt.Fprintf(&b, "| `%s` | %s | `%s` | %s |\n", cell(v.Key), v.Type, cell(v.Default), cell(v.Description))
	}
	return b.String()
}

// cell keeps a text from ending its table cell.
func cell(text string) string { return strings.ReplaceAll(text, "|", `\|`) }
