package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// Where settings come from. A TOML file, the environment and flags all become
// settings; configLoader puts settings into the config and collects every
// fault with its place. go-toml decodes into structs too, but stops at the
// first wrong type, so the file is read key by key from its syntax tree.

// source ranks the origins of settings; a later one wins.
type source int

const (
	sourceFile source = iota
	sourceEnv
	sourceFlag
)

// origin is where a setting stands, as the reader of a report finds it.
type origin struct {
	source source
	name   string // file, variable or flag
	line   int    // in a file, from 1; 0 = the whole
}

func (p origin) String() string {
	if p.line > 0 {
		return fmt.Sprintf("%s:%d", p.name, p.line)
	}
	return p.name
}

// setting is one value somebody gave for one key.
type setting struct {
	key    string // such as storage.s3.bucket
	origin origin
	value  any    // int64, bool, string, []string; textValue; or otherValue
	shown  string // the value as it was written
}

// textValue is a value from the environment or a flag: its type is the key's.
type textValue string

// otherValue is a TOML value of a type that no key has.
type otherValue struct{}

// fault is one thing wrong with the configuration.
type fault struct {
	origin origin
	text   string
}

// configError is everything that is wrong, in the order of files and lines.
type configError []fault

func (e configError) Error() string {
	lines := make([]string, len(e))
	for i, f := range e {
		lines[i] = f.origin.String() + ": " + f.text
	}
	return strings.Join(lines, "\n")
}

// configField is one key of the config.
type configField struct {
	value reflect.Value
	tag   reflect.StructTag
}

// configLoader fills a config and collects what is wrong.
type configLoader struct {
	config   *config
	fields   map[string]configField
	sections map[string]bool   // known tables; false = it has no keys yet
	origins  map[string]origin // where each key was set last
	bad      map[string]bool   // keys whose value could not be taken
	faults   configError
}

// newConfigLoader returns a loader that knows the keys of c by its tags.
func newConfigLoader(c *config) *configLoader {
	l := &configLoader{
		config:   c,
		fields:   make(map[string]configField),
		sections: make(map[string]bool),
		origins:  make(map[string]origin),
		bad:      make(map[string]bool),
	}
	l.addFields("", reflect.ValueOf(c).Elem())
	return l
}

// addFields enters the keys of the struct v, which is the table named prefix.
func (l *configLoader) addFields(prefix string, v reflect.Value) {
	for i := range v.NumField() {
		tag := v.Type().Field(i).Tag
		name := tag.Get("toml")
		if name == "" {
			continue
		}
		key := prefix + name
		if f := v.Field(i); f.Kind() == reflect.Struct {
			l.sections[key] = f.NumField() > 0
			l.addFields(key+".", f)
		} else {
			l.fields[key] = configField{f, tag}
		}
	}
}

// readTOML returns the settings of a file. The walk sees the keys one by one;
// the full decoder finds what TOML as a whole forbids. A file that is not TOML
// gives its settings up to the place where it stops to be.
func (l *configLoader) readTOML(name string, data []byte) []setting {
	w := tomlWalk{loader: l, name: name, first: make(map[string]int)}
	w.parser.Reset(data)
	for w.parser.NextExpression() {
		w.expression(w.parser.Expression())
	}
	var syntax *unstable.ParserError
	if errors.As(w.parser.Error(), &syntax) {
		w.refuse(w.parser.Shape(w.parser.Range(syntax.Highlight)).Start.Line, syntax.Message)
	}
	var whole map[string]any
	var first *toml.DecodeError // the decoder stops there
	if errors.As(toml.Unmarshal(data, &whole), &first) {
		line, _ := first.Position()
		if !slices.ContainsFunc(l.faults, func(f fault) bool { return f.origin.line == line }) {
			w.refuse(line, strings.TrimPrefix(first.Error(), "toml: "))
		}
	}
	return w.settings
}

// tomlWalk turns the syntax tree of one file into settings.
type tomlWalk struct {
	loader   *configLoader
	name     string
	parser   unstable.Parser
	table    string         // prefix of the keys that follow, such as "node."
	skip     bool           // inside a table that was refused
	first    map[string]int // line that set each key
	settings []setting
}

