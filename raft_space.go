package main

import (
	"cmp"
	"context"
	"math"
	"slices"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
)

// What happens before the disk is full. Below a reserve of free space a leader
// hands over to a voter that has room; if none has, it refuses writes (507) and
// goes on with reads. A follower takes what the others agree on for as long as
// there is space, and never leads. When space is back, all goes on by itself.
//
// What must still be written then has its place already: term and vote, the
// records of signed heads and the Raft log's current file are written in place.
// The Raft log's next file is as large as leaves the reserve alone.

const (
	spaceEvery  = time.Second
	leaveWithin = 5 * time.Second // to try to hand over to one node
)

// diskSpace is what a file system has, in bytes.
type diskSpace struct{ free, total uint64 }

// statSpace asks the file system that dir is on.
func statSpace(dir string) (diskSpace, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return diskSpace{}, err
	}
	size := uint64(st.Bsize)
	return diskSpace{free: st.Bavail * size, total: st.Blocks * size}, nil
}

// reserve is the high-water mark: 5 % of the disk, at least 16 MiB and at most 1 GiB.
func (s diskSpace) reserve() uint64 { return min(max(s.total/20, 16<<20), 1<<30) }

// full tells whether the reserve is touched. A disk that was full stays so until
// a quarter more than that is free: else it would be full and not full in turns.
func (s diskSpace) full(was bool) bool {
	if was {
		return s.free < s.reserve()/4*5
	}
	return s.free < s.reserve()
}

// spareSpace returns how many bytes the disk has beyond its reserve, which is what
// may be taken ahead of need. If that is little, spaceLoop looks at once: a second is
// enough to write all of the reserve.
func (n *node) spareSpace() int64 {
	s, err := n.o.space(n.o.dataDir)
	if err != nil {
		return math.MaxInt64 // spaceLoop tells
	}
	spare := int64(s.free) - int64(s.reserve())
	if spare < defaultLogFileSize {
		select {
		case n.spaceLow <- struct{}{}:
		default: // it will
		}
	}
	return spare
}

// spaceLoop looks at the space left on the disk as long as the node is open.
func (n *node) spaceLoop() {
	for n.ctx.Err() == nil {
		space, err := n.o.space(n.o.dataDir)
		if err != nil {
			n.o.logger.Warn("reading the free space of the disk", "error", err)
		} else {
			n.noteSpace(space)
		}
		select {
		case <-n.spaceLow:
		case <-time.After(spaceEvery):
		case <-n.ctx.Done():
		}
	}
}

// noteSpace does what the space left demands. A leader hands over first: until
// it has, or cannot, its clients notice nothing.
func (n *node) noteSpace(s diskSpace) {
	was := n.diskFull.Load()
	full := s.full(was)
	n.o.metrics.disk.free.set(int64(s.free))
	if full && n.leads() {
		n.leaveForRoom()
	}
	n.diskFull.Store(full)
	switch {
	case full && !was:
		n.o.metrics.disk.full.set(1)
		n.o.logger.Warn("the disk is nearly full: this node does not lead, and takes no writes if it has to", "free", s.free, "want", s.reserve())
	case was && !full:
		n.o.metrics.disk.full.set(0)
		n.o.logger.Warn("the disk has room again", "free", s.free)
	}
}

// leaveForRoom hands leadership to a voter that has room on its disk, if there
// is one.
func (n *node) leaveForRoom() {
	for _, p := range n.withRoom() {
		ctx, cancel := context.WithTimeout(n.ctx, leaveWithin)
		s, _ := n.server(p.ID)
		if n.greet(ctx, s) { // its disk may have filled up since it was heard
			p, _ = n.peers.get(s.ID)
		}
		if p.DiskFull {
			cancel()
			continue
		}
		err := n.transfer(ctx, p.ID)
		cancel()
		if err == nil {
			n.o.logger.Warn("leadership handed over for want of disk space", "to", p.ID)
			return
		}
		n.o.logger.Warn("handing over leadership for want of disk space", "to", p.ID, "error", err)
	}
}

// withRoom lists the other voters that are alive and have room on their disks,
// the most advanced first.
func (n *node) withRoom() (all []peer) {
	for _, s := range n.others() {
		p, ok := n.peers.get(s.ID)
		if s.Suffrage == raft.Voter && ok && !p.DiskFull && p.state(time.Now()) == stateAlive {
			all = append(all, p)
		}
	}
	slices.SortStableFunc(all, func(a, b peer) int { return cmp.Compare(b.Index, a.Index) })
	return all
}

// roomiest returns whom to hand over to when anybody will do: 0, for Raft to
// choose, unless it could choose one whose disk is full.
func (n *node) roomiest() uint64 {
	full := slices.ContainsFunc(n.others(), func(s raft.Server) bool {
		p, ok := n.peers.get(s.ID)
		return ok && p.DiskFull
	})
	if best := n.withRoom(); full && len(best) > 0 {
		return best[0].ID
	}
	return 0
}

// leaderFull tells whether writes are refused because the disk of the leader is
// full, as far as this node knows.
func (n *node) leaderFull() bool {
	_, leader := n.leaderServer()
	if leader == serverID(n.identity()) {
		return n.diskFull.Load()
	}
	p, ok := n.peers.get(leader)
	return ok && p.DiskFull
}
