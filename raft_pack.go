package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// The packer turns many requests into few log entries: Raft costs ~15 µs of
// CPU an entry, whatever is in it. Requests that arrive while a pack is under
// way make the next one; there is no delay for its own sake. A follower packs
// too and hands whole packs to the leader.

const (
	packSize     = 64 << 10 // bytes of requests in a pack; a larger request travels in parts of this size
	packFlights  = 2        // packs under way at a time
	queueBytes   = 64 << 20 // requests waiting to be packed
	partsAhead   = 8        // parts of an upload under way at a time
	bodyBudget   = 256 << 20
	enqueueLimit = time.Second
)

// waiting is a request on its way.
type waiting struct {
	body []byte // encoded request; nil for one that is packed alone
	done func(result, error)
}

// packer gathers requests. Its zero value with n set is ready.
type packer struct {
	n       *node
	mu      sync.Mutex
	queue   []waiting
	bytes   int
	flights int
	large   sync.Mutex // held while a large request is encoded and sent
}

// submit has one request agreed and returns the FSM's answer. It returns
// errNoLeader, errOverloaded or errDiskFull when the request was certainly not
// applied, and errUnknownOutcome when nobody can tell. It forwards to the
// leader by itself.
func (n *node) submit(ctx context.Context, r *request) (result, error) {
	type answer struct {
		res result
		err error
	}
	ch := make(chan answer, 1)
	if err := n.submitAsync(r, func(res result, err error) { ch <- answer{res, err} }); err != nil {
		return result{}, err
	}
	select {
	case a := <-ch:
		return a.res, a.err
	case <-ctx.Done():
		return result{}, fmt.Errorf("%w: %w", errUnknownOutcome, ctx.Err())
	}
}

// submitAsync is submit for callers that do not wait: done is called once, from
// any goroutine, within the write time-out. If it returns an error, done is
// never called and nothing was applied.
func (n *node) submitAsync(r *request, done func(result, error)) error {
	if n.diskFull.Load() {
		return errDiskFull
	}
	size := requestSize(r)
	if size > packSize {
		n.done.Go(func() { n.upload(r, done) })
		return nil
	}
	return n.packer.add(waiting{appendRequest(make([]byte, 0, size), r), done})
}

// add queues a request and makes sure that somebody takes it.
func (p *packer) add(w waiting) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bytes+len(w.body) > queueBytes {
		return errOverloaded
	}
	p.queue = append(p.queue, w)
	p.bytes += len(w.body)
	if p.flights < packFlights {
		p.flights++
		go p.fly()
	}
	return nil
}

// take returns the next pack, nil when there is none; the flight then ends.
func (p *packer) take() []waiting {
	p.mu.Lock()
	defer p.mu.Unlock()
	size, k := 0, 0
	for k < len(p.queue) && (k == 0 || size+len(p.queue[k].body) <= packSize) {
		size += len(p.queue[k].body)
		k++
	}
	pack := p.queue[:k:k]
	p.queue = p.queue[k:]
	p.bytes -= size
	if k == 0 {
		p.flights--
		return nil
	}
	return pack
}

// fly sends packs until the queue is empty.
func (p *packer) fly() {
	for pack := p.take(); pack != nil; pack = p.take() {
		if !p.send(pack) {
			return
		}
	}
}

// send has one pack agreed and answers its requests. It returns false if that
// took longer than the write time-out: the requests were answered then, and
// another flight has taken this one's place.
func (p *packer) send(pack []waiting) bool {
	var answered atomic.Bool
	late := time.AfterFunc(p.n.o.writeTimeout, func() {
		if answered.CompareAndSwap(false, true) {
			finish(pack, nil, errUnknownOutcome)
			p.fly()
		}
	})
	size := 0
	for i := range pack {
		size += len(pack[i].body)
	}
	body := make([]byte, packHeaderSize, packHeaderSize+size)
	for i := range pack {
		body = append(body, pack[i].body...)
	}
	results, err := p.n.agree(body)
	late.Stop()
	if !answered.CompareAndSwap(false, true) {
		return false
	}
	if err == nil && len(results) != len(pack) {
		err = fmt.Errorf("%w: %d results for %d requests", errCorrupt, len(results), len(pack))
	}
	finish(pack, results, err)
	return true
}

