package main

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"go.etcd.io/bbolt"
)

// What Raft must never forget: the current term, and the vote given last. It
// lives in a bbolt file of its own, bucket "raft", under the single key
// "vote". Big-endian:
//
//	offset  size  field
//	     0     1  format: 1
//	     1     8  CurrentTerm
//	     9     8  LastVoteTerm
//	    17     1  length of LastVoteCand, then LastVoteCand
//	     .     4  CRC32C (Castagnoli) of all before
//
// There is one record, present from the first moment on, and not a key for
// each value: a key that damage made disappear would read as a vote that was
// never given. bbolt checks nothing but its meta pages and maps the file, so
// that damage elsewhere misleads or kills the process; therefore parseStable
// checks the file, byte by byte where it matters, before bbolt sees it.
//
// A commit is bbolt's: data page, sync, meta page, sync. A crash leaves the
// record from before or from after it.

// Part of the file format; never change, add a version.
const (
	voteFormat = 1
	voteFixed  = 18 // bytes before LastVoteCand
)

var (
	voteBucket = []byte("raft")
	voteKey    = []byte("vote")
	// errNoVote is returned for a LastVoteCand that was never set; raft compares the text.
	errNoVote = errors.New("not found")
	// errStablePoisoned: a write failed, so that nobody knows which record is on the disk.
	errStablePoisoned = errors.New("raft term and vote are in doubt")
)

// vote is the record.
type vote struct {
	term      uint64 // CurrentTerm
	votedIn   uint64 // LastVoteTerm
	candidate []byte // LastVoteCand; empty = none
}

// appendVote appends the bytes of v.
func appendVote(b []byte, v vote) []byte {
	start := len(b)
	b = append(b, voteFormat)
	b = binary.BigEndian.AppendUint64(b, v.term)
	b = binary.BigEndian.AppendUint64(b, v.votedIn)
	b = append(b, byte(len(v.candidate)))
	b = append(b, v.candidate...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// parseVote reads what appendVote wrote; the result shares nothing with b.
func parseVote(b []byte) (vote, error) {
	if len(b) < voteFixed+4 {
		return vote{}, fmt.Errorf("%w: record has %d bytes, want at least %d", errCorrupt, len(b), voteFixed+4)
	}
	if b[0] != voteFormat {
		return vote{}, fmt.Errorf("%w: record has format %d, this program reads %d", errCorrupt, b[0], voteFormat)
	}
	body := b[:len(b)-4]
	if got, want := crc32.Checksum(body, castagnoli), binary.BigEndian.Uint32(b[len(body):]); got != want {
		return vote{}, fmt.Errorf("%w: record has checksum %08x, says %08x", errCorrupt, got, want)
	}
	if n := int(b[17]); n != len(body)-voteFixed {
		return vote{}, fmt.Errorf("%w: record has a candidate of %d bytes, says %d", errCorrupt, len(body)-voteFixed, n)
	}
	return vote{
		term:      binary.BigEndian.Uint64(b[1:]),
		votedIn:   binary.BigEndian.Uint64(b[9:]),
		candidate: append([]byte(nil), body[voteFixed:]...),
	}, nil
}

// stableStore is a raft.StableStore for the keys CurrentTerm, LastVoteTerm and
// LastVoteCand. A value that does not change is not written again.
type stableStore struct {
	path string

	mu       sync.Mutex // held during the commit: readers see only what is durable
	db       *bbolt.DB
	vote     vote
	poisoned error
}

// openStableStore opens the file, or makes it with term 0 and no vote. A file
// that is not whole is refused: its node may have voted.
func openStableStore(path string) (*stableStore, error) {
	s := &stableStore{path: path}
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = makeStable(path)
	}
	if err == nil {
		s.vote, err = readVote(path)
	}
	if err == nil {
		s.db, err = bbolt.Open(path, 0o600, stableOptions())
	}
	if err == nil {
		if err = s.secure(); err != nil {
			s.close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("raft term and vote %s: %w", path, err)
	}
	return s, nil
}

// secure makes what was read durable, which the last process may have failed
// to, as with the end of the Raft log (secureEnd). The pages have their places;
// where that is not enough, on a full disk that writes nothing in place, a sync
// is all that can be done.
func (s *stableStore) secure() error {
	err := s.save(s.vote)
	if diskFull(err) {
		return s.db.Sync()
	}
	return err
}

// stableOptions are for a tiny file: the list of free pages is found by
// reading it, so there is no page of it to be damaged.
func stableOptions() *bbolt.Options {
	return &bbolt.Options{Timeout: time.Second, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType}
}

// makeStable makes the file with an empty record. A crash before the rename
// leaves nothing under path.
func makeStable(path string) error {
	temp := path + ".tmp"
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	db, err := bbolt.Open(temp, 0o600, stableOptions())
	if err != nil {
		return err
	}
	s := &stableStore{path: path, db: db}
	for range 4 { // so that each page later commits take turns on has its place on the disk, should it fill up
		err = cmp.Or(err, s.save(vote{}))
	}
	if err = cmp.Or(err, s.close()); err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	return osDisk{}.syncDir(filepath.Dir(path))
}

// save commits the record.
func (s *stableStore) save(v vote) error {
	return s.db.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(voteBucket)
		if err != nil {
			return err
		}
		return b.Put(voteKey, appendVote(nil, v))
	})
}

