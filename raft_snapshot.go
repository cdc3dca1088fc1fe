package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

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

// segmentFetcher gets the segments a snapshot names from other nodes, in the
// background, while Raft goes on.
type segmentFetcher struct {
	n *node

	mu      sync.Mutex
	running bool
	want    []segmentInfo
	named   []raft.Server             // who the snapshot says are there
	got     map[uint64]fetchedSegment // by first seq
}

// fetch returns the segments of snap that this node's D lacks, all on its disk,
// or errFetching at once while they are on their way.
func (f *segmentFetcher) fetch(snap *snapshot) ([]fetchedSegment, error) {
	from := f.n.store.durable.Load().at.size
	f.mu.Lock()
	defer f.mu.Unlock()
	f.want, f.named = f.want[:0], nil
	if len(snap.at.configuration) > 0 {
		f.named = raft.DecodeConfiguration(snap.at.configuration).Servers
	}
	var have []fetchedSegment
	for _, info := range snap.segments {
		if info.first < from {
			continue
		}
		if g, ok := f.got[info.first]; ok && g.info.id() == info.id() {
			have = append(have, g)
		} else {
			f.want = append(f.want, info)
		}
	}
	if len(f.want) == 0 {
		f.got = nil
		return have, nil
	}
	if !f.running {
		f.running = true
		f.n.done.Go(f.run)
	}
	return nil, fmt.Errorf("%w: %d of %d are missing", errFetching, len(f.want), len(snap.segments))
}

// run fetches what is wanted until nothing is.
func (f *segmentFetcher) run() {
	for f.n.ctx.Err() == nil {
		f.mu.Lock()
		if len(f.want) == 0 {
			f.running = false
			f.mu.Unlock()
			return
		}
		info := f.want[0]
		f.mu.Unlock()
		g, err := f.fetchOne(info)
		if err != nil {
			f.n.o.logger.Warn("fetching a segment", "segment", info.id(), "error", err)
			f.n.pause(200 * time.Millisecond)
			continue
		}
		f.mu.Lock()
		if f.got == nil {
			f.got = make(map[uint64]fetchedSegment)
		}
		f.got[info.first] = g
		if len(f.want) > 0 && f.want[0].first == info.first {
			f.want = f.want[1:]
		}
		f.mu.Unlock()
	}
}

// fetchOne gets one segment from the first server that has it.
func (f *segmentFetcher) fetchOne(info segmentInfo) (fetchedSegment, error) {
	err := errors.New("no other node to fetch from")
	for _, s := range f.sources() {
		g, ferr := f.n.store.fetchSegment(info, func(w io.Writer) error {
			return f.n.pullSegment(string(s.Address), info.id(), w)
		})
		if ferr == nil {
			f.n.o.logger.Info("segment fetched", "segment", info.id(), "from", s.ID)
			return g, nil
		}
		err = errors.Join(err, ferr)
	}
	return fetchedSegment{}, err
}

// sources returns the servers to fetch from. A newcomer's Raft has no
// configuration before its first snapshot is installed, but that names one, and
// whoever sends it is the leader.
func (f *segmentFetcher) sources() []raft.Server {
	f.mu.Lock()
	all := append(f.n.others(), f.named...)
	f.mu.Unlock()
	if addr, id := f.n.leaderServer(); addr != "" {
		all = append(all, raft.Server{ID: id, Address: addr})
	}
	own := serverID(f.n.identity())
	seen := make(map[raft.ServerID]bool)
	return slices.DeleteFunc(all, func(s raft.Server) bool {
		known := s.ID == own || seen[s.ID]
		seen[s.ID] = true
		return known
	})
}

// pullSegment copies a segment file from another node to w.
func (n *node) pullSegment(addr, id string, w io.Writer) error {
	ctx, cancel := context.WithTimeout(n.ctx, time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/segments/"+id, nil)
	if err != nil {
		return err
	}
	res, err := n.port.client().Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: segment %s: %s", addr, id, res.Status)
	}
	_, err = io.Copy(w, res.Body)
	return err
}

// serveSegment sends a sealed segment file.
func (n *node) serveSegment(w http.ResponseWriter, r *http.Request) {
	file, _, err := n.store.segmentByID(r.PathValue("id"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	http.ServeContent(w, r, "", time.Time{}, io.NewSectionReader(file.f, 0, file.size))
}

// snapshotInstalled is called when D has moved to an installed snapshot. If the
// Raft log has entries of a leader that lost there, Raft would refuse every
// entry that follows, for it remembers the end of that log (raft.md F4): the
// node is opened again, which drops them (matchLog). A crash before does the
// same.
func (n *node) snapshotInstalled(snap *snapshot) {
	conflict, err := n.conflicts(snap.at.index, snap.at.term)
	if err != nil {
		n.fail(err)
	} else if conflict {
		n.fail(fmt.Errorf("%w: the Raft log disagrees with the installed snapshot", errRestart))
	}
}
