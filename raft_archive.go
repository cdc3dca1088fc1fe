package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"
)

// The leader brings each confirmed segment to the bucket once, oldest first, and
// tells all nodes through Raft which object holds it. A segment takes these steps,
// and whoever leads after a crash takes them again:
//
//	pack    the file becomes a packed segment in a .tmp file of the data directory,
//	        while the segment before it takes the other steps.
//	        A crash leaves that; the next start removes it.
//	put     the object, unless there is one of that name. A crash before leaves
//	        nothing, after it an object that nothing names. Its name says what is in
//	        it, so the next leader makes the same name, finds it taken and goes on.
//	check   the whole object is read back: it is what was packed, to the byte. One
//	        that another packer has put is unpacked, and compared with its name.
//	        Only what was read back counts, whoever put it.
//	record  the archived command. A crash before leaves a good object that nothing
//	        names, as after put; a command that is proposed twice changes nothing.
//
// Local copies are for the store to drop (store_archive.go), and only of segments
// that are recorded; each node unpacks the object before, and compares it with its
// file. After a round the leader writes a bucket manifest (raft_archive_bucket.go),
// which a rebuild begins with; a crash before that leaves the older one, which is
// good, and the next leader writes the newer one.
//
// An object that does not read back as what its name says is never overwritten and
// never recorded, and one that does not unpack never lets a local copy go: the
// segment stays here. A bucket that does not answer holds up
// nobody: writes go on, and it is asked again, ever more seldom.

const (
	archiveEvery     = time.Minute // between two looks for work
	archiveFirstWait = time.Second // before the bucket is asked again after an error; then doubled
)

// errArchive is wrapped by the reason why the bucket did not take everything.
var errArchive = errors.New("not everything is archived")

// archiver is what a node has to do with the bucket.
type archiver struct {
	n      *node
	asked  atomic.Int32           // clients of this node who wait for a round
	state  atomic.Pointer[string] // for /health; nil = the bucket was not asked yet
	probed atomic.Bool            // the bucket can be used, and is this cluster's
	rounds longMutex              // held for a round

	// guarded by rounds
	wrong     map[uint64]wrongObject // by the first entry of the segment
	published publishedManifest
	beat      int       // how many objects the patrol has visited
	visited   time.Time // when it did last
	listed    time.Time // when what is there was last compared with what should be
}

// wrongObject is an object that is not what its name says.
type wrongObject struct {
	key  string
	what string
	err  error
	seen time.Time
}

// What may be wrong with an object.
const (
	otherBytes = "holds other bytes than its name says, and is left as it is"
	goneObject = "is gone, and no node has the segment"
)

func (w *wrongObject) Error() string { return fmt.Sprintf("%s %s: %s", w.key, w.what, w.err) }

func (w *wrongObject) Unwrap() error { return w.err }

// loop looks for work every o.archiveEvery, sooner after an error.
func (a *archiver) loop() {
	for wait, pause := time.Duration(0), archiveFirstWait; a.pause(wait); {
		if err := a.turn(a.n.ctx); err == nil {
			wait, pause = a.n.o.archiveEvery, archiveFirstWait
		} else {
			wait, pause = min(pause, a.n.o.archiveEvery), min(2*pause, a.n.o.archiveEvery)
		}
	}
}

// pause waits and tells whether the node is still open.
func (a *archiver) pause(d time.Duration) bool {
	a.n.pause(d)
	return a.n.ctx.Err() == nil
}

// turn does what is due, and notes how the bucket is.
func (a *archiver) turn(ctx context.Context) error {
	a.rounds.Lock()
	defer a.rounds.Unlock()
	err := a.probe(ctx)
	if err == nil {
		err = a.look(ctx)
	}
	if err == nil && a.n.isReady() {
		err = a.work(ctx)
	}
	a.note(err)
	return err
}

