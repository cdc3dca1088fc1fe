package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// audit: a whole ledger derived again from its bytes. Segments are audited
// side by side, and taken in order of the ledger; so the difference that is
// told is the first one, whichever was found first. What is checked is in
// main_verify_segment.go (each byte of a segment), main_verify_chain.go (the
// versions of each key) and main_verify_tile.go (the tree); what it is compared
// with comes from a node's folder (main_verify_data.go) or from a server
// (main_verify_remote.go).

// auditOptions are the arguments of audit.
type auditOptions struct {
	data, url  string // one of them
	key        string // vkey, or a file that holds it; "" for none or the pinned one
	checkpoint string // file; "" for none

	archive         objects // the bucket or folder in place of both, nil for none
	prefix, cluster string  // where in it; cluster may be ""
}

// auditSource is one segment to audit.
type auditSource struct {
	name string       // of the file, in differences
	size uint64       // bytes, as far as known
	info *segmentInfo // what the manifest says of it; nil if there is none
	// open gives the bytes; close lets go of them.
	open func(ctx context.Context) (r io.ReaderAt, size int64, close func(), err error)
}

// audit is one audit of a ledger.
type audit struct {
	*verifier
	sources []auditSource
	chains  *chains
	tree    derivedTree
	cluster *clusterID // of the first segment
	time    int64      // of the last entry
	entries uint64     // audited
	bytes   int64      // of segments audited
	done    atomic.Int64
	start   time.Time
	seals   int          // segments audited
	signed  []signedTree // by the node whose folder it is
	locked  bool         // a running node holds ledger.db, which nobody can read then
}

// audit derives a ledger again and prints what it is, or returns the first difference.
func (v *verifier) audit(ctx context.Context, o auditOptions) error {
	a := &audit{verifier: v, start: v.now()}
	switch {
	case o.archive != nil:
		return a.archive(ctx, o)
	case o.url != "":
		return a.server(ctx, o)
	}
	return a.folder(ctx, o)
}

// segmentResult is what the audit of one source gave.
type segmentResult struct {
	auditedSegment
	err error
}

// begin makes ready for entries, once the sources are known.
func (a *audit) begin() {
	var before uint64 // the last segment
	if n := len(a.sources); n > 0 {
		before = a.firstOf(n - 1)
	}
	a.chains = newChains(before)
	a.chains.find = a.findEntry
}

// segments audits all sources.
func (a *audit) segments(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	ahead := make(chan chan segmentResult, 1+runtime.GOMAXPROCS(0)/4) // two more are under way or wait to be taken
	group.Go(func() {
		defer close(ahead)
		for i := range a.sources {
			result := make(chan segmentResult, 1)
			select {
			case ahead <- result:
			case <-ctx.Done():
				return
			}
			group.Go(func() {
				found, err := a.one(ctx, &a.sources[i])
				result <- segmentResult{found, err}
			})
		}
	})
	for i := range a.sources {
		if err := a.take(ctx, &a.sources[i], ahead); err != nil {
			return err
		}
	}
	return nil
}

// take waits for the next result, telling the progress, and adds it to the ledger.
func (a *audit) take(ctx context.Context, source *auditSource, ahead chan chan segmentResult) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	var result chan segmentResult
	for next := ahead; ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			a.tell()
		case result = <-next:
			next = nil
		case r := <-result:
			if r.err != nil {
				return r.err
			}
			return a.add(source, &r.auditedSegment)
		}
	}
}

// tell tells the progress.
func (a *audit) tell() {
	var all uint64
	for i := range a.sources {
		all += a.sources[i].size
	}
	if a.progress != nil && all > 0 {
		a.progress(int64(a.entries), float64(a.done.Load())/float64(all))
	}
}

// one audits one source by itself.
func (a *audit) one(ctx context.Context, source *auditSource) (auditedSegment, error) {
	src, size, closeSource, err := source.open(ctx)
	if err != nil {
		return auditedSegment{}, err
	}
	defer closeSource()
	s := &segmentAudit{src: stoppable{src, ctx}, size: size, name: source.name, tag: a.chains.tag, done: &a.done,
		sum: source.info != nil && source.info.size != 0}
	return s.run()
}

// stoppable is a reader that ends with its context.
type stoppable struct {
	io.ReaderAt
	ctx context.Context
}

func (s stoppable) ReadAt(b []byte, at int64) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	return s.ReaderAt.ReadAt(b, at)
}

