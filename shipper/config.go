package shipper

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Config is the part of a Fluent Bit configuration that is understood.
type Config struct {
	Service Service
	Tail    Tail
	Traces  Traces
	File    FileParser
	Loki    Loki
}

// Service is the section of that name.
type Service struct {
	Flush, Grace         time.Duration
	HTTPServer           bool
	HTTPListen, HTTPPort string
	StoragePath          string
}

// Tail is the one input.
type Tail struct {
	Path, Exclude, PathKey string
	DB                     string
	Refresh, RotateWait    time.Duration
	BufferMax              int
	FromHead               bool
}

// Traces is the multiline filter: stack traces of which languages become one entry.
type Traces struct {
	Parsers []string
	Flush   time.Duration
}

// FileParser takes fields from the file's name; nil if there is no such filter.
type FileParser struct {
	Name   string
	Regexp *regexp.Regexp
}

// Loki is the one output.
type Loki struct {
	URL              string
	Labels, Metadata []Field
	Limit            int64
	RetryLimit       int // -1 without a limit
}

// Field is a label or an item of structured metadata: a fixed value, or the key of a record that has it.
type Field struct{ Name, Value, Key string }

// section is one of a classic configuration file.
type section struct {
	name string
	line int
	keys map[string][]string // by lower-case key
}

func (s section) get(key, otherwise string) string {
	if v := s.keys[strings.ToLower(key)]; len(v) > 0 {
		return v[len(v)-1]
	}
	return otherwise
}

const maxIncludes = 10

// parseClassic reads Fluent Bit's classic format: sections in brackets, a key and a value on each line, # at a line's
// start for comments, ${NAME} from the environment, @INCLUDE and @SET.
func parseClassic(text []byte, getenv func(string) string, include func(pattern string) ([]byte, error)) (sections []section, err error) {
	variables := map[string]string{}
	lookup := func(name string) string {
		if v, ok := variables[name]; ok {
			return v
		}
		return getenv(name)
	}
	return classicSections(text, variables, lookup, include, 0)
}

func classicSections(text []byte, variables map[string]string, lookup func(string) string, include func(string) ([]byte, error), depth int) (sections []section, err error) {
	if depth > maxIncludes {
		return nil, errors.New("more than ten files include each other: is there a circle?")
	}
	for i, raw := range strings.Split(string(text), "\n") {
		line := strings.TrimSpace(raw)
		key, value, _ := strings.Cut(line, " ")
		value = os.Expand(strings.TrimSpace(value), lookupBraces(value, lookup))
		switch {
		case line == "" || line[0] == '#':
		case strings.EqualFold(key, "@INCLUDE"):
			included, err := include(value)
			if err != nil {
				return nil, fmt.Errorf("line %d: %w", i+1, err)
			}
			more, err := classicSections(included, variables, lookup, include, depth+1)
			if err != nil {
				return nil, fmt.Errorf("line %d: %s: %w", i+1, value, err)
			}
			sections = append(sections, more...)
		case strings.EqualFold(key, "@SET"):
			name, set, ok := strings.Cut(value, "=")
			if !ok {
				return nil, fmt.Errorf("line %d: @SET wants NAME=value", i+1)
			}
			variables[strings.TrimSpace(name)] = strings.TrimSpace(set)
		case line[0] == '[':
			if line[len(line)-1] != ']' {
				return nil, fmt.Errorf("line %d: the section's name has no closing bracket: %.80q", i+1, line)
			}
			sections = append(sections, section{name: strings.ToLower(strings.TrimSpace(line[1 : len(line)-1])), line: i + 1, keys: map[string][]string{}})
		case len(sections) == 0:
			return nil, fmt.Errorf("line %d: %.80q stands before any section", i+1, line)
		case value == "":
			return nil, fmt.Errorf("line %d: key %.80q has no value", i+1, key)
		default:
			keys := sections[len(sections)-1].keys
			keys[strings.ToLower(key)] = append(keys[strings.ToLower(key)], value)
		}
	}
	return sections, nil
}

// lookupBraces leaves $name, which is a record's key, and expands ${NAME}.
func lookupBraces(value string, lookup func(string) string) func(string) string {
	return func(name string) string {
		if strings.Contains(value, "${"+name+"}") {
			return lookup(name)
		}
		return "$" + name
	}
}

