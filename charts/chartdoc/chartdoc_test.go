package chartdoc_test

import (
	"strings"
	"testing"

	"github.com/omnivision/omnivision/charts/chartdoc"
)

func TestTableTellsKeyTypeDefaultAndDescriptionInOrder(t *testing.T) {
	values, err := chartdoc.Values([]byte(`
# About the file.

# -- A name.
name: ""
deep:
  # Not for users.
  # -- Either a
  # or b.
  choice: a|b
  limits:
    # -- GPUs.
    nvidia.com/gpu: 1
  # -- A list.
  list: [x, {y1: 2}]
`))
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Join([]string{
		"| Key | Type | Default | Description |",
		"|-----|------|---------|-------------|",
		"| `name` | string | `\"\"` | A name. |",
		"| `deep.choice` | string | `\"a\\|b\"` | Either a or b. |",
		"| `deep.limits.\"nvidia.com/gpu\"` | int | `1` | GPUs. |",
		"| `deep.list` | list | `[\"x\",{\"y1\":2}]` | A list. |",
		"",
	}, "\n")
	if got := chartdoc.Table(values); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestKeyWithoutDescriptionIsRefused(t *testing.T) {
	_, err := chartdoc.Values([]byte("deep:\n  # no dashes\n  forgotten: 1\n"))
	if err == nil || !strings.Contains(err.Error(), "deep.forgotten") || !strings.Contains(err.Error(), "line 3") {
		t.Errorf("got %v", err)
	}
}
