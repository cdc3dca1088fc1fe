package main

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"
)

// goldenInfo is the segmentInfo in testdata/segment-info-1.bin.
func goldenInfo() segmentInfo {
	return segmentInfo{
		first: 1 << 40, count: 100, size: 5000, time: 1_700_000_000_005,
		root: hash(bytes.Repeat([]byte{0x11}, 32)), sum: hash(bytes.Repeat([]byte{0x12}, 32)), object: "ab/cd.gz",
	}
}

func TestSegmentInfoGolden(t *testing.T) {
	i := goldenInfo()
	wantGolden(t, i.append(nil), "segment-info-1.bin")
	got, rest, err := parseSegmentInfo(append(i.append(nil), "rest"...))
	if err != nil || got != i || string(rest) != "rest" {
		t.Errorf("parsed %+v, %q, %v", got, rest, err)
	}
	if want := "00000001099511627776-" + i.root.String(); i.id() != want {
		t.Errorf("id is %s, want %s", i.id(), want)
	}
}

func TestSegmentInfoCutAndFlipped(t *testing.T) {
	b := golden(t, "segment-info-1.bin")
	eachCut(b, func(cut []byte) {
		_, _, err := parseSegmentInfo(cut)
		wantError(t, err, errCorrupt, "cut short")
	})
	eachFlip(b, func(flipped []byte, at int) {
		i, rest, err := parseSegmentInfo(flipped)
		checkSegmentInfo(t, flipped, i, rest, err)
	})
}

// checkSegmentInfo fails unless parseSegmentInfo refused b or found what b encodes.
func checkSegmentInfo(t *testing.T, b []byte, i segmentInfo, rest []byte, err error) {
	t.Helper()
	if err != nil {
		if !errors.Is(err, errCorrupt) {
			t.Fatal(err)
		}
		return
	}
	if i.count == 0 || i.end() <= i.first || !bytes.Equal(append(i.append(nil), rest...), b) {
		t.Fatalf("parsed %x as %+v", b, i)
	}
}

func TestSegmentInfoRefuses(t *testing.T) {
	for _, i := range []segmentInfo{{first: 5}, {first: noSeq, count: 1}, {first: noSeq - 3, count: 10}, {first: 1, count: noSeq}} {
		_, _, err := parseSegmentInfo(i.append(nil))
		wantError(t, err, errCorrupt, fmt.Sprintf("covers %d entries from %d", i.count, i.first))
	}
}

// testInfo describes entries first to first+count-1 with made-up hashes.
func testInfo(first, count uint64) segmentInfo {
	return segmentInfo{first: first, count: count, time: int64(first), root: leafHash([]byte{byte(first)})}
}

// written returns i with the size and sum of a file.
func (i segmentInfo) written() segmentInfo {
	i.size, i.sum = 1000+i.first, leafHash([]byte("file"))
	return i
}

// mustSeal seals segments of the given counts.
func mustSeal(t *testing.T, m *manifest, counts ...uint64) *manifest {
	t.Helper()
	for _, n := range counts {
		next, err := m.withSealed(testInfo(m.end(), n))
		if err != nil {
			t.Fatal(err)
		}
		m = next
	}
	return m
}

func TestManifestSealed(t *testing.T) {
	m := mustSeal(t, &manifest{}, 10, 1, 5)
	if m.end() != 16 || m.version != 0 || m.confirmed != 0 || len(m.shown()) != 0 {
		t.Errorf("manifest is %+v", m)
	}
	for _, first := range []uint64{0, 15, 17, noSeq} {
		_, err := m.withSealed(testInfo(first, 1))
		wantError(t, err, errCorrupt, fmt.Sprintf("segment starts at %d, the manifest ends at 16", first))
	}
	for seq, want := range map[uint64]int{0: 0, 9: 0, 10: 1, 11: 2, 15: 2, 16: -1, noSeq: -1} {
		if got := m.find(seq); got != want {
			t.Errorf("find(%d) is %d, want %d", seq, got, want)
		}
	}
	if (&manifest{}).find(0) != -1 {
		t.Error("found an entry in an empty manifest")
	}
}

