package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Planted bugs: who finds them? Each file testdata/planted/<nn>-<name>.txt is a
// bug that a real system had, or nearly this one, as a change of this program's
// source. None is in the program: go build -overlay puts it there. TestPlanted
// sees to it that all of them still fit the source. TestPlantedFound builds the
// program with each of them, runs the test that is to find it, and fails when
// that test passes, or fails for another reason than the one expected:
//
//	SCRIBE_PLANTED=1 go test -run TestPlantedFound -timeout 0 -v .           all, some hours of one core
//	SCRIBE_PLANTED='fsync|no bug' go test -run TestPlantedFound -timeout 0 -v .   those with such names
//
// "no bug" is the control: each finder without any.
//
// A file says in its first lines what the bug is and who had it; behind an empty
// line, a word and its argument on each line:
//
//	test   a regular expression for go test -run: the finder
//	script one of e2e/ instead, with its arguments: it runs the program itself
//	env    NAME=VALUE for the finder, again and again if need be
//	want   a regular expression that a line of the finder's output has when it has
//	       found the bug, and never has otherwise
//
// and then what changes, once or more often; each old text is in its file once:
//
//	-- <file>
//	the old text
//	-- becomes
//	the new text

// plantedBug is one of the files.
type plantedBug struct {
	name   string
	about  string
	test   string   // the finder, or
	script []string // below e2e/
	env    []string
	want   *regexp.Regexp
	edits  []plantedEdit
}

// plantedEdit is one change of the source.
type plantedEdit struct{ file, before, after string }

// plantedLimit is how long a finder may take.
const plantedLimit = 10 * time.Minute

// readPlanted reads all planted bugs.
func readPlanted(t testing.TB) (all []*plantedBug) {
	t.Helper()
	paths, err := filepath.Glob("testdata/planted/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b, err := parsePlanted(string(text))
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		b.name = strings.TrimSuffix(filepath.Base(path), ".txt")
		all = append(all, b)
	}
	return all
}

// parsePlanted reads one file.
func parsePlanted(text string) (*plantedBug, error) {
	head, changes, _ := strings.Cut(text, "\n-- ")
	about, words, ok := strings.Cut(head, "\n\n")
	if !ok {
		return nil, errors.New("no empty line after what the bug is")
	}
	b := &plantedBug{about: about}
	for line := range strings.Lines(words) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		if err := b.word(line); err != nil {
			return nil, err
		}
	}
	for change := range strings.SplitSeq(changes, "\n-- ") {
		name, body, _ := strings.Cut(change, "\n")
		body = strings.TrimSuffix(body, "\n")
		switch last := len(b.edits) - 1; {
		case name != "becomes":
			b.edits = append(b.edits, plantedEdit{file: name, before: body})
		case last >= 0:
			b.edits[last].after = body
		}
	}
	if (b.test == "") == (b.script == nil) || b.want == nil {
		return nil, errors.New("want one test or script, and what it says")
	}
	return b, nil
}

// word reads one line of the middle part.
func (b *plantedBug) word(line string) (err error) {
	word, arg, _ := strings.Cut(line, " ")
	switch arg = strings.TrimSpace(arg); word {
	case "test":
		b.test = arg
	case "script":
		b.script = strings.Fields(arg)
	case "env":
		b.env = append(b.env, arg)
	case "want":
		b.want, err = regexp.Compile(arg)
	default:
		err = fmt.Errorf("unknown word %q", word)
	}
	return err
}

// apply returns the changed files by name.
func (b *plantedBug) apply() (map[string]string, error) {
	files := make(map[string]string)
	for _, e := range b.edits {
		source, ok := files[e.file]
		if !ok {
			text, err := os.ReadFile(e.file)
			if err != nil {
				return nil, err
			}
			source = string(text)
		}
		if n := strings.Count(source, e.before); n != 1 || e.before == e.after {
			return nil, fmt.Errorf("%s has this %d times, want once:\n%s", e.file, n, e.before)
		}
		files[e.file] = strings.Replace(source, e.before, e.after, 1)
	}
	return files, nil
}

// finder names what is to find the bug, settings included.
func (b *plantedBug) finder() string {
	return strings.Join(append(slices.Clone(b.env), cmp.Or(b.test, strings.Join(b.script, " "))), " ")
}

// TestPlanted: every planted bug can still be planted.
func TestPlanted(t *testing.T) {
	t.Parallel()
	all := readPlanted(t)
	if len(all) < 20 {
		t.Errorf("only %d bugs", len(all))
	}
	for _, b := range all {
		files, err := b.apply()
		if err != nil {
			t.Errorf("%s: %v", b.name, err)
		}
		for name, source := range files {
			if _, err := parser.ParseFile(token.NewFileSet(), name, source, parser.SkipObjectResolution); err != nil {
				t.Errorf("%s: %v", b.name, err)
			}
		}
		if b.script != nil {
			if _, err := os.Stat(filepath.Join("e2e", b.script[0])); err != nil {
				t.Errorf("%s: %v", b.name, err)
			}
		} else if _, err := regexp.Compile(b.test); err != nil {
			t.Errorf("%s: %v", b.name, err)
		}
	}
}

// plantedRun is what a finder came to.
type plantedRun struct {
	found string // the line that says so, "" if there was none
	spent time.Duration
	err   error  // of the process, unless it was ended because it had found something
	tail  string // the first lines
}

