package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestSweep plants one file of every kind in segments/ and index/: what D has
// passed goes, what may be of use stays, and what nobody knows stays and is
// named, once.
func TestSweep(t *testing.T) {
	t.Parallel()
	h := grown(t)
	size := h.store.durable.Load().at.size
	h.log = nil
	h.close()
	before := diskFiles(t, h.dir)
	root := strings.Repeat("ab", 32)
	segment := func(first uint64, end string) string {
		return filepath.Join(segmentDir, fmt.Sprintf("%020d-%s%s", first, root, end))
	}
	run := func(level int, first, last uint64) string {
		return filepath.Join(indexDir, runInfo{level: level, first: first, last: last}.name())
	}
	goes := []string{
		segment(0, ".seg.123.tmp"), segment(0, ".seg.part"), segment(size-1, ".seg.part"), filepath.Join(segmentDir, "x.tmp"),
		run(1, 0, 0), filepath.Join(indexDir, "y.run.tmp"),
	}
	stays := []string{segment(size, ".seg.part"), segment(size, ".seg"), segment(size+7, ".seg.part"), run(0, size, size+3)}
	unknown := []string{
		segment(0, ".seg"), segment(size-1, ".seg"), segment(size, ".bak"), filepath.Join(segmentDir, "notes.txt"), filepath.Join(segmentDir, "short.seg.part"),
		filepath.Join(indexDir, "z"),
	}
	for _, name := range slices.Concat(goes, stays, unknown) {
		if err := os.WriteFile(filepath.Join(h.dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var lines lateLog
	o := h.options()
	o.logger = slog.New(slog.NewTextHandler(&lines, nil))
	s, err := openStore(o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	for _, name := range goes {
		if _, err := os.Stat(filepath.Join(h.dir, name)); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", name, err)
		}
	}
	for _, name := range slices.Concat(stays, unknown) {
		if _, err := os.Stat(filepath.Join(h.dir, name)); err != nil {
			t.Errorf("%s is gone: %v", name, err)
		}
		if named := strings.Contains(string(lines.b), filepath.Base(name)+",") || strings.Contains(string(lines.b), filepath.Base(name)+`"`) || strings.Contains(string(lines.b), "="+filepath.Base(name)+" "); named != slices.Contains(unknown, name) {
			t.Errorf("%s is named in the log: %v", name, named)
		}
	}
	for name := range before {
		if _, err := os.Stat(filepath.Join(h.dir, name)); err != nil {
			t.Errorf("%s of the ledger is gone: %v", name, err)
		}
	}
	if n := strings.Count(string(lines.b), "left alone"); n != 2 || o.metrics.store.unknown.value() != int64(len(unknown)) || o.metrics.store.removed.value() == 0 {
		t.Errorf("%d lines tell of unknown files, the metrics say %d unknown and %d removed", n, o.metrics.store.unknown.value(), o.metrics.store.removed.value())
	}
	checkStore(t, s)
}
