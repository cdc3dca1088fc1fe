package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
)

// A node that lacks segments of a snapshot gets them in the background, several
// at a time and from all nodes that have them (raft_fetch_peer.go), while Raft
// goes on and this node answers with what it has. A segment comes in pieces,
// each from the node that is best then; where one fails, the next goes on with
// the byte that follows (store_part.go). Nothing of it counts before the
// snapshot is installed: a restart finds the files and asks for the rest.

const (
	fetchStreams = 4        // segments fetched at a time
	pieceSize    = 16 << 20 // bytes asked of one peer at a time
	fetchPause   = 200 * time.Millisecond
	roomPause    = time.Second // while the disk is full
	fetchReport  = 10 * time.Second
)

// segmentFetcher gets the segments a snapshot names from other nodes.
type segmentFetcher struct {
	n     *node
	peers fetchPeers

	mu      sync.Mutex
	workers int
	want    []segmentInfo             // that nobody fetches yet, oldest first
	busy    map[uint64]segmentInfo    // being fetched, by first seq
	named   []raft.Server             // who the snapshot says are there
	got     map[uint64]fetchedSegment // by first seq
	run     fetchRun
	alone   logLimit // for the line that nobody (else) can be asked
}

// fetchRun is what the log says of fetching, from the first segment that is
// missing to the last.
type fetchRun struct {
	start, told time.Time
	segments    int
	bytes       uint64
	noRoom      bool
}

// fetch returns the segments of snap that this node's D lacks, all on its disk,
// or errFetching at once while they are on their way.
func (f *segmentFetcher) fetch(snap *snapshot) ([]fetchedSegment, error) {
	from := f.n.store.durable.Load().at.size
	f.mu.Lock()
	defer f.mu.Unlock()
	f.want, f.named = nil, nil
	if len(snap.at.configuration) > 0 {
		f.named = raft.DecodeConfiguration(snap.at.configuration).Servers
	}
	var have []fetchedSegment
	for _, info := range snap.segments {
		if info.first < from {
			continue
		}
		if g, ok := f.got[info.first]; ok && g.info.root == info.root {
			have = append(have, g)
		} else if b, ok := f.busy[info.first]; !ok || b.root != info.root {
			f.want = append(f.want, info)
		}
	}
	missing := len(f.want) + len(f.busy)
	f.n.o.metrics.fetch.missing.set(int64(missing))
	if missing == 0 {
		return have, nil
	}
	f.start()
	return nil, fmt.Errorf("%w: %d of %d are missing", errFetching, missing, len(snap.segments))
}

// installed forgets what was fetched, which D names now.
func (f *segmentFetcher) installed() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.got = nil
}

// start sees to it that there are workers for what is wanted; mu must be held.
func (f *segmentFetcher) start() {
	if f.run.start.IsZero() {
		f.run = fetchRun{start: time.Now(), told: time.Now()}
		f.n.o.logger.Info("fetching segments", "missing", len(f.want))
	}
	for ; f.workers < min(fetchStreams, len(f.want)+len(f.busy)); f.workers++ {
		f.n.done.Go(f.work)
	}
}

// work fetches segments until none is wanted.
func (f *segmentFetcher) work() {
	for {
		info, ok := f.take()
		if !ok {
			return
		}
		t := &fetchTry{f: f, info: info, start: time.Now()}
		g, err := f.n.store.fetchSegment(info, t.pull)
		if errors.Is(err, errInBucket) {
			g, err = f.n.store.adoptCold(f.n.ctx, info)
		}
		if errors.Is(err, errCorrupt) {
			f.peers.blame(t, f.n.o.metrics)
		}
		f.n.pause(f.finished(t, g, err))
	}
}

// take gives a worker the oldest segment that is wanted and not sealed here
// meanwhile, false if the worker may go.
func (f *segmentFetcher) take() (segmentInfo, bool) {
	at := f.n.store.durable.Load().at.size
	f.mu.Lock()
	defer f.mu.Unlock()
	f.want = slices.DeleteFunc(f.want, func(i segmentInfo) bool { return i.first < at })
	if len(f.want) == 0 || f.n.ctx.Err() != nil {
		if f.workers--; f.workers == 0 {
			f.ended()
		}
		return segmentInfo{}, false
	}
	info := f.want[0]
	f.want = f.want[1:]
	if f.busy == nil {
		f.busy = make(map[uint64]segmentInfo)
	}
	f.busy[info.first] = info
	return info, true
}

// ended tells that all is there, when the last worker goes; mu must be held.
func (f *segmentFetcher) ended() {
	took := time.Since(f.run.start)
	f.n.o.logger.Info("fetching segments has ended", "fetched", f.run.segments, "missing", len(f.want), "bytes", f.run.bytes, "took", took,
		"bytes_per_second", int64(float64(f.run.bytes)/took.Seconds()))
	f.run = fetchRun{}
	f.peers.forget()
	m := &f.n.o.metrics.fetch
	m.missing.set(int64(len(f.want)))
	m.peers.set(0)
	m.rate.set(0)
	if err := f.n.store.removeParts(); err != nil {
		f.n.o.logger.Warn("removing parts of segments", "error", err)
	}
}

