package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// knows is the whole architecture of this flat package: for each file, the
// files whose declarations it may mention. A split file such as s3_sign.go
// answers to the line of the file it grew out of (s3) unless it has a line of
// its own, as main_verify.go does: the offline verifier shares no code with the
// server beyond the formats and the hashing. Anything not listed is forbidden.
var knows = map[string]string{
	"merkle":    "",
	"metrics":   "",
	"config":    "merkle",
	"s3":        "metrics",
	"discovery": "metrics",
	"segment":   "merkle",
	"manifest":  "merkle segment",
	"store":     "merkle segment manifest metrics",
	"fsm":       "merkle segment manifest store metrics",
	"raft":      "merkle segment manifest store fsm metrics",
	"region":    "merkle segment manifest metrics",
	"http":      "merkle segment manifest store fsm raft region metrics",
	"main":      "merkle metrics config s3 discovery segment manifest store fsm raft region http main_verify",

	"main_verify": "merkle segment manifest",
}

// deterministic names the files whose code must do the same on every node: the
// leader puts the time into the command, and nothing in them asks the world.
var deterministic = []string{"merkle", "segment", "manifest", "fsm"}

func TestLayers(t *testing.T) {
	t.Parallel()
	fset, files := parsePackage(t)
	for _, f := range files {
		if _, ok := knows[owner(fset, f.Package)]; !ok {
			t.Errorf("%s: has no line in knows", fset.Position(f.Package).Filename)
		}
	}

	// Imported packages are stubbed out: only references inside this package
	// matter, so the errors about unknown imports are ignored.
	info := &types.Info{Uses: make(map[*ast.Ident]types.Object)}
	conf := types.Config{Importer: stubImporter{}, Error: func(error) {}}
	pkg, _ := conf.Check("main", fset, files, info)

	seen := make(map[string]bool)
	for id, obj := range info.Uses {
		if obj.Pkg() != pkg || !obj.Pos().IsValid() {
			continue
		}
		from, to := owner(fset, id.Pos()), owner(fset, obj.Pos())
		if from == to || slices.Contains(strings.Fields(knows[from]), to) {
			continue
		}
		seen[fset.Position(id.Pos()).String()+": "+from+" must not know "+to+" ("+obj.Name()+")"] = true
	}
	for _, msg := range slices.Sorted(maps.Keys(seen)) {
		t.Error(msg)
	}
}

func TestDeterminismWall(t *testing.T) {
	fset, files := parsePackage(t)
	for _, f := range files {
		if !slices.Contains(deterministic, owner(fset, f.Package)) {
			continue
		}
		for _, imp := range f.Imports {
			name, _ := strconv.Unquote(imp.Path.Value)
			top, _, _ := strings.Cut(name, "/")
			if name == "time" || top == "net" || slices.Contains(strings.Split(name, "/"), "rand") {
				t.Errorf("%s: must not import %q", fset.Position(imp.Pos()), name)
			}
		}
	}
}

// parsePackage parses the files of the program, without its tests.
func parsePackage(t *testing.T) (*token.FileSet, []*ast.File) {
	t.Helper()
	fset := token.NewFileSet()
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var files []*ast.File
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	return fset, files
}

// owner returns the line of knows that the file at pos answers to: the longest
// that its name begins with.
func owner(fset *token.FileSet, pos token.Pos) string {
	name := strings.TrimSuffix(filepath.Base(fset.Position(pos).Filename), ".go")
	for {
		_, ok := knows[name]
		cut := strings.LastIndexByte(name, '_')
		if ok || cut < 0 {
			return name
		}
		name = name[:cut]
	}
}

// stubImporter answers every import with an empty package of that name.
type stubImporter struct{}

func (stubImporter) Import(p string) (*types.Package, error) {
	pkg := types.NewPackage(p, path.Base(p))
	pkg.MarkComplete()
	return pkg, nil
}
