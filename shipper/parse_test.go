package shipper

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestLinesOfTheRuntimeInterface(t *testing.T) {
	const at = "2026-11-27T02:00:00.123456789Z"
	for _, c := range []struct {
		line, text, stream string
		partial            bool
	}{
		{at + " stdout F hello world", "hello world", "stdout", false},
		{at + " stderr P par", "par", "stderr", true},
		{at + " stdout F:tag ", "", "stdout", false},
		{at + " stdout F", "", "stdout", false},
		{at + " stdout F  two blanks", " two blanks", "stdout", false},
		{"2026-11-27T04:00:00+02:00 stdout F x", "x", "stdout", false},
	} {
		got, err := parseLine([]byte(c.line))
		if err != nil || string(got.text) != c.text || got.stream != c.stream || got.partial != c.partial {
			t.Errorf("%q: %+v, %v", c.line, got, err)
		}
	}
	for _, line := range []string{"", " ", "x", at, at + " ", at + " stdlog F x", at + " stdout X x", "2026 stdout F x", "1600-01-01T00:00:00Z stdout F x"} {
		if got, err := parseLine([]byte(line)); !errors.Is(err, errNotCRI) {
			t.Errorf("%q is taken: %+v", line, got)
		}
	}
}

func FuzzParseLine(f *testing.F) {
	f.Add([]byte("2026-11-27T02:00:00.123456789Z stdout F hello"))
	f.Add([]byte("2026-11-27T02:00:00Z stderr P:a:b \xff\x00"))
	f.Add([]byte("  F "))
	f.Fuzz(func(t *testing.T, line []byte) {
		parsed, err := parseLine(line)
		if err != nil {
			return
		}
		if parsed.stream != "stdout" && parsed.stream != "stderr" {
			t.Errorf("stream %q", parsed.stream)
		}
		if !strings.HasSuffix(string(line), string(parsed.text)) {
			t.Errorf("text %q is not the end of %q", parsed.text, line)
		}
		if back := time.Unix(0, parsed.at.UnixNano()); !back.Equal(parsed.at) {
			t.Errorf("time %v is not representable", parsed.at)
		}
	})
}

// Any bytes become one JSON string, as encoding/json reads it.
func FuzzQuote(f *testing.F) {
	f.Add([]byte("a\"\\\n\x00\x7f\xff ü\u2028"))
	f.Fuzz(func(t *testing.T, text []byte) {
		var got string
		if err := json.Unmarshal(appendQuoted(nil, text), &got); err != nil {
			t.Fatal(err)
		}
		if want := strings.ToValidUTF8(string(text), "\ufffd"); utf8.Valid(text) && got != want {
			t.Errorf("%q became %q", text, got)
		}
	})
}

func recorded(t testing.TB) (main string, read func(string) ([]byte, error)) {
	t.Helper()
	text, err := os.ReadFile("../gate/logconfig/testdata/fluent-bit.conf")
	if err != nil {
		t.Fatal(err)
	}
	return string(text), func(name string) ([]byte, error) {
		if strings.HasSuffix(name, "parsers.conf") {
			return os.ReadFile("../gate/logconfig/testdata/parsers.conf")
		}
		return nil, nil
	}
}

func TestConfigurationOfTheOperatorIsUnderstood(t *testing.T) {
	text, read := recorded(t)
	config, err := parseConfig([]byte(text), func(name string) string { return "value-of-" + name }, read)
	if err != nil {
		t.Fatal(err)
	}
	if config.Service.Grace != 5*time.Second || config.Tail.Refresh != time.Second || config.Loki.Limit != 64<<20 || config.Loki.RetryLimit != -1 || config.Loki.URL != "http://loki.logging.svc:3100/loki/api/v1/push" {
		t.Errorf("%+v", config)
	}
	if l := config.Loki.Labels; len(l) != 7 || l[0] != (Field{Name: "cluster", Value: "value-of-OMNIVISION_CLUSTER"}) || l[1] != (Field{Name: "container", Key: "container"}) {
		t.Errorf("labels %+v", l)
	}
}

func TestWhatIsNotUnderstoodIsAnError(t *testing.T) {
	text, read := recorded(t)
	for name, c := range map[string][3]string{
		"another input":         {"Name    tail", "Name    systemd", "systemd"},
		"another filter":        {"Name    multiline", "Name    lua", "lua"},
		"another output":        {"Name    loki", "Name    s3", "s3"},
		"a parser that is lost": {"Parser    omnivision-file", "Parser    nowhere", "nowhere"},
		"another line format":   {"line_format    key_value", "line_format    json", "line_format"},
		"a label of a key":      {"container=$container", "container=$user", "user"},
		"no size":               {"64M", "many", "many"},
		"no number":             {"Flush    1", "Flush    soon", "soon"},
		"not a number":          {"Flush    1", "Flush    nan", "nan"},
		"an open bracket":       {"[Output]", "[Output", "bracket"},
		"another split":         {"multiline.parser    cri", "multiline.parser    docker", "docker"},
		"no input":              {"[Input]", "[Service]", "path_key"},
		"a bad pattern":         {"/*/*.log", "/[", "pattern"},
	} {
		if !strings.Contains(text, c[0]) {
			t.Fatalf("%s: %q is not in the configuration", name, c[0])
		}
		_, err := parseConfig([]byte(strings.Replace(text, c[0], c[1], 1)), func(string) string { return "x" }, read)
		if err == nil || !strings.Contains(err.Error(), c[2]) {
			t.Errorf("%s: error %v, want one that names %q", name, err, c[2])
		}
	}
}

func FuzzParseConfig(f *testing.F) {
	text, read := recorded(f)
	f.Add(text)
	f.Add("@SET a=b\n[SERVICE]\n  Flush ${a}\n@INCLUDE x\n")
	f.Add("[INPUT]\n Name tail\n[")
	f.Fuzz(func(t *testing.T, text string) {
		config, err := parseConfig([]byte(text), func(string) string { return "v" }, read)
		if err != nil {
			return
		}
		if config.Service.Flush <= 0 || config.Service.Grace <= 0 || config.Loki.Limit < 0 || len(config.Loki.Labels) == 0 || config.Tail.Path == "" {
			t.Errorf("%+v", config)
		}
	})
}

// Ten thousand lines a second from one container are what a sidecar has to bear; this says how many it can.
func BenchmarkShip(b *testing.B) {
	l := newLoki(b)
	p := newPod(b, l)
	line := strings.Repeat("x", 120)
	var text strings.Builder
	for range b.N {
		text.WriteString(p.cri("stdout", "F", line))
	}
	p.write("main/0.log", text.String())
	b.SetBytes(int64(text.Len() / b.N))
	b.ResetTimer()
	p.start()
	l.wait("all lines", func(l *loki) bool { return len(l.took) >= b.N })
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "lines/s")
}