// expression takes one line of the file: a table's head, or key = value.
func (w *tomlWalk) expression(e *unstable.Node) {
	switch e.Kind {
	case unstable.Table, unstable.ArrayTable:
		name, line := w.key(e)
		_, known := w.loader.sections[name]
		w.table, w.skip = name+".", !known
		switch {
		case !known:
			w.refuse(line, w.loader.unknown(name, "section ["+name+"]"))
		case e.Kind == unstable.ArrayTable:
			w.refuse(line, fmt.Sprintf("%s: want one table, written [%s]", name, name))
		}
	case unstable.KeyValue:
		if !w.skip {
			w.keyValue(w.table, e)
		}
	}
}

// keyValue takes key = value, where the key stands in the table named prefix.
func (w *tomlWalk) keyValue(prefix string, e *unstable.Node) {
	name, line := w.key(e)
	key, value := prefix+name, e.Value()
	_, table := w.loader.sections[key]
	switch {
	case table && value.Kind == unstable.InlineTable:
		for it := value.Children(); it.Next(); {
			w.keyValue(key+".", it.Node())
		}
	case table:
		w.refuse(line, key+": want a table")
	case w.first[key] != 0:
		w.refuse(line, fmt.Sprintf("%s: set a second time, the first is on line %d", key, w.first[key]))
	default:
		w.first[key] = line
		v, shown := w.value(value)
		w.settings = append(w.settings, setting{key, origin{sourceFile, w.name, line}, v, shown})
	}
}

// key returns the dotted key of an expression and its line. A part that is not
// a bare key is quoted, so that "node.id" = 1 is not taken for node.id.
func (w *tomlWalk) key(e *unstable.Node) (name string, line int) {
	var parts []string
	for it := e.Key(); it.Next(); {
		part := string(it.Node().Data)
		if !validName(part) || strings.Contains(part, ".") {
			part = strconv.Quote(part)
		}
		parts = append(parts, part)
		line = w.parser.Shape(it.Node().Raw).Start.Line
	}
	return strings.Join(parts, "."), line
}

// value returns what the node holds, and as which text it stands in the file.
func (w *tomlWalk) value(n *unstable.Node) (v any, shown string) {
	shown = string(w.parser.Raw(n.Raw))
	switch n.Kind {
	case unstable.String:
		return string(n.Data), shown
	case unstable.Bool:
		return string(n.Data) == "true", shown
	case unstable.Integer:
		if i, err := strconv.ParseInt(string(n.Data), 0, 64); err == nil {
			return i, shown
		}
		return otherValue{}, shown
	case unstable.Array:
		list := []string{}
		for it := n.Children(); it.Next(); {
			if it.Node().Kind != unstable.String {
				return otherValue{}, "a list with other values"
			}
			list = append(list, string(it.Node().Data))
		}
		return list, fmt.Sprintf("%q", list)
	case unstable.InlineTable:
		return otherValue{}, "a table"
	}
	return otherValue{}, shown
}

// refuse adds a fault on a line of the file.
func (w *tomlWalk) refuse(line int, text string) {
	w.loader.faults = append(w.loader.faults, fault{origin{sourceFile, w.name, line}, text})
}

// readEnv returns the settings among the variables of env ("NAME=value"). A
// variable that begins like those of a section but names no key is a fault;
// others, such as SCRIBE_URL, are not for a node.
func (l *configLoader) readEnv(env []string) []setting {
	keys := make(map[string]string)
	for key := range l.fields {
		keys[envName(key)] = key
	}
	var settings []setting
	for _, pair := range env {
		name, value, _ := strings.Cut(pair, "=")
		at := origin{source: sourceEnv, name: name}
		if key, ok := keys[name]; ok {
			settings = append(settings, setting{key, at, textValue(value), strconv.Quote(value)})
		} else if section := l.sectionOf(name); section != "" {
			key := section + "." + strings.ToLower(name[len(envName(section))+1:])
			l.faults = append(l.faults, fault{at, l.unknown(key, "key "+key)})
		}
	}
	return settings
}

// envName returns the variable that overrides the key.
func envName(key string) string {
	return "SCRIBE_" + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
}

// sectionOf returns the longest section whose variables begin like name, or "".
func (l *configLoader) sectionOf(name string) string {
	longest := ""
	for section := range l.sections {
		if strings.HasPrefix(name, envName(section)+"_") && len(section) > len(longest) {
			longest = section
		}
	}
	return longest
}

// unknown says what is wrong with a key or table that the config does not
// have, and that is called name.
func (l *configLoader) unknown(key, name string) string {
	section, _, _ := strings.Cut(key, ".")
	if served, ok := l.sections[section]; ok && !served {
		return fmt.Sprintf("%s: section [%s] is not served by this version; leave it out or empty", key, section)
	}
	return "unknown " + name
}

