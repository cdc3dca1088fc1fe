package main

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// What may lie in a data directory, and who removes it when, is in DESIGN.md.
// The rule behind the list: a file goes only if its name says that it is
// unfinished, or if D says that what it was for has come another way. What no
// rule knows stays, and is named in a log line at the start: somebody may have
// put it there, or a newer version.

// maxUnknown bounds how many unknown files of a directory are named.
const maxUnknown = 20

// sweep removes the leftovers of earlier crashes below segments/ and index/, and
// tells what is there that nobody knows.
func (s *store) sweep() error {
	if err := s.removeParts(); err != nil {
		return err
	}
	at := s.durable.Load()
	listed := make(map[string]bool)
	for _, i := range at.segments {
		listed[i.id()+segmentSuffix] = true
	}
	for _, r := range s.index.runs() {
		listed[r.name()] = true
	}
	segments := func(name string) bool { // behind D: sealed or fetched, and not named yet
		first, ok := segmentFirst(strings.TrimSuffix(name, segmentPartSuffix))
		return listed[name] || ok && first >= at.at.size
	}
	runs := func(name string) bool {
		r, ok := parseRunName(name)
		return listed[name] || ok && r.first >= at.at.size
	}
	a, err := nameUnknown(s.o, segmentDir, segments)
	if err != nil {
		return err
	}
	b, err := nameUnknown(s.o, indexDir, runs)
	s.o.metrics.store.unknown.add(int64(a + b))
	return err
}

// removeParts removes what has come of segments that D names by now. No fetch
// is under way.
func (s *store) removeParts() error {
	dir := filepath.Join(s.o.dir, segmentDir)
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	size := s.durable.Load().at.size
	for _, f := range files {
		whole, isPart := strings.CutSuffix(f.Name(), segmentPartSuffix)
		first, ok := segmentFirst(whole)
		if !isPart || !ok || first >= size {
			continue
		}
		s.o.logger.Info("removing a part of a segment that is here", "file", f.Name())
		if err := os.Remove(filepath.Join(dir, f.Name())); err != nil {
			return err
		}
		s.o.metrics.store.removed.add(1)
	}
	return nil
}

// segmentFirst reads the first seq from the name of a segment file.
func segmentFirst(name string) (uint64, bool) {
	id, isSegment := strings.CutSuffix(name, segmentSuffix)
	digits, root, ok := strings.Cut(id, "-")
	first, err := strconv.ParseUint(digits, 10, 64)
	return first, isSegment && ok && err == nil && len(digits) == 20 && len(root) == 2*len(hash{})
}

// nameUnknown tells which files of a directory below o.dir are not known, and
// how many they are.
func nameUnknown(o storeOptions, below string, known func(name string) bool) (int, error) {
	files, err := os.ReadDir(filepath.Join(o.dir, below))
	if err != nil {
		return 0, err
	}
	var names []string
	for _, f := range files {
		if !known(f.Name()) {
			names = append(names, f.Name())
		}
	}
	if n := len(names); n > 0 {
		o.logger.Warn("files that this program does not know are left alone", "directory", filepath.Join(o.dir, below),
			"files", strings.Join(slices.Clip(names[:min(n, maxUnknown)]), ", "), "count", n)
	}
	return len(names), nil
}
