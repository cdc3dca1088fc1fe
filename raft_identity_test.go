package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// sampleNodeFile has a value in every field.
func sampleNodeFile() *nodeFile {
	m := member{ID: 1, Incarnation: "8f3a5c0b12d4e677", HTTP: "http://127.0.0.1:8001", Raft: "127.0.0.1:9001", Region: "eu"}
	id := strings.Repeat("5b0c", 8)
	return &nodeFile{Format: nodeFileFormat, NodeID: 1, Incarnation: m.Incarnation, ClusterName: "scribe", ClusterID: id,
		Members: []member{m}, Started: true, Pledge: &genesis{id, "scribe", []member{m}}, Raft: m.Raft, Learner: true, Removed: true}
}

// TestNodeFileDamage: no cut and no flipped byte of node.json makes it say
// something else; one without a checksum, of an older program, is read.
func TestNodeFileDamage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f := sampleNodeFile()
	if err := f.save(dir); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, nodeFileName))
	if err != nil {
		t.Fatal(err)
	}
	wantGolden(t, b, "node-1.json")
	want, err := decodeNodeFile(b)
	if err != nil {
		t.Fatal(err)
	}
	try := func(damaged []byte) {
		got, err := decodeNodeFile(damaged)
		if err == nil {
			got.CRC32C = want.CRC32C
		}
		if err == nil && !reflect.DeepEqual(got, want) || err != nil && !errors.Is(err, errCorrupt) && !errors.Is(err, errFormat) {
			t.Errorf("read as %+v, %v:\n%s", got, err, damaged)
		}
	}
	eachCut(b, try)
	eachFlip(b, func(damaged []byte, _ int) { try(damaged) })
	old := bytes.Replace(b, []byte(`,
  "crc32c": "`+want.CRC32C+`"`), nil, 1)
	if _, err := decodeNodeFile(old); err != nil || len(old) == len(b) {
		t.Errorf("without a checksum: %v", err)
	}
}

// FuzzNodeFile: whatever is read as node.json says the same when it is written.
func FuzzNodeFile(f *testing.F) {
	f.Add(golden(f, "node-1.json"))
	f.Add([]byte(`{"format": 1, "node_id": 1, "incarnation": "8f3a5c0b12d4e677"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		first, err := decodeNodeFile(b)
		if err != nil {
			return
		}
		dir := t.TempDir()
		if err := first.save(dir); err != nil {
			t.Fatal(err)
		}
		written, err := os.ReadFile(filepath.Join(dir, nodeFileName))
		if err != nil {
			t.Fatal(err)
		}
		again, err := decodeNodeFile(written)
		if err != nil || first.NodeID != again.NodeID || first.ClusterID != again.ClusterID || first.Learner != again.Learner {
			t.Errorf("%+v is read as %+v, %v", first, again, err)
		}
	})
}