// ReadConfig reads a configuration file and the parsers' files that it names. Files under a folder that is not there, as
// another machine has it, are looked for beside the main file.
func ReadConfig(path string, getenv func(string) string) (*Config, error) {
	beside := func(name string) ([]byte, error) {
		if !filepath.IsAbs(name) {
			name = filepath.Join(filepath.Dir(path), name)
		}
		text, err := os.ReadFile(name)
		if errors.Is(err, os.ErrNotExist) {
			text, err = os.ReadFile(filepath.Join(filepath.Dir(path), filepath.Base(name)))
		}
		return text, err
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	config, err := parseConfig(text, getenv, beside)
	if err != nil {
		return nil, fmt.Errorf("configuration %s: %w", path, err)
	}
	return config, nil
}

func parseConfig(text []byte, getenv func(string) string, read func(string) ([]byte, error)) (*Config, error) {
	sections, err := parseClassic(text, getenv, read)
	if err != nil {
		return nil, err
	}
	config := &Config{Loki: Loki{RetryLimit: 1}}
	parsers := map[string]*regexp.Regexp{}
	counts := map[string]int{}
	for _, s := range sections {
		kind := s.name
		if kind == "input" || kind == "filter" || kind == "output" {
			kind += " " + strings.ToLower(s.get("name", ""))
		}
		counts[kind]++
		var err error
		switch kind {
		case "service":
			err = config.service(s, getenv, read, parsers)
		case "parser":
			err = addParser(s, parsers)
		case "multiline_parser":
			err = errors.New("own multi-line parsers are not understood")
		case "input tail":
			err = config.tail(s)
		case "filter multiline":
			err = config.multiline(s)
		case "filter parser":
			if config.File.Name != "" {
				err = errors.New("more than one parser filter")
			} else if !strings.EqualFold(s.get("key_name", ""), config.Tail.PathKey) {
				err = fmt.Errorf("key_name %q: only the key with the file's name (path_key) is parsed", s.get("key_name", ""))
			}
			config.File.Name = s.get("parser", "")
		case "output loki":
			err = config.loki(s)
		default:
			err = fmt.Errorf("%q is not understood; the shipper is no Fluent Bit", kind)
		}
		if err != nil {
			return nil, fmt.Errorf("section [%s] at line %d: %w", s.name, s.line, err)
		}
	}
	if counts["input tail"] != 1 || counts["output loki"] != 1 {
		return nil, fmt.Errorf("%d tail inputs and %d loki outputs; one of each is understood", counts["input tail"], counts["output loki"])
	}
	if config.File.Name != "" {
		if config.File.Regexp = parsers[strings.ToLower(config.File.Name)]; config.File.Regexp == nil {
			return nil, fmt.Errorf("parser %q is in none of the parsers' files", config.File.Name)
		}
	}
	if config.Service.StoragePath == "" {
		return nil, errors.New("storage.path is missing: the buffer is on disk")
	}
	return config, nil
}

func (c *Config) service(s section, getenv func(string) string, read func(string) ([]byte, error), parsers map[string]*regexp.Regexp) (err error) {
	c.Service = Service{
		HTTPServer: isTrue(s.get("http_server", "off")), HTTPListen: s.get("http_listen", "0.0.0.0"),
		HTTPPort: s.get("http_port", "2020"), StoragePath: s.get("storage.path", ""),
	}
	if c.Service.Flush, err = seconds(s, "flush", 1); err != nil {
		return err
	}
	if c.Service.Grace, err = seconds(s, "grace", 5); err != nil {
		return err
	}
	for _, file := range s.keys["parsers_file"] {
		text, err := read(file)
		if err != nil {
			return err
		}
		if len(bytes.TrimSpace(text)) == 0 {
			continue
		}
		sections, err := parseClassic(text, getenv, read)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		for _, p := range sections {
			if p.name != "parser" {
				return fmt.Errorf("%s: section [%s] is not understood", file, p.name)
			}
			if err := addParser(p, parsers); err != nil {
				return fmt.Errorf("%s: line %d: %w", file, p.line, err)
			}
		}
	}
	return nil
}

func addParser(s section, parsers map[string]*regexp.Regexp) error {
	if !strings.EqualFold(s.get("format", ""), "regex") {
		return nil // only those that a filter names matter, and these must be found
	}
	re, err := regexp.Compile(strings.Trim(s.get("regex", ""), "/"))
	if strings.HasPrefix(s.get("regex", ""), "^/") {
		re, err = regexp.Compile(s.get("regex", ""))
	}
	if err != nil {
		return fmt.Errorf("parser %s: %w", s.get("name", ""), err)
	}
	parsers[strings.ToLower(s.get("name", ""))] = re
	return nil
}

func (c *Config) tail(s section) (err error) {
	c.Tail = Tail{
		Path: s.get("path", ""), Exclude: s.get("exclude_path", ""), PathKey: s.get("path_key", ""), DB: s.get("db", ""),
		FromHead: isTrue(s.get("read_from_head", "off")),
	}
	if parser := s.get("multiline.parser", ""); parser != "cri" {
		return fmt.Errorf("multiline.parser %q: only cri is understood", parser)
	}
	if c.Tail.Path == "" || c.Tail.DB == "" {
		return errors.New("path and db are needed")
	}
	for _, pattern := range []string{c.Tail.Path, c.Tail.Exclude} {
		if _, err := filepath.Match(pattern, ""); err != nil {
			return fmt.Errorf("path %q: %w", pattern, err)
		}
	}
	if c.Tail.Refresh, err = seconds(s, "refresh_interval", 60); err != nil {
		return err
	}
	if c.Tail.RotateWait, err = seconds(s, "rotate_wait", 5); err != nil {
		return err
	}
	size, err := parseSize(s.get("buffer_max_size", "32k"))
	c.Tail.BufferMax = int(min(size, 64<<20))
	return err
}

func (c *Config) multiline(s section) error {
	for name := range strings.SplitSeq(s.get("multiline.parser", ""), ",") {
		name = strings.TrimSpace(name)
		if _, known := languages[name]; !known {
			return fmt.Errorf("multiline.parser %q is not understood", name)
		}
		c.Traces.Parsers = append(c.Traces.Parsers, name)
	}
	if key := s.get("multiline.key_content", "log"); key != "log" {
		return fmt.Errorf("multiline.key_content %q: lines are in log", key)
	}
	ms, err := strconv.Atoi(s.get("flush_ms", "2000"))
	if err != nil || ms < 1 || ms > 60_000 {
		return fmt.Errorf("flush_ms %q is no number of milliseconds up to a minute", s.get("flush_ms", ""))
	}
	c.Traces.Flush = time.Duration(ms) * time.Millisecond
	return nil
}

func (c *Config) loki(s section) (err error) {
	scheme := "http"
	if isTrue(s.get("tls", "off")) {
		scheme = "https"
	}
	c.Loki.URL = scheme + "://" + s.get("host", "127.0.0.1") + ":" + s.get("port", "3100") + s.get("uri", "/loki/api/v1/push")
	if s.get("drop_single_key", "off") != "on" || s.get("line_format", "json") != "key_value" {
		return errors.New("only drop_single_key on with line_format key_value is understood: the line as it was written")
	}
	if c.Loki.Labels, err = fields(s.get("labels", "")); err != nil {
		return fmt.Errorf("labels: %w", err)
	}
	if c.Loki.Metadata, err = fields(s.get("structured_metadata", "")); err != nil {
		return fmt.Errorf("structured_metadata: %w", err)
	}
	if len(c.Loki.Labels) == 0 {
		return errors.New("no labels")
	}
	if c.Loki.Limit, err = parseSize(s.get("storage.total_limit_size", "64M")); err != nil {
		return err
	}
	switch limit := strings.ToLower(s.get("retry_limit", "1")); limit {
	case "no_limits", "false":
		c.Loki.RetryLimit = -1
	default:
		if c.Loki.RetryLimit, err = strconv.Atoi(limit); err != nil || c.Loki.RetryLimit < 0 {
			return fmt.Errorf("retry_limit %q", limit)
		}
	}
	return nil
}

// fields reads name=value and name=$key, with commas between.
func fields(list string) (found []Field, err error) {
	for item := range strings.SplitSeq(list, ",") {
		if item = strings.TrimSpace(item); item == "" {
			continue
		}
		name, value, ok := strings.Cut(item, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("%.80q is not name=value", item)
		}
		f := Field{Name: name, Value: value}
		if key, isKey := strings.CutPrefix(value, "$"); isKey {
			f = Field{Name: name, Key: key}
			switch key {
			case "container", "restart", "stream", "file":
			default:
				return nil, fmt.Errorf("no record has a key %q", key)
			}
		}
		found = append(found, f)
	}
	return found, nil
}

func isTrue(value string) bool {
	switch strings.ToLower(value) {
	case "on", "true", "yes":
		return true
	}
	return false
}

func seconds(s section, key string, otherwise float64) (time.Duration, error) {
	text := s.get(key, "")
	if text == "" {
		return time.Duration(otherwise * float64(time.Second)), nil
	}
	n, err := strconv.ParseFloat(text, 64)
	if err != nil || !(n > 0 && n <= 86400) {
		return 0, fmt.Errorf("%s %q is no number of seconds up to a day", key, text)
	}
	return time.Duration(n * float64(time.Second)), nil
}

var sizeFormat = regexp.MustCompile(`^([0-9]{1,12})(?:([kKmMgG])[bB]?)?$`)

// parseSize reads 64k, 2M, 8MB: Fluent Bit's units are powers of 1000 and ours of 1024, on the safe side for lines.
func parseSize(text string) (int64, error) {
	m := sizeFormat.FindStringSubmatch(text)
	if m == nil {
		return 0, fmt.Errorf("%q is no size", text)
	}
	n, err := strconv.ParseInt(m[1], 10, 64)
	if err != nil {
		return 0, err
	}
	shift := map[string]uint{"": 0, "k": 10, "m": 20, "g": 30}[strings.ToLower(m[2])]
	if n > (1<<50)>>shift {
		return 0, fmt.Errorf("size %q is too large", text)
	}
	return n << shift, nil
}

// prepare checks what only the machine can tell.
func (c *Config) prepare() error {
	if err := os.MkdirAll(filepath.Join(c.Service.StoragePath, chunkFolder), 0o750); err != nil {
		return fmt.Errorf("make the buffer's directory: %w", err)
	}
	return os.MkdirAll(filepath.Dir(c.Tail.DB), 0o750)
}