// add checks that a sound segment belongs where it is, and adds its entries.
func (a *audit) add(source *auditSource, s *auditedSegment) error {
	if err := a.fits(source, s); err != nil {
		return fmt.Errorf("%w: %s: %w", errDifference, source.name, err)
	}
	a.cluster, a.time = &s.cluster, s.lastTime
	a.bytes += int64(s.size)
	a.seals++
	var group sync.WaitGroup
	var chained error
	var at uint64
	group.Go(func() { at, chained = a.chains.addAll(&s.links) })
	grown := a.tree.appendAll(s.leaves, s.tiles)
	group.Wait()
	if chained != nil && (grown == nil || at < a.tree.size) {
		return chained
	}
	a.entries += s.count
	return grown
}

// fits compares a sound segment with the one before it, its name and the manifest.
func (a *audit) fits(source *auditSource, s *auditedSegment) error {
	name := s.id() + segmentSuffix
	switch m := source.info; {
	case s.first > a.entries && a.locked:
		return a.maybeCold(a.entries, s.first)
	case s.first > a.entries:
		return fmt.Errorf("entry %d: entries %d to %d are missing before it", s.first, a.entries, s.first-1)
	case s.first < a.entries:
		return fmt.Errorf("entry %d: the files before it have entries up to %d", s.first, a.entries-1)
	case a.cluster != nil && s.cluster != *a.cluster:
		return fmt.Errorf("offset 16: entry %d: cluster is %s, that of the segment before is %s", s.first, s.cluster, *a.cluster)
	case s.earliest < a.time:
		return fmt.Errorf("entry %d: time goes back from %d to %d", s.first, a.time, s.earliest)
	case filepath.Base(source.name) != name:
		return fmt.Errorf("the entries make it %s", name)
	case m == nil:
		return nil
	case m.root != s.root || m.count != s.count || m.time != s.time:
		return fmt.Errorf("root %s over %d entries sealed at %d, the manifest says %s over %d at %d", s.root, s.count, s.time, m.root, m.count, m.time)
	case m.size != 0 && m.size != s.size:
		return fmt.Errorf("file has %d bytes, the manifest says %d", s.size, m.size)
	case m.size != 0 && m.sum != s.sum:
		return fmt.Errorf("file has SHA-256 %s, the manifest says %s", s.sum, m.sum)
	}
	return nil
}

// findEntry returns the header of an entry of the sources and where it is.
func (a *audit) findEntry(seq uint64) (header, string, error) {
	for i := range a.sources {
		if s := &a.sources[i]; i+1 == len(a.sources) || a.firstOf(i+1) > seq {
			src, size, closeSource, err := s.open(context.Background())
			if err != nil {
				return header{}, "", err
			}
			defer closeSource()
			h, at, err := findEntry(src, size, a.firstOf(i), seq)
			return h, fmt.Sprintf("%s: offset %d", s.name, at), err
		}
	}
	return header{}, "", fmt.Errorf("%w: entry %d is in no segment", errDifference, seq)
}

// firstOf returns the first entry of source i, from its name.
func (a *audit) firstOf(i int) uint64 {
	first, _ := parseSegmentName(filepath.Base(a.sources[i].name))
	return first
}

// parseSegmentName returns the first entry that the name of a segment file says.
func parseSegmentName(name string) (first uint64, ok bool) {
	var root string
	n, err := fmt.Sscanf(name, "%020d-%64s", &first, &root)
	if h, bad := parseHash(root); n == 2 && err == nil && bad == nil {
		return first, name == segmentInfo{first: first, root: h}.id()+segmentSuffix
	}
	return 0, false
}

// report prints what was audited. compared says with what.
func (a *audit) report(compared ...string) {
	seconds := max(a.now().Sub(a.start).Seconds(), 1e-3)
	fmt.Fprintf(a.out, "audited    %d segments, %d entries, %d bytes in %.2f s, %.0f MB/s\n",
		a.seals, a.entries, a.bytes, seconds, float64(a.bytes)/1e6/seconds)
	if a.cluster != nil {
		fmt.Fprintf(a.out, "cluster    %s\n", a.cluster)
	}
	fmt.Fprintf(a.out, "tree       %d entries, root %s\n", a.tree.size, a.tree.root())
	for _, line := range compared {
		fmt.Fprintln(a.out, line)
	}
}

// unseen reports a checkpoint that the entries do not reach. What a node signed
// itself, which has no origin, may be ahead of its segments.
func (a *audit) unseen() error {
	for _, head := range a.tree.heads {
		if head.origin != "" {
			return fmt.Errorf("%w: the checkpoint has %d entries, the bytes here only %d; POST /cluster/seal brings all entries into segment files",
				errDifference, head.size, a.tree.size)
		}
	}
	return nil
}

// errNoSegments says that a folder is no ledger.
var errNoSegments = errors.New("no segment files")
