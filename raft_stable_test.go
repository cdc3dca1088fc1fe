package main

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

var _ raft.StableStore = (*stableStore)(nil)

// mustOpenStable opens the file and closes it with the test.
func mustOpenStable(t *testing.T, path string) *stableStore {
	t.Helper()
	s, err := openStableStore(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.close() })
	return s
}

// stableState reads all three values back, through the interface.
func stableState(s *stableStore) (string, error) {
	term, err := s.GetUint64([]byte("CurrentTerm"))
	if err != nil {
		return "", err
	}
	voted, err := s.GetUint64([]byte("LastVoteTerm"))
	if err != nil {
		return "", err
	}
	cand, err := s.Get([]byte("LastVoteCand"))
	if err != nil && err.Error() != "not found" {
		return "", err
	}
	return fmt.Sprintf("term %d, voted in %d for %q", term, voted, cand), nil
}

// wantStable fails the test unless s holds that state.
func wantStable(t *testing.T, s *stableStore, want string) {
	t.Helper()
	if got, err := stableState(s); err != nil || got != want {
		t.Fatalf("state is %s, %v; want %s", got, err, want)
	}
}

// setStable stores the three values as raft does.
func setStable(t *testing.T, s *stableStore, term, voted uint64, cand string) {
	t.Helper()
	err := errors.Join(
		s.SetUint64([]byte("CurrentTerm"), term),
		s.SetUint64([]byte("LastVoteTerm"), voted),
		s.Set([]byte("LastVoteCand"), []byte(cand)))
	if err != nil {
		t.Fatal(err)
	}
}

func TestStableStore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "stable.db")
	s := mustOpenStable(t, path)
	wantStable(t, s, `term 0, voted in 0 for ""`)
	if _, err := s.Get([]byte("LastVoteCand")); err == nil || err.Error() != "not found" {
		t.Fatalf(`no vote: error %v, raft wants the text "not found"`, err)
	}
	setStable(t, s, 7, 6, "node-1")
	wantStable(t, s, `term 7, voted in 6 for "node-1"`)
	if err := s.Set([]byte("Other"), nil); err == nil {
		t.Fatal("a key without a place was stored")
	}
	s.close()
	s = mustOpenStable(t, path)
	wantStable(t, s, `term 7, voted in 6 for "node-1"`)
}

// What does not change is not written; a start writes what it read again, for
// the process before may have failed to make it durable, in the places there are.
func TestStableSkipsUnchanged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "stable.db")
	s := mustOpenStable(t, path)
	setStable(t, s, 7, 6, "node-1")
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	setStable(t, s, 7, 6, "node-1")
	s.close()
	after, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(before, after) {
		t.Fatalf("file changed although no value did (%v)", err)
	}
	mustOpenStable(t, path).close()
	again, err := os.ReadFile(path)
	if err != nil || len(again) != len(before) || bytes.Equal(before, again) {
		t.Fatalf("a start left %d bytes as they were, of %d (%v)", len(again), len(before), err)
	}
	v, err := readVote(path)
	if err != nil || v.term != 7 || v.votedIn != 6 || string(v.candidate) != "node-1" {
		t.Fatalf("after a start: %+v, %v", v, err)
	}
}

// The file never needs more space than it takes at the start.
func TestStableDoesNotGrow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "stable.db")
	s := mustOpenStable(t, path)
	s.db.NoSync = true
	before, _ := os.ReadFile(path)
	used := func(b []byte) int { m, _ := parseBoltMeta(bytes.NewReader(b), 0, int64(len(b))); return int(m.pages) }
	for i := range uint64(200) {
		setStable(t, s, i+1, i, fmt.Sprintf("node-%d", i%7))
	}
	s.close()
	after, _ := os.ReadFile(path)
	if len(after) != len(before) || used(after) != used(before) {
		t.Fatalf("file grew from %d to %d bytes, pages from %d to %d", len(before), len(after), used(before), used(after))
	}
	wantStable(t, mustOpenStable(t, path), `term 200, voted in 199 for "node-3"`)
}

// Every flip and every cut is refused or changes nothing; it never kills the
// process and never forgets a vote.
func TestStableDamage(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "stable.db")
	s := mustOpenStable(t, path)
	setStable(t, s, 7, 6, "node-1")
	s.close()
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want, _ := readVote(path)
	refused := 0
	check := func(what string, b []byte) {
		v, err := parseStable(b)
		if err != nil {
			refused++
			if !errors.Is(err, errCorrupt) {
				t.Fatalf("%s: error %v is not errCorrupt", what, err)
			}
			return
		}
		if v.term != want.term || v.votedIn != want.votedIn || !bytes.Equal(v.candidate, want.candidate) {
			t.Fatalf("%s: read %+v, want %+v", what, v, want)
		}
	}
	meta, _ := parseBoltMeta(bytes.NewReader(good), 0, int64(len(good)))
	pages := int(meta.pages * meta.pageSize)
	for i := range pages {
		bad := bytes.Clone(good)
		bad[i] ^= []byte{0x01, 0xff}[i%2]
		check(fmt.Sprintf("byte %d flipped", i), bad)
	}
	if refused < 200 {
		t.Fatalf("only %d flips were refused", refused)
	}
	for n := 0; n < len(good); n += 7 {
		refused = 0
		check(fmt.Sprintf("cut to %d bytes", n), good[:n])
		if n < pages && refused == 0 {
			t.Fatalf("cut to %d bytes of %d was accepted", n, pages)
		}
	}
}