// TestManifestUnchanged makes changes from one manifest twice: none may show
// in another.
func TestManifestUnchanged(t *testing.T) {
	m := mustSeal(t, &manifest{}, 10, 10)
	m.segments = slices.Grow(m.segments, 8)
	before := slices.Clone(m.segments)
	a, b := mustSeal(t, m, 3), mustSeal(t, m, 4)
	if a.segments[2].count != 3 || b.segments[2].count != 4 {
		t.Errorf("two successors of one manifest share memory: %d, %d", a.segments[2].count, b.segments[2].count)
	}
	if _, err := m.withWritten(10, 99, hash{1}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := m.withConfirmed(before[0].written()); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(m.segments, before) || m.confirmed != 0 {
		t.Error("a manifest changed")
	}
}

func TestManifestWritten(t *testing.T) {
	m := mustSeal(t, &manifest{}, 10, 10)
	info := m.segments[1].written()
	next, err := m.withWritten(10, info.size, info.sum)
	if err != nil || next.segments[1] != info || next.segments[0] != m.segments[0] {
		t.Fatalf("manifest is %+v, %v", next, err)
	}
	if again, err := next.withWritten(10, info.size, info.sum); err != nil || again.segments[1] != info {
		t.Errorf("writing the same file again: %v", err)
	}
	_, err = next.withWritten(10, info.size+1, info.sum)
	wantError(t, err, errDiverged, info.id(), "this node's file is 1011 bytes", "the leader's 1010 bytes", info.sum.String())
	_, err = next.withWritten(10, info.size, hash{1})
	wantError(t, err, errDiverged, info.id(), hash{1}.String(), info.sum.String())
	_, err = next.withWritten(20, 1, hash{})
	wantError(t, err, errCorrupt, "no segment starts at 20")
}

func TestManifestConfirmed(t *testing.T) {
	m := mustSeal(t, &manifest{}, 10, 10)
	leader := m.segments[0].written()
	leader.object = "x.gz"

	next, changed, err := m.withConfirmed(leader)
	if err != nil || !changed || next.version != 1 || next.confirmed != 1 || !slices.Equal(next.shown(), []segmentInfo{leader}) {
		t.Fatalf("manifest is %+v, %v, %v", next, changed, err)
	}
	for name, i := range map[string]segmentInfo{"a repeat": leader, "a segment not sealed": testInfo(20, 1), "no segment": testInfo(11, 1)} {
		if same, changed, err := next.withConfirmed(i); same != next || changed || err != nil {
			t.Errorf("confirming %s: %v, %v", name, changed, err)
		}
	}
	if same, changed, err := m.withConfirmed(m.segments[1]); same != m || changed || err != nil {
		t.Errorf("confirming out of order: %v, %v", changed, err)
	}

	// The file that is written later must be the leader's.
	if _, err := next.withWritten(0, leader.size, leader.sum); err != nil {
		t.Error(err)
	}
	_, err = next.withWritten(0, leader.size, hash{1})
	wantError(t, err, errDiverged, "this node's file")

	second, _, err := next.withConfirmed(next.segments[1].written())
	if err != nil || second.version != 2 || second.confirmed != 2 {
		t.Errorf("second: %+v, %v", second, err)
	}
	if last, changed, err := second.withConfirmed(second.segments[1]); last != second || changed || err != nil {
		t.Errorf("confirming when all are: %v, %v", changed, err)
	}
}

func TestManifestDiverged(t *testing.T) {
	m := mustSeal(t, &manifest{}, 10)
	own := m.segments[0]
	for want, change := range map[string]func(*segmentInfo){
		"the leader's is 0100": func(i *segmentInfo) { i.root = hash{1} },
		"over 11 sealed at 0":  func(i *segmentInfo) { i.count = 11 },
		"over 10 sealed at 1":  func(i *segmentInfo) { i.time++ },
	} {
		leader := own.written()
		change(&leader)
		next, changed, err := m.withConfirmed(leader)
		wantError(t, err, errDiverged, "this node has diverged from the others: entries 0 to 9: root here is "+own.root.String()+" over 10 entries sealed at 0", want)
		if next != nil || changed {
			t.Errorf("%s: gave a manifest", want)
		}
	}
	m, err := m.withWritten(0, own.written().size, own.written().sum)
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range []func(*segmentInfo){func(i *segmentInfo) { i.size++ }, func(i *segmentInfo) { i.sum = hash{7} }} {
		leader := own.written()
		change(&leader)
		_, _, err := m.withConfirmed(leader)
		wantError(t, err, errDiverged, "segment "+own.id()+": this node's file is 1000 bytes with SHA-256 "+own.written().sum.String(),
			fmt.Sprintf("the leader's %d bytes with %s", leader.size, leader.sum))
	}
}