// finished notes what became of a segment and returns how long to rest.
func (f *segmentFetcher) finished(t *fetchTry, g fetchedSegment, err error) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	info := t.info
	delete(f.busy, info.first)
	f.n.o.metrics.fetch.missing.set(int64(len(f.want) + len(f.busy)))
	if err != nil {
		f.want = slices.Insert(f.want, 0, info)
		return f.failed(info, err)
	}
	if f.got == nil {
		f.got = make(map[uint64]fetchedSegment)
	}
	f.got[info.first] = g
	f.run.segments++
	f.run.bytes += info.size
	f.n.o.metrics.fetch.segments.add(1)
	f.roomIs(true)
	f.n.o.logger.Info("segment fetched", "segment", info.id(), "bytes", info.size, "from", strings.Join(t.givers, ", "), "took", time.Since(t.start))
	if time.Since(f.run.told) >= fetchReport {
		f.run.told = time.Now()
		f.n.o.logger.Info("fetching segments", "missing", len(f.want)+len(f.busy), "fetched", f.run.segments, "bytes", f.run.bytes,
			"bytes_per_second", int64(float64(f.run.bytes)/time.Since(f.run.start).Seconds()))
	}
	return 0
}

// failed tells why a segment could not be fetched; mu must be held.
func (f *segmentFetcher) failed(info segmentInfo, err error) time.Duration {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, errNoRoom) {
		f.roomIs(false)
		return roomPause
	}
	switch {
	case f.n.ctx.Err() != nil:
	case errors.Is(err, errNobody), errors.Is(err, errArchiveUnavailable):
		f.alone.log, f.alone.every = f.n.o.logger, fetchReport
		f.alone.warn("fetching a segment", "segment", info.id(), "error", err)
	default:
		f.n.o.logger.Warn("fetching a segment", "segment", info.id(), "error", err)
	}
	return fetchPause
}

// roomIs notes whether the disk has room for what is fetched; mu must be held.
func (f *segmentFetcher) roomIs(room bool) {
	if f.run.noRoom == !room {
		return
	}
	f.run.noRoom = !room
	if room {
		f.n.o.metrics.fetch.waiting.set(0)
		f.n.o.logger.Warn("there is room again to fetch segments")
	} else {
		f.n.o.metrics.fetch.waiting.set(1)
		f.n.o.logger.Error("no room on the disk to fetch segments, waiting for it")
	}
}

// state is what /health says of fetching, "" if nothing is missing.
func (f *segmentFetcher) state() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	missing := len(f.want) + len(f.busy)
	switch {
	case missing == 0:
		return ""
	case f.run.noRoom:
		return fmt.Sprintf("%d segments are missing, no room on the disk to fetch them", missing)
	}
	return fmt.Sprintf("fetching, %d segments are missing", missing)
}

// errNoRoom says that the disk is too full to fetch anything.
var errNoRoom = errors.New("the disk is full")

// fetchTry is one try to get a segment.
type fetchTry struct {
	f      *segmentFetcher
	info   segmentInfo
	start  time.Time
	givers []string               // who sent bytes of it
	gone   map[raft.ServerID]bool // who is asked no more
	errs   []error                // why
	object string                 // where a peer says that it is
}

// earlier stands for the givers of what an earlier try left.
const earlier = "an earlier try"

// pull gives the bytes of the segment, piece by piece, from whoever is best
// then. It ends when nobody is left to ask.
func (t *fetchTry) pull(from uint64, w io.Writer) error {
	if from > 0 {
		t.givers = append(t.givers, earlier)
	}
	for from < t.info.size {
		if t.f.n.diskFull.Load() {
			return errNoRoom
		}
		s, p := t.f.peers.choose(t.f.sources(), t)
		if p == nil {
			return t.pullObject(from, w)
		}
		got, err := t.pullFrom(s, p, from, w)
		from += got.bytes
		if got.bytes > 0 && !slices.Contains(t.givers, string(s.ID)) {
			t.givers = append(t.givers, string(s.ID))
		}
		var own *writeError
		if errors.As(err, &own) {
			return own.error
		}
		if err != nil {
			t.leave(s.ID, err)
		}
	}
	return nil
}

// pullObject gives the bytes of a segment that peers have in the bucket only. If
// the snapshot names its object, nothing of it need come here: errInBucket. What
// only a peer names is believed when all of the file is what the snapshot says.
func (t *fetchTry) pullObject(from uint64, w io.Writer) error {
	err := errors.Join(append(t.errs, errNobody)...)
	if t.object == "" {
		return err
	}
	if t.info.object != "" {
		return fmt.Errorf("%w: %w", errInBucket, err)
	}
	info := t.info
	info.object = t.object
	t.givers = append(t.givers, "the bucket")
	return t.f.n.store.copyObject(info, int64(from), w)
}

// errInBucket says that a segment is to be adopted from the bucket.
var errInBucket = errors.New("no node has the file, it is in the bucket")

// errNobody says that there is nobody (left) to fetch from.
var errNobody = errors.New("no other node to fetch from")

// leave asks a server no more in this try.
func (t *fetchTry) leave(id raft.ServerID, err error) {
	if t.gone == nil {
		t.gone = make(map[raft.ServerID]bool)
	}
	t.gone[id] = true
	if cold := (*peerCold)(nil); errors.As(err, &cold) {
		t.object = cold.object
	}
	t.errs = append(t.errs, fmt.Errorf("server %s: %w", id, err))
}

// pullFrom has one peer send the next piece of the segment.
func (t *fetchTry) pullFrom(s raft.Server, p *fetchPeer, from uint64, w io.Writer) (pulled, error) {
	peers := &t.f.peers
	slow := func(so pulled) bool { return peers.tooSlow(p, so) }
	got, err := t.f.n.pullPiece(t.f.n.ctx, string(s.Address), t.info, from, min(from+pieceSize, t.info.size), peers.pack(p), slow, w)
	peers.release(p, got, err)
	m := &t.f.n.o.metrics.fetch
	m.bytes.add(got.bytes)
	m.wireBytes.add(got.wire)
	sending, rate := peers.sending()
	m.peers.set(int64(sending))
	m.rate.set(int64(rate))
	if cause := refusalOf(err); cause >= 0 {
		m.refused[cause].add(1)
	}
	return got, err
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