// assignAll puts the settings into the config, one after the other.
func (l *configLoader) assignAll(settings []setting) {
	for _, s := range settings {
		l.assign(s)
	}
}

// assign puts one setting into the config, or adds the fault it has.
func (l *configLoader) assign(s setting) {
	f, ok := l.fields[s.key]
	if !ok {
		l.faults = append(l.faults, fault{s.origin, l.unknown(s.key, "key "+s.key)})
		return
	}
	l.origins[s.key] = s.origin
	want := f.set(s.value)
	if want == "" {
		return
	}
	if f.tag.Get("hidden") == "true" {
		s.shown = "another (not shown)"
	}
	l.bad[s.key] = true
	l.faults = append(l.faults, fault{s.origin, fmt.Sprintf("%s: want %s, got %s", s.key, want, s.shown)})
}

// set stores v in the field. If v has the wrong type or is out of range it
// stores nothing and says what is wanted.
func (f configField) set(v any) (want string) {
	if text, ok := v.(textValue); ok {
		v = f.parse(string(text))
	}
	switch f.value.Interface().(type) {
	case time.Duration:
		text, _ := v.(string)
		d, err := time.ParseDuration(text)
		if err != nil {
			return `a duration such as "90s" or "10m"`
		}
		f.value.SetInt(int64(d))
		return ""
	case int64:
		i, ok := v.(int64)
		if lo, hi := f.limit("min"), f.limit("max"); !ok || i < lo || i > hi {
			return fmt.Sprintf("a whole number from %d to %d", lo, hi)
		}
	case bool:
		if _, ok := v.(bool); !ok {
			return "true or false"
		}
	case string:
		s, ok := v.(string)
		if words := f.tag.Get("oneof"); words != "" {
			if !slices.Contains(strings.Fields(words), s) {
				return strings.Join(strings.Fields(words), " or ")
			}
		} else if lo, hi := f.limit("min"), f.limit("max"); !ok || len(s) < int(lo) || len(s) > int(hi) {
			return fmt.Sprintf("a string of %d to %d bytes", lo, hi)
		}
	case []string:
		list, ok := v.([]string)
		if hi := f.limit("max"); !ok || len(list) > int(hi) {
			return fmt.Sprintf("a list of at most %d strings", hi)
		}
	}
	f.value.Set(reflect.ValueOf(v))
	return ""
}

// parse turns text from the environment or a flag into the field's type, or
// into otherValue if it cannot be.
func (f configField) parse(text string) any {
	switch f.value.Interface().(type) {
	case int64:
		if i, err := strconv.ParseInt(text, 10, 64); err == nil {
			return i
		}
		return otherValue{}
	case bool:
		if text == "true" || text == "false" {
			return text == "true"
		}
		return otherValue{}
	case []string:
		list := strings.FieldsFunc(text, func(r rune) bool { return r == ',' })
		for i := range list {
			list[i] = strings.TrimSpace(list[i])
		}
		return list
	}
	return text
}

// limit returns the number in the tag min or max, 0 without one.
func (f configField) limit(name string) int64 {
	n, _ := strconv.ParseInt(f.tag.Get(name), 10, 64)
	return n
}

// check adds a fault unless ok: got is wrong and want would be right. The fault
// stands at the first of the keys that somebody set. It is left out when one
// of them could not be read, for then got may be a default nobody chose.
func (l *configLoader) check(ok bool, got any, want string, keys ...string) {
	if ok || slices.ContainsFunc(keys, func(k string) bool { return l.bad[k] }) {
		return
	}
	key := keys[0]
	for _, k := range keys {
		if _, set := l.origins[k]; set {
			key = k
			break
		}
	}
	l.faults = append(l.faults, fault{l.origins[key], fmt.Sprintf("%s: want %s, got %v", keys[0], want, got)})
}

// report returns the faults in the order of sources and lines.
func (l *configLoader) report() configError {
	slices.SortStableFunc(l.faults, func(a, b fault) int {
		return cmp.Or(cmp.Compare(a.origin.source, b.origin.source), cmp.Compare(a.origin.line, b.origin.line))
	})
	return l.faults
}

// reason returns what the system said, without the path that comes before it.
func reason(err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err.Error()
	}
	return err.Error()
}