// finish answers all requests of a pack.
func finish(pack []waiting, results []result, err error) {
	for i := range pack {
		if err != nil {
			pack[i].done(result{}, err)
		} else {
			pack[i].done(results[i], nil)
		}
	}
}

// upload has a request agreed that is too large to share a pack.
func (n *node) upload(r *request, done func(result, error)) {
	var answered atomic.Bool
	late := time.AfterFunc(n.o.writeTimeout, func() {
		if answered.CompareAndSwap(false, true) {
			done(result{}, errUnknownOutcome)
		}
	})
	n.packer.large.Lock() // one encoded copy at a time
	var results []result
	err := errOverloaded
	if !answered.Load() {
		body := appendRequest(make([]byte, packHeaderSize, packHeaderSize+requestSize(r)), r)
		results, err = n.agree(body)
	}
	n.packer.large.Unlock()
	late.Stop()
	if !answered.CompareAndSwap(false, true) {
		return
	}
	if err == nil && len(results) != 1 {
		err = fmt.Errorf("%w: %d results for one request", errCorrupt, len(results))
	}
	if err != nil {
		done(result{}, err)
		return
	}
	done(results[0], nil)
}

// errNotApplied is wrapped by errors after which a pack may be sent again: it
// was certainly not applied.
var errNotApplied = errors.New("not applied")

// agree has a pack agreed wherever the leader is. body has room for the pack's
// header in front. While there is no leader it waits for as long as an
// election may take.
func (n *node) agree(body []byte) ([]result, error) {
	var patience <-chan time.Time
	for {
		changed := n.changing.next()
		var results []result
		err := fmt.Errorf("%w: %w", errNotApplied, errNoLeader)
		if n.leads() {
			results, err = n.propose(body)
		} else if addr, _ := n.leaderServer(); addr != "" {
			results, err = n.forward(string(addr), body[packHeaderSize:])
		}
		if !errors.Is(err, errNotApplied) || errors.Is(err, errDiskFull) {
			return results, err
		}
		if patience == nil {
			patience = time.After(n.patience())
		}
		select {
		case <-changed:
		case <-time.After(20 * time.Millisecond):
		case <-patience:
			return nil, fmt.Errorf("%w: %w", errNoLeader, err)
		case <-n.ctx.Done():
			return nil, errNoLeader
		}
	}
}

// propose puts a pack into the Raft log and returns the FSM's results.
func (n *node) propose(body []byte) ([]result, error) {
	if n.diskFull.Load() {
		return nil, fmt.Errorf("%w: %w", errNotApplied, errDiskFull)
	}
	if err := n.waitBacklog(); err != nil {
		return nil, err
	}
	appendPackHeader(body[:0], n.o.now().UnixMilli())
	var response any
	var err error
	if len(body) <= packHeaderSize+packSize {
		response, err = n.apply(body)
	} else {
		response, err = n.applyInParts(body)
	}
	if err != nil {
		return nil, err
	}
	results, err := n.resultsOf(response)
	if errors.Is(err, errUploadLost) {
		err = fmt.Errorf("%w: %w", errNotApplied, err)
	}
	return results, err
}

// waitBacklog holds writes back while the disk is behind with sealing.
func (n *node) waitBacklog() error {
	for n.store.backlog() > maxSealing/2 {
		n.pause(5 * time.Millisecond)
		if n.ctx.Err() != nil {
			return fmt.Errorf("%w: %w", errNotApplied, errNoLeader)
		}
	}
	return nil
}