// look finds out whether the bucket still answers; live need not be there.
func (a *archiver) look(ctx context.Context) error {
	_, err := a.n.o.objects.size(ctx, a.folder()+liveName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// work is the leader's turn.
func (a *archiver) work(ctx context.Context) (err error) {
	if a.n.o.archiveAsked {
		err = a.publish(ctx)
	} else {
		_, err = a.round(ctx, false)
	}
	if err == nil {
		err = a.patrol(ctx)
	}
	return errors.Join(err, a.wrongs())
}

// note keeps what /health says, and logs a line when the bucket comes or goes.
func (a *archiver) note(err error) {
	raft := errors.Is(err, errNoLeader) || errors.Is(err, errNotApplied) || errors.Is(err, errUnknownOutcome)
	if raft || errors.Is(err, context.Canceled) || a.n.ctx.Err() != nil {
		return // that is not about the bucket
	}
	now, before := "ok", a.state.Load()
	if err != nil {
		now = a.n.withoutPaths(err)
	}
	a.state.Store(&now)
	a.n.o.metrics.archive.usable.set(0)
	switch was := before != nil && *before != "ok"; {
	case err == nil:
		a.n.o.metrics.archive.usable.set(1)
		if was {
			a.n.o.logger.Info("the archive works again")
		}
	case !was:
		a.n.o.logger.Warn("the archive does not work, writes go on", "error", err)
	}
}

// withoutPaths returns the text of an error for a client, whom it does not concern
// where this node has its files.
func (n *node) withoutPaths(err error) string {
	return strings.ReplaceAll(oneLine(err), filepath.Clean(n.o.dataDir)+string(filepath.Separator), "")
}

// oneLine returns the text of an error that may be several.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// health returns what note kept.
func (a *archiver) health() string {
	if s := a.state.Load(); s != nil {
		return *s
	}
	return ""
}

// folder returns how the keys of this cluster begin.
func (a *archiver) folder() string {
	return bucketFolder(a.n.o.objectPrefix, a.n.self.Load().cluster)
}

// round archives all confirmed segments that are not, and tells how many it did.
// What is wrong with a single segment holds up no other.
func (a *archiver) round(ctx context.Context, asked bool) (archived int, err error) {
	var due []segmentInfo
	here := a.n.store.durable.Load().at.size // a new leader may still have to seal what is confirmed
	for _, info := range a.n.store.manifest.Load().shown() {
		if info.object == "" && (asked || info.end() <= here && !a.isWrong(info)) {
			due = append(due, info)
		}
	}
	var odd error
	for p := range a.packAhead(ctx, due) {
		if !a.n.leads() {
			return archived, errNoLeader
		}
		err := a.archive(ctx, p)
		var wrong *wrongObject
		switch {
		case err == nil:
			archived++
			continue
		case ctx.Err() != nil:
			return archived, ctx.Err()
		}
		a.n.o.metrics.archive.failed.add(1)
		switch {
		case errors.As(err, &wrong):
			a.noteWrong(p.info, wrong)
		case p.err != nil:
			odd = errors.Join(odd, err)
		default:
			return archived, err
		}
	}
	return archived, errors.Join(odd, a.publish(ctx))
}

// noteWrong remembers an object with wrong bytes, and logs it once.
func (a *archiver) noteWrong(info segmentInfo, w *wrongObject) {
	if _, known := a.wrong[info.first]; !known {
		a.n.o.logger.Error("an object in the bucket is not what its name says", "segment", info.id(), "error", w)
	}
	if a.wrong == nil {
		a.wrong = make(map[uint64]wrongObject)
	}
	a.wrong[info.first] = *w
}

// isWrong tells whether the object of a segment was found to be wrong lately.
func (a *archiver) isWrong(info segmentInfo) bool {
	w, ok := a.wrong[info.first]
	return ok && time.Since(w.seen) < wrongObjectWait
}

// wrongs returns what is known to be wrong in the bucket, nil if nothing is.
func (a *archiver) wrongs() (err error) {
	for _, info := range a.n.store.manifest.Load().shown() {
		if w, ok := a.wrong[info.first]; ok && err == nil {
			err = &w
		}
	}
	a.n.o.metrics.archive.wrong.set(int64(len(a.wrong)))
	return err
}

// archiveResult is the answer to POST /cluster/archive.
type archiveResult struct {
	Archived int    `json:"archived"`          // by this call
	Segments int    `json:"segments"`          // confirmed ones
	InBucket int    `json:"archived_segments"` // as many of them are in the bucket
	Size     uint64 `json:"ledger_size"`       // entries that the bucket has without a gap
	Version  uint64 `json:"manifest_version"`
}

// archiveAnswer is archiveResult between nodes.
type archiveAnswer struct {
	archiveResult
	Reason string `json:"reason,omitempty"` // why the bucket did not take everything
}

// archive has the leader archive all confirmed segments; this node's manifest shows
// them when it returns.
func (n *node) archive(ctx context.Context) (archiveResult, error) {
	if n.o.objects == nil {
		return archiveResult{}, errNoBucket
	}
	answer, err := n.askArchive(ctx)
	if err == nil && answer.Reason != "" {
		err = fmt.Errorf("%w: %s", errArchive, answer.Reason)
	}
	if err == nil {
		err = n.waitManifest(ctx, answer.Version)
	}
	return answer.archiveResult, err
}

// waitManifest waits until this node's manifest has that version.
func (n *node) waitManifest(ctx context.Context, version uint64) error {
	ctx, cancel := context.WithTimeout(ctx, n.o.readTimeout)
	defer cancel()
	for n.store.manifest.Load().version < version {
		n.commits.join(ctx, n, n.hearCommit) // else Raft tells us up to 40 ms later
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: version %d of the manifest: %w", errNotYetApplied, version, ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

// askArchive archives, or has the leader do it.
func (n *node) askArchive(ctx context.Context) (answer archiveAnswer, err error) {
	if n.leads() {
		n.archiver.asked.Add(1)
		defer n.archiver.asked.Add(-1)
		return n.archiveNow(ctx)
	}
	addr, _ := n.leaderServer()
	if addr == "" {
		return answer, errNoLeader
	}
	ctx, cancel := n.whileLeads(ctx, string(addr))
	defer cancel()
	if err := n.call(ctx, http.MethodPost, string(addr), "/archive", nil, &answer); err != nil {
		return answer, fmt.Errorf("%w: %w", errNoLeader, err) // or it just was
	}
	return answer, nil
}

// archiveNow archives all confirmed segments; a bucket that refuses is an answer.
func (n *node) archiveNow(ctx context.Context) (answer archiveAnswer, err error) {
	a := &n.archiver
	a.rounds.Lock()
	defer a.rounds.Unlock()
	if err = a.probe(ctx); err == nil {
		answer.Archived, err = a.round(ctx, true)
		if err == nil {
			err = a.list(ctx)
		}
		err = errors.Join(err, a.wrongs())
	}
	a.note(err)
	if errors.Is(err, errNoLeader) || ctx.Err() != nil {
		return answer, err
	}
	if err != nil {
		answer.Reason = n.withoutPaths(err)
	}
	m := n.store.manifest.Load()
	prefix, total := m.archived()
	if prefix > 0 {
		answer.Size = m.segments[prefix-1].end()
	}
	answer.Segments, answer.InBucket, answer.Version = m.confirmed, total, m.version
	return answer, nil
}

// serveArchive archives for a follower.
func (n *node) serveArchive(w http.ResponseWriter, r *http.Request) {
	if !n.leads() || n.o.objects == nil {
		respond(w, nil, errNoLeader)
		return
	}
	answer, err := n.archiveNow(r.Context())
	respond(w, answer, err)
}
