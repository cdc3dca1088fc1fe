package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// faultTests is what a test is called in the table of faults.
var faultTests = regexp.MustCompile("`([^`]+)`")

// TestFaultMatrix holds the table of faults in DESIGN.md to tests that exist.
func TestFaultMatrix(t *testing.T) {
	t.Parallel()
	design, err := os.ReadFile("DESIGN.md")
	if err != nil {
		t.Fatal(err)
	}
	_, matrix, _ := strings.Cut(string(design), "\n## Fault matrix\n")
	matrix, _, _ = strings.Cut(matrix, "\n## ")
	rows := make(map[string]string)
	for line := range strings.Lines(matrix) {
		if cells := strings.Split(line, "|"); len(cells) == 6 {
			rows[strings.TrimSpace(cells[1])] = cells[4]
		}
	}
	tests := goTests(t)
	for i := 1; i <= 52; i++ {
		if i > 39 && i < 50 {
			continue
		}
		names := faultTests.FindAllStringSubmatch(rows[fmt.Sprint(i)], -1)
		if len(names) == 0 {
			t.Errorf("fault %d has no test", i)
		}
		for _, name := range names {
			if file, method, _ := strings.Cut(name[1], "::"); strings.HasPrefix(name[1], "e2e/") {
				if script, err := os.ReadFile(file); err != nil || !strings.Contains(string(script), "def "+method) {
					t.Errorf("fault %d: no test %s: %v", i, name[1], err)
				}
			} else if !tests[name[1]] {
				t.Errorf("fault %d: no test %s", i, name[1])
			}
		}
	}
}

// goTests returns the names of all tests and fuzz targets of this package.
func goTests(t *testing.T) map[string]bool {
	t.Helper()
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	names := make(map[string]bool)
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range declared.FindAllStringSubmatch(string(b), -1) {
			names[m[1]] = true
		}
	}
	return names
}