// set makes the changed record durable, unless nothing changed. The first
// failure poisons the store: bbolt may have written the record or not.
func (s *stableStore) set(change func(*vote)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.poisoned != nil {
		return s.poisoned
	}
	v := s.vote
	change(&v)
	if v.term == s.vote.term && v.votedIn == s.vote.votedIn && string(v.candidate) == string(s.vote.candidate) {
		return nil
	}
	if err := s.save(v); err != nil {
		s.poisoned = fmt.Errorf("%w: %s: %w", errStablePoisoned, s.path, err)
		return s.poisoned
	}
	s.vote = v
	return nil
}

// Set stores LastVoteCand, durably.
func (s *stableStore) Set(key, value []byte) error {
	if string(key) != "LastVoteCand" || len(value) > 255 {
		return fmt.Errorf("raft term and vote: key %q with %d bytes has no place in the record", key, len(value))
	}
	return s.set(func(v *vote) { v.candidate = append([]byte(nil), value...) })
}

// SetUint64 stores CurrentTerm or LastVoteTerm, durably.
func (s *stableStore) SetUint64(key []byte, value uint64) error {
	switch string(key) {
	case "CurrentTerm":
		return s.set(func(v *vote) { v.term = value })
	case "LastVoteTerm":
		return s.set(func(v *vote) { v.votedIn = value })
	}
	return fmt.Errorf("raft term and vote: key %q has no place in the record", key)
}

// Get returns LastVoteCand, or errNoVote.
func (s *stableStore) Get(key []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.poisoned != nil:
		return nil, s.poisoned
	case string(key) != "LastVoteCand" || len(s.vote.candidate) == 0:
		return nil, errNoVote
	}
	return append([]byte(nil), s.vote.candidate...), nil
}

// GetUint64 returns CurrentTerm or LastVoteTerm, 0 if it was never set.
func (s *stableStore) GetUint64(key []byte) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.poisoned != nil:
		return 0, s.poisoned
	case string(key) == "CurrentTerm":
		return s.vote.term, nil
	case string(key) == "LastVoteTerm":
		return s.vote.votedIn, nil
	}
	return 0, errNoVote
}

// close closes the file; every value is durable already.
func (s *stableStore) close() error { return s.db.Close() }

// raftStable is the store as Raft has it once it runs.
type raftStable struct {
	*stableStore
	fatal func(error) // the process must end
}

// Set is that of the store, if it works.
func (s raftStable) Set(key, value []byte) error { return s.orEnd(s.stableStore.Set(key, value)) }

// SetUint64 is that of the store, if it works.
func (s raftStable) SetUint64(key []byte, value uint64) error {
	return s.orEnd(s.stableStore.SetUint64(key, value))
}

// orEnd does not return an error. Raft panics over a term that is not stored,
// before main can say why, and goes on after a vote that is not. So its
// goroutine ends here, and the process with the reason.
func (s raftStable) orEnd(err error) error {
	if err != nil {
		s.fatal(err)
		runtime.Goexit()
	}
	return nil
}

// readVote reads the record from the file, without bbolt.
func readVote(path string) (vote, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return vote{}, err
	}
	return parseStable(b)
}

// parseStable returns the record in a bbolt file with the bytes b. Both meta pages must be valid,
// since each fits one sector, which no crash tears (bbolt would take the older one, and
// with it an older vote); and the page of the record must be as bbolt writes it.
func parseStable(b []byte) (vote, error) {
	meta, err := parseBoltMeta(bytes.NewReader(b), 0, int64(len(b)))
	if err != nil {
		return vote{}, fmt.Errorf("%w: meta page 0: %w", errCorrupt, err)
	}
	other, err := parseBoltMeta(bytes.NewReader(b), int64(meta.pageSize), int64(len(b)))
	if err != nil {
		return vote{}, fmt.Errorf("%w: meta page 1: %w", errCorrupt, err)
	}
	if other.tx > meta.tx {
		meta = other
	}
	record, err := parseVotePage(b[meta.root*meta.pageSize:], int64(meta.root))
	if err != nil {
		return vote{}, fmt.Errorf("%w: page %d: %w", errCorrupt, meta.root, err)
	}
	return parseVote(record)
}

// parseVotePage returns the record in the page, which is the root bucket, with
// our bucket inside it, with our key inside that.
func parseVotePage(b []byte, page int64) ([]byte, error) {
	const inner = boltPageHeader + 16 + 4 // up to the record, and before that up to the bucket
	const start = inner + 16 + inner
	size := int(binary.NativeEndian.Uint32(b[inner-4-4:])) - 16 - inner
	if size < 0 || size > 1024-start {
		return nil, fmt.Errorf("record has %d bytes", size)
	}
	want := appendBoltLeaf(nil, page, boltBucket, voteBucket, 16+inner+size)
	want = append(want, make([]byte, 16)...) // root page and sequence of a bucket that lies inside: 0
	want = appendBoltLeaf(want, 0, 0, voteKey, size)
	if !bytes.Equal(b[:start], want) {
		return nil, fmt.Errorf("page starts with %x, want %x", b[:start], want)
	}
	return b[start : start+size], nil
}

// appendBoltLeaf appends a leaf page with one element, up to its value.
func appendBoltLeaf(b []byte, page int64, flags uint32, key []byte, valueSize int) []byte {
	order := binary.NativeEndian
	b = order.AppendUint64(b, uint64(page))
	b = order.AppendUint16(b, boltLeaf)
	b = order.AppendUint16(b, 1) // elements
	b = order.AppendUint32(b, 0) // overflow pages
	b = order.AppendUint32(b, flags)
	b = order.AppendUint32(b, 16) // from the element to its key
	b = order.AppendUint32(b, uint32(len(key)))
	b = order.AppendUint32(b, uint32(valueSize))
	return append(b, key...)
}