// TestPlantedFound: every planted bug is found, and without it its finder passes.
func TestPlantedFound(t *testing.T) {
	choice := os.Getenv("SCRIBE_PLANTED")
	if choice == "" {
		t.Skip("runs with SCRIBE_PLANTED set")
	}
	chosen := regexp.MustCompile(strings.TrimPrefix(choice, "1"))
	bugs := slices.DeleteFunc(readPlanted(t), func(b *plantedBug) bool { return !chosen.MatchString(b.name) })
	var controls []*plantedBug
	for _, b := range bugs {
		i := slices.IndexFunc(controls, func(c *plantedBug) bool { return c.finder() == b.finder() })
		if i < 0 {
			controls = append(controls, &plantedBug{name: "no bug", test: b.test, script: b.script, env: b.env, want: b.want})
		} else {
			controls[i].want = regexp.MustCompile(controls[i].want.String() + "|" + b.want.String())
		}
	}
	if !chosen.MatchString("no bug") {
		controls = nil
	}
	table := plantedTable{t: t}
	work := make(chan struct{}, 2) // at a time
	for _, b := range append(bugs, controls...) {
		table.wg.Go(func() {
			work <- struct{}{}
			defer func() { <-work }()
			table.add(b, b.hunt(t))
		})
	}
	table.wg.Wait()
	t.Logf("%d bugs\n%s", len(bugs), strings.Join(table.rows, "\n"))
}

// plantedTable gathers what the finders came to.
type plantedTable struct {
	t    testing.TB
	wg   sync.WaitGroup
	mu   sync.Mutex
	rows []string
}

// add judges one run: a bug must be found, and where there is none nothing may be.
func (p *plantedTable) add(b *plantedBug, r plantedRun) {
	p.mu.Lock()
	defer p.mu.Unlock()
	verdict := cmp.Or(r.found, "NOT FOUND")
	switch {
	case b.edits == nil && r.found == "" && r.err == nil:
		verdict = "passes"
	case b.edits == nil:
		p.t.Errorf("without a bug, %s: %q, %v\n%s", b.finder(), r.found, r.err, r.tail)
	case r.found == "" || r.spent > plantedLimit:
		p.t.Errorf("%s: not found by %s in %v, which ended with %v\n%s", b.name, b.finder(), r.spent, r.err, r.tail)
	}
	row := fmt.Sprintf("%-28s %5.0f s  %s  |  %.160s", b.name, r.spent.Seconds(), b.finder(), strings.TrimSpace(verdict))
	p.rows = append(p.rows, row)
	p.t.Log(row)
}

// hunt builds what the finder needs, with the bug in it, and runs the finder.
func (b *plantedBug) hunt(t testing.TB) plantedRun {
	dir, err := os.MkdirTemp("", "scribe-planted-")
	if err != nil {
		return plantedRun{err: err}
	}
	defer os.RemoveAll(dir)
	overlay, err := b.overlay(dir)
	if err != nil {
		return plantedRun{err: err}
	}
	built := filepath.Join(dir, "scribe-ledger")
	command := []string{built, "-test.run", b.test, "-test.v", "-test.failfast", "-test.timeout", "0"}
	build := []string{"test", "-c", "-vet=off", "-ldflags", "-s -w", "-overlay", overlay, "-o", built, "."}
	if b.script != nil {
		command = append([]string{"python3", "-u", filepath.Join("e2e", b.script[0])}, b.script[1:]...)
		build = []string{"build", "-ldflags", "-s -w", "-overlay", overlay, "-o", built, "."}
	}
	if out, err := exec.Command("go", build...).CombinedOutput(); err != nil {
		return plantedRun{err: fmt.Errorf("go %s: %w", strings.Join(build, " "), err), tail: string(out)}
	}
	return b.watch(command, append(os.Environ(), append(b.env, "SCRIBE_BIN="+built, "TMPDIR="+dir, "SCRIBE_SIM_DIR="+simBase(t, dir))...))
}

// simBase returns a directory for simulations, in memory if there is such a
// place: they are ended where they stand and cannot clean up.
func simBase(t testing.TB, otherwise string) string {
	dir, err := os.MkdirTemp("/dev/shm", "scribe-planted-")
	if err != nil {
		return otherwise
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// overlay writes the changed files to dir, and the file that says what they
// stand for.
func (b *plantedBug) overlay(dir string) (string, error) {
	files, err := b.apply()
	if err != nil {
		return "", err
	}
	here, err := os.Getwd()
	if err != nil {
		return "", err
	}
	replace := make(map[string]string)
	for name, source := range files {
		changed := filepath.Join(dir, name)
		if err := os.WriteFile(changed, []byte(source), 0o600); err != nil {
			return "", err
		}
		replace[filepath.Join(here, name)] = changed
	}
	text, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "overlay.json")
	return path, os.WriteFile(path, text, 0o600)
}

// watch runs a finder until it ends, its time is up, or it says that it has
// found the bug.
func (b *plantedBug) watch(command, env []string) (r plantedRun) {
	ctx, cancel := context.WithTimeout(context.Background(), plantedLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Env = env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) } // what it started as well
	out, in := io.Pipe()
	cmd.Stdout, cmd.Stderr = in, in
	began := time.Now()
	if r.err = cmd.Start(); r.err != nil {
		return r
	}
	lines := make(chan struct{})
	go func() {
		defer close(lines)
		var tail []string
		for s := bufio.NewReader(out); ; {
			line, err := s.ReadString('\n')
			if r.found == "" && b.want.MatchString(line) {
				r.found, r.spent = line, time.Since(began)
				cancel()
			}
			if !strings.HasPrefix(line, "=== ") && len(tail) < 40 { // a panic says first what it is
				tail = append(tail, line)
			}
			if err != nil {
				r.tail = strings.Join(tail, "")
				return
			}
		}
	}()
	err := cmd.Wait()
	in.Close()
	<-lines
	if r.found == "" {
		r.err, r.spent = err, time.Since(began)
	}
	return r
}