// apply has one log entry committed and applied.
func (n *node) apply(data []byte) (any, error) {
	f := n.raft.Load().Apply(data, enqueueLimit)
	if err := f.Error(); err != nil {
		return nil, n.fate(err)
	}
	n.transferStuck.Store(0)
	return f.Response(), nil
}

// fate says what an error of Raft means for the entry: errNotApplied if it was
// certainly not accepted, errUnknownOutcome otherwise.
func (n *node) fate(err error) error {
	switch {
	case errors.Is(err, raft.ErrLeadershipTransferInProgress):
		n.checkTransfer()
		return fmt.Errorf("%w: %w", errNotApplied, err)
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrEnqueueTimeout):
		return fmt.Errorf("%w: %w", errNotApplied, err)
	}
	return fmt.Errorf("%w: %w", errUnknownOutcome, err)
}

// checkTransfer restarts the node when Raft's leadership transfer has got stuck
// for ever (raft.md F5): it then refuses every entry although it leads.
func (n *node) checkTransfer() {
	now := n.o.now().UnixMilli()
	if !n.transferStuck.CompareAndSwap(0, now) {
		since := time.Duration(now-n.transferStuck.Load()) * time.Millisecond
		if since > 6*max(n.o.electionMin, n.o.electionMax/2) {
			n.fail(fmt.Errorf("%w: leadership transfer is stuck", errRestart))
		}
	}
}

// applyInParts has a command committed in parts. Its last part is proposed only
// when all others are committed, so that any failure before it leaves
// nothing applied.
func (n *node) applyInParts(body []byte) (any, error) {
	n.uploads.Lock()
	defer n.uploads.Unlock()
	id := rand.Uint64()
	part := func(at int) []byte {
		end := min(at+packSize, len(body))
		return append(appendPartHeader(make([]byte, 0, partHeaderSize+packSize), id, uint32(at), uint32(len(body))), body[at:end]...)
	}
	r := n.raft.Load()
	var ahead []raft.ApplyFuture
	at := 0
	for ; len(body)-at > packSize; at += packSize {
		ahead = append(ahead, r.Apply(part(at), enqueueLimit))
		if len(ahead) >= partsAhead {
			if err := ahead[0].Error(); err != nil {
				return nil, fmt.Errorf("%w: %w", errNotApplied, err)
			}
			ahead = ahead[1:]
		}
	}
	for _, f := range ahead {
		if err := f.Error(); err != nil {
			return nil, fmt.Errorf("%w: %w", errNotApplied, err)
		}
	}
	return n.apply(part(at))
}

// resultsOf turns the FSM's response into results; those of repeated requests
// get the headers of the first time.
func (n *node) resultsOf(response any) ([]result, error) {
	if err, ok := response.(error); ok {
		if errors.Is(err, errUploadLost) {
			return nil, err
		}
		return nil, fmt.Errorf("%w: %w", errUnknownOutcome, err)
	}
	results, ok := response.([]result)
	if !ok {
		return nil, fmt.Errorf("%w: no result", errUnknownOutcome)
	}
	for i := range results {
		r := &results[i]
		for seq := r.first; seq < r.first+r.count; seq++ {
			e, err := n.store.headerAt(seq)
			if err != nil {
				return nil, err
			}
			r.headers = append(r.headers, e.raw)
		}
	}
	return results, nil
}

// notLeaderStatus answers a pack that came to a node that does not lead.
const notLeaderStatus = http.StatusMisdirectedRequest

