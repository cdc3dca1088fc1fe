package main

import (
	"sync"
	"time"
)

// logLimits says how much of the Raft log is kept that the checkpoint D covers.
// A restart of this node needs none of it. It is for followers that are behind:
// from the log they get single entries, without it whole segments.
//
//	bytes   what lies further behind D goes: a follower that lacks so much
//	        is served as well by the segments
//	age     what is older goes, too
//	floor   so much of the newest log stays, however old: in a quiet cluster a
//	        follower that was away for a night needs no snapshot
//
// What is not behind the D before the newest stays as well: a follower that has
// just installed that one goes on from there.
type logLimits struct {
	bytes int64
	age   time.Duration
	floor int64
}

// defaultLogLimits: a node that restarts, or is replaced at its address, is away
// for seconds to minutes, in which a busy cluster writes some ten MiB. The
// Raft log takes about so much again for what is behind D no longer than that.
var defaultLogLimits = logLimits{bytes: 64 << 20, age: time.Hour, floor: 8 << 20}

// logMark says that the entries before index are older than a moment.
type logMark struct {
	index uint64
	at    time.Time
}

// logAges remembers when D was where; after a restart it knows nothing older.
type logAges struct {
	mu    sync.Mutex
	marks []logMark // oldest first
}

// before notes that D is at index now and returns an index before which all
// entries are older than age, as far as is known.
func (a *logAges) before(index uint64, now time.Time, age time.Duration) uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.marks = append(a.marks, logMark{index, now})
	old := uint64(0)
	for len(a.marks) > 0 && now.Sub(a.marks[0].at) >= age {
		old, a.marks = a.marks[0].index, a.marks[1:]
	}
	return old
}

// checkpointMoved is called when D has moved: the leader has a segment to
// confirm, and what the log has behind D and nobody needs goes.
func (n *node) checkpointMoved(at checkpoint) {
	n.wakeSeal()
	before := n.lastD.Swap(at.index)
	first, last := n.log.bounds()
	if first == 0 {
		return
	}
	keep := n.keepFrom(time.Now(), at.index, before, last)
	if keep > first {
		if err := n.log.DeleteRange(first, keep-1); err != nil {
			n.o.logger.Error("shortening the Raft log", "error", err)
			return
		}
		n.o.metrics.log.dropped.add(keep - first)
		first = keep
	}
	n.o.metrics.log.bytes.set(n.log.bytes())
	n.o.metrics.log.behind.set(int64(at.index+1) - int64(min(first, at.index+1)))
}

// keepFrom returns the oldest entry to keep when D moves from before to at.
func (n *node) keepFrom(now time.Time, at, before, last uint64) uint64 {
	o := n.o.logLimits
	if o == (logLimits{}) {
		o = defaultLogLimits
		o.bytes = max(o.bytes, n.o.segmentSize)
	}
	old := n.ages.before(at, now, o.age)
	keep := max(n.log.back(at+1, o.bytes), old)
	return min(keep, before, at, n.log.back(last+1, o.floor))
}
