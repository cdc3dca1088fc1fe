package main

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
	"sync"

	"github.com/hashicorp/raft"
)

// snapshotStore shows Raft the durable checkpoint D as its only snapshot. What
// a leader sends is kept in memory until the FSM has installed it; it is never
// listed, because D moves only when all of it is on disk (raft.md 3.4).
type snapshotStore struct {
	n        *node
	mu       sync.Mutex
	received map[string]*snapshotSink
}

const snapshotID = "checkpoint"

// meta describes D to Raft.
func (s *snapshotStore) meta(at *checkpoint, size int) *raft.SnapshotMeta {
	m := &raft.SnapshotMeta{
		Version: raft.SnapshotVersionMax, ID: snapshotID, Index: at.index, Term: at.term,
		ConfigurationIndex: at.configIndex, Size: int64(size),
	}
	if len(at.configuration) > 0 {
		m.Configuration = raft.DecodeConfiguration(at.configuration)
	}
	return m
}

// List returns D, nothing while there is none.
func (s *snapshotStore) List() ([]*raft.SnapshotMeta, error) {
	at := s.n.store.durable.Load().at
	if at.index == 0 {
		return nil, nil
	}
	return []*raft.SnapshotMeta{s.meta(&at, 0)}, nil
}

// Open returns the bytes of D's snapshot, or those of one that was received.
func (s *snapshotStore) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	s.mu.Lock()
	sink := s.received[id]
	delete(s.received, id)
	s.mu.Unlock()
	if sink != nil {
		return sink.meta, io.NopCloser(&sink.Buffer), nil
	}
	state, err := s.n.store.checkpoint()
	if err != nil {
		return nil, nil, err
	}
	snap := snapshot{s.n.self.Load().cluster, state.at, state.segments, state.window}
	b := snap.append(nil)
	s.n.o.metrics.snapshot.sent.add(1)
	return s.meta(&snap.at, len(b)), io.NopCloser(bytes.NewReader(b)), nil
}

// Create takes a snapshot that a leader sends.
func (s *snapshotStore) Create(_ raft.SnapshotVersion, index, term uint64, c raft.Configuration, ci uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	id := strconv.FormatUint(term, 10) + "-" + strconv.FormatUint(index, 10)
	return &snapshotSink{store: s, meta: &raft.SnapshotMeta{
		Version: raft.SnapshotVersionMax, ID: id, Index: index, Term: term, Configuration: c, ConfigurationIndex: ci,
	}}, nil
}

// snapshotSink gathers a snapshot that a leader sends.
type snapshotSink struct {
	bytes.Buffer
	store *snapshotStore
	meta  *raft.SnapshotMeta
}

func (s *snapshotSink) ID() string    { return s.meta.ID }
func (s *snapshotSink) Cancel() error { return nil }

// Close makes the snapshot ready for the FSM to install.
func (s *snapshotSink) Close() error {
	s.meta.Size = int64(s.Len())
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	s.store.received = map[string]*snapshotSink{s.meta.ID: s}
	return nil
}

// snapshotInstalled is called when D has moved to an installed snapshot. If the
// Raft log has entries of a leader that lost there, Raft would refuse every
// entry that follows, for it remembers the end of that log (raft.md F4): the
// node is opened again, which drops them (matchLog). A crash before does the
// same.
func (n *node) snapshotInstalled(snap *snapshot) {
	n.fetches.installed()
	conflict, err := n.conflicts(snap.at.index, snap.at.term)
	if err != nil {
		n.fail(err)
	} else if conflict {
		n.fail(fmt.Errorf("%w: the Raft log disagrees with the installed snapshot", errRestart))
	}
}