// forward has the leader agree a pack.
func (n *node) forward(addr string, body []byte) ([]result, error) {
	ctx, cancel := context.WithTimeout(n.ctx, n.o.writeTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+"/pack", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.GetBody = nil // never sent twice by net/http
	res, err := n.port.client().Do(req)
	if err != nil {
		if errors.Is(err, errDial) {
			return nil, fmt.Errorf("%w: %w", errNotApplied, err)
		}
		return nil, fmt.Errorf("%w: %w", errUnknownOutcome, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", errUnknownOutcome, err)
	case res.StatusCode == http.StatusOK:
		return parseResults(b)
	case res.StatusCode == http.StatusInsufficientStorage:
		return nil, fmt.Errorf("%w: %w", errNotApplied, errDiskFull)
	case res.StatusCode == notLeaderStatus, res.StatusCode == http.StatusServiceUnavailable:
		return nil, fmt.Errorf("%w: %s", errNotApplied, bytes.TrimSpace(b))
	}
	return nil, fmt.Errorf("%w: %s", errUnknownOutcome, bytes.TrimSpace(b))
}

// parseResults reads the answer to a forwarded pack.
func parseResults(b []byte) ([]result, error) {
	var results []result
	for c := (cursor{b: b}); len(c.b) > 0; {
		r, err := parseResult(&c)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errUnknownOutcome, err)
		}
		results = append(results, r)
	}
	return results, nil
}

// servePack agrees a follower's pack.
func (n *node) servePack(w http.ResponseWriter, r *http.Request) {
	if !n.leads() {
		http.Error(w, "not the leader", notLeaderStatus)
		return
	}
	if r.ContentLength < 0 || r.ContentLength > int64(n.uploadLimit()) {
		http.Error(w, fmt.Sprintf("pack of %d bytes", r.ContentLength), http.StatusBadRequest)
		return
	}
	if r.ContentLength > packSize {
		release, err := n.reserve(r.Context(), r.ContentLength)
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		defer release()
	}
	body := make([]byte, packHeaderSize+r.ContentLength)
	if _, err := io.ReadFull(r.Body, body[packHeaderSize:]); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	results, err := n.propose(body)
	switch {
	case errors.Is(err, errDiskFull):
		http.Error(w, err.Error(), http.StatusInsufficientStorage)
	case errors.Is(err, errNotApplied):
		http.Error(w, err.Error(), notLeaderStatus)
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	default:
		var out []byte
		for i := range results {
			out = appendResult(out, &results[i])
		}
		w.Write(out)
	}
}

// reserve takes size bytes of the node's budget for request bodies, waiting for
// room in order of arrival; release gives them back.
func (n *node) reserve(ctx context.Context, size int64) (release func(), err error) {
	if err := n.bodies.take(ctx, size); err != nil {
		return nil, err
	}
	var once sync.Once
	return func() { once.Do(func() { n.bodies.give(size) }) }, nil
}

// budget is a number of bytes that requests share.
type budget struct {
	mu    sync.Mutex
	free  int64
	queue []*claim
}

// claim is somebody who waits for bytes.
type claim struct {
	size  int64
	ready chan struct{}
}

// take waits for size bytes; nobody overtakes.
func (b *budget) take(ctx context.Context, size int64) error {
	b.mu.Lock()
	if len(b.queue) == 0 && b.free >= size {
		b.free -= size
		b.mu.Unlock()
		return nil
	}
	c := &claim{size, make(chan struct{})}
	b.queue = append(b.queue, c)
	b.mu.Unlock()
	select {
	case <-c.ready:
		return nil
	case <-ctx.Done():
		b.mu.Lock()
		defer b.mu.Unlock()
		for i := range b.queue {
			if b.queue[i] == c {
				b.queue = append(b.queue[:i:i], b.queue[i+1:]...)
				b.serve()
				return fmt.Errorf("%w: %w", errOverloaded, ctx.Err())
			}
		}
		return nil // it was given just now
	}
}

// give returns bytes and serves those who wait.
func (b *budget) give(size int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free += size
	b.serve()
}

// serve gives to those at the front whose claim fits; mu must be held.
func (b *budget) serve() {
	for len(b.queue) > 0 && b.queue[0].size <= b.free {
		b.free -= b.queue[0].size
		close(b.queue[0].ready)
		b.queue = b.queue[1:]
	}
}