// What parseStable lets pass, bbolt must survive, and the next vote must be stored.
func TestStableOpensAfterHarmlessFlip(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "stable.db")
	s := mustOpenStable(t, path)
	setStable(t, s, 7, 6, "node-1")
	s.close()
	good, _ := os.ReadFile(path)
	for i := 0; i < len(good); i += 131 {
		bad := bytes.Clone(good)
		bad[i] ^= 0xff
		path := filepath.Join(dir, "bad.db")
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := openStableStore(path)
		if err != nil {
			continue
		}
		s.db.NoSync = true
		setStable(t, s, 9, 9, "node-2")
		s.close()
		if v, err := readVote(path); err != nil || v.term != 9 {
			t.Fatalf("byte %d flipped: after the next vote: %+v, %v", i, v, err)
		}
	}
}

// Two processes cannot hold the file; the second is told so in time.
func TestStableLocked(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "stable.db")
	mustOpenStable(t, path)
	start := time.Now()
	if _, err := openStableStore(path); err == nil || time.Since(start) > 10*time.Second {
		t.Fatalf("second open: %v after %v", err, time.Since(start))
	}
}

// A failed write poisons: bbolt lies in both directions after one.
func TestStablePoisoned(t *testing.T) {
	path := filepath.Join(t.TempDir(), "stable.db")
	s := mustOpenStable(t, path)
	setStable(t, s, 7, 6, "node-1")
	s.close() // every commit fails from now on
	if err := s.SetUint64([]byte("CurrentTerm"), 8); !errors.Is(err, errStablePoisoned) {
		t.Fatalf("write to a broken file: %v", err)
	}
	if _, err := s.GetUint64([]byte("CurrentTerm")); !errors.Is(err, errStablePoisoned) {
		t.Fatalf("read after a failed write: %v", err)
	}
}

// TestTermNotStored: a node that cannot store its term ends with the reason,
// and without the panic that Raft has for it.
func TestTermNotStored(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	leader := c.leader()
	victim := (leader + 1) % 3
	if err := c.nodes[victim].stable.close(); err != nil { // every commit fails from now on
		t.Fatal(err)
	}
	c.kill(leader)
	if err := receive(t, c.nodes[victim].failed(), "the node ends"); !errors.Is(err, errStablePoisoned) {
		t.Fatalf("the node ended with %v", err)
	}
	c.kill(victim)
	c.start(leader)
	c.start(victim)
	c.leader()
}

const goldenVote = "01" + "0000000000000007" + "0000000000000006" + "06" + "6e6f64652d31" + "898c3a6e"

func TestVoteRecord(t *testing.T) {
	v := vote{7, 6, []byte("node-1")}
	b := appendVote(nil, v)
	if got := hex.EncodeToString(b); got != goldenVote {
		t.Fatalf("record is %s, want %s", got, goldenVote)
	}
	if got, err := parseVote(b); err != nil || got.term != 7 || got.votedIn != 6 || string(got.candidate) != "node-1" {
		t.Fatalf("parsed %+v, %v", got, err)
	}
	for n := range b {
		if v, err := parseVote(b[:n]); err == nil {
			t.Fatalf("cut to %d bytes: %+v", n, v)
		}
	}
	for i := range b {
		bad := bytes.Clone(b)
		bad[i] ^= 0x10
		if v, err := parseVote(bad); err == nil {
			t.Fatalf("byte %d flipped: %+v", i, v)
		}
	}
}

func FuzzVoteRecord(f *testing.F) {
	f.Add(appendVote(nil, vote{7, 6, []byte("node-1")}))
	f.Add(appendVote(nil, vote{}))
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := parseVote(b)
		if err == nil && !bytes.Equal(appendVote(nil, v), b) {
			t.Fatalf("%x parses to %+v, which is other bytes", b, v)
		}
	})
}

// The meta pages are checked before anything they point to is looked at.
func FuzzStableFile(f *testing.F) {
	path := filepath.Join(f.TempDir(), "stable.db")
	s, err := openStableStore(path)
	if err != nil {
		f.Fatal(err)
	}
	s.close()
	good, _ := os.ReadFile(path)
	f.Add([]byte{})
	f.Add([]byte{0, 20, 1, 16, 30, 2})
	f.Fuzz(func(t *testing.T, patches []byte) {
		b := bytes.Clone(good)
		for ; len(patches) >= 3; patches = patches[3:] { // offset, value
			b[(int(patches[0])<<8|int(patches[1]))%len(b)] = patches[2]
		}
		b = b[:len(b)-len(patches)*4096]
		if v, err := parseStable(b); err == nil && len(v.candidate) > 255 {
			t.Fatalf("%+v", v)
		}
	})
}
