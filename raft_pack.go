package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
)

// The packer turns many requests into few log entries: an entry costs Raft
// ~15 µs of CPU and the kernel an fdatasync on each node, whatever is in it.
// Requests that arrive while a pack is under way make the next one, which
// starts when it is worth it or the way is free; there is no delay for its own
// sake. A follower packs too and hands whole packs to the leader.

const (
	packSize     = 64 << 10 // bytes of requests in a pack; a larger request travels in parts of this size
	packWorth    = 16       // requests for which a second pack starts beside the first
	packFlights  = 4        // packs under way at a time; the third and fourth are full
	queueBytes   = 64 << 20 // requests waiting to be packed
	partsAhead   = 8        // parts of an upload under way at a time
	bodyBudget   = 256 << 20
	enqueueLimit = time.Second
)

// waiting is a request on its way.
type waiting struct {
	body []byte // encoded request
	done func(result, error)
}

// flight is a pack on its way. Requests that came one after the other are
// applied in that order: packs start in order, on one connection, and when one
// was not applied, those that follow land first and then start again behind it.
type flight struct {
	pack   []waiting
	number uint64      // order of the first start
	expiry *time.Timer // answers the requests after the write time-out
	state  atomic.Int32
}

// The states of a flight. Only one that is at home is certainly not applied.
const (
	flightHome     = 0 // not sent, or sent and certainly not applied
	flightAway     = 1 // sent: it may be applied
	flightAnswered = 2
)

// answer gives the requests of a flight their results, or err, if it is in the
// state from; it tells whether it was.
func (f *flight) answer(from int32, results []result, err error) bool {
	if !f.state.CompareAndSwap(from, flightAnswered) {
		return false
	}
	f.expiry.Stop()
	if err == nil && len(results) != len(f.pack) {
		err = fmt.Errorf("%w: %d results for %d requests", errUnknownOutcome, len(results), len(f.pack))
	}
	for i := range f.pack {
		if err != nil {
			f.pack[i].done(result{}, err)
		} else {
			f.pack[i].done(results[i], nil)
		}
	}
	return true
}

// packer gathers requests into packs. Its zero value with n set is ready.
type packer struct {
	n     *node
	large sync.Mutex // held while a request that needs parts is encoded and sent

	mu      sync.Mutex
	queue   []waiting // not in a pack yet
	bytes   int       // of queue
	again   []*flight // not applied, to be started again, first of all
	flying  int
	last    uint64
	running bool          // dispatch runs
	landed  chan struct{} // tells dispatch that a flight has landed or a request came
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
// any goroutine, within the write time-out. Requests of one caller are applied
// in the order of its calls, except that one of more than packSize bytes finds
// its own place: let those before it be done first, and it before those after
// it. If submitAsync returns an error, done is never called and nothing was
// applied.
func (n *node) submitAsync(r *request, done func(result, error)) error {
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
	if !p.running {
		p.running = true
		if p.landed == nil {
			p.landed = make(chan struct{}, 1)
		}
		go p.dispatch()
	} else if p.ready() {
		p.poke()
	}
	return nil
}

// ready tells whether what is queued should start now; mu must be held.
func (p *packer) ready() bool {
	switch p.flying {
	case 0:
		return len(p.queue) > 0
	case 1:
		return len(p.queue) >= packWorth || p.bytes >= packSize
	}
	return p.flying < packFlights && p.bytes >= packSize
}

// poke makes dispatch look again; mu must be held.
func (p *packer) poke() {
	select {
	case p.landed <- struct{}{}:
	default:
	}
}

// dispatch starts flights in order until there is nothing left to do.
func (p *packer) dispatch() {
	for {
		p.mu.Lock()
		f := p.next()
		idle := f == nil && p.flying == 0
		if f != nil {
			p.flying++
		}
		p.running = !idle
		p.mu.Unlock()
		switch {
		case idle:
			return
		case f == nil:
			<-p.landed
		default:
			p.start(f)
		}
	}
}

// next returns the flight to start now, nil if it has to wait; mu must be held.
func (p *packer) next() *flight {
	if len(p.again) > 0 {
		if p.flying > 0 {
			return nil // those behind must land first
		}
		f := p.again[0]
		p.again = p.again[1:]
		return f
	}
	if !p.ready() {
		return nil
	}
	size, k := 0, 0
	for k < len(p.queue) && (k == 0 || size+len(p.queue[k].body) <= packSize) {
		size += len(p.queue[k].body)
		k++
	}
	p.last++
	f := &flight{pack: p.queue[:k:k], number: p.last}
	p.queue = p.queue[k:]
	p.bytes -= size
	f.expiry = time.AfterFunc(p.n.o.writeTimeout, func() { p.expire(f) })
	return f
}

// expire answers the requests of a flight that takes too long.
func (p *packer) expire(f *flight) {
	if !f.answer(flightHome, nil, errNoLeader) && f.answer(flightAway, nil, errUnknownOutcome) {
		p.land() // it holds up nobody any more
	}
}

// land notes that a flight is over.
func (p *packer) land() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.flying--
	p.poke()
}

// start proposes a pack wherever the leader is and has somebody wait for it.
func (p *packer) start(f *flight) {
	size := packHeaderSize
	for i := range f.pack {
		size += len(f.pack[i].body)
	}
	body := make([]byte, packHeaderSize, size)
	for i := range f.pack {
		body = append(body, f.pack[i].body...)
	}
	changed := p.n.changing.next()
	if !f.state.CompareAndSwap(flightHome, flightAway) { // it expired
		p.land()
		return
	}
	land := p.n.sendPack(body)
	go func() {
		results, err := land()
		if errors.Is(err, errNotApplied) && !errors.Is(err, errDiskFull) {
			p.retry(f, changed, err)
		} else if f.answer(flightAway, results, err) {
			p.land()
		}
	}()
}

// retry puts a flight that was not applied back, unless there has been no
// leader for too long, and lets a moment pass.
func (p *packer) retry(f *flight, changed <-chan struct{}, err error) {
	if !f.state.CompareAndSwap(flightAway, flightHome) {
		return // it expired, and landed then
	}
	if p.n.leaderless() > p.n.patience() {
		f.answer(flightHome, nil, fmt.Errorf("%w: %w", errNoLeader, err))
		p.land()
		return
	}
	select {
	case <-changed:
	case <-time.After(20 * time.Millisecond):
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.again = append(p.again, f)
	slices.SortFunc(p.again, func(a, b *flight) int { return cmp.Compare(a.number, b.number) })
	p.flying--
	p.poke()
}

// upload has a request agreed that is too large for a pack, by itself.
func (n *node) upload(r *request, done func(result, error)) {
	f := &flight{pack: []waiting{{done: done}}}
	f.expiry = time.AfterFunc(n.o.writeTimeout, func() {
		if !f.answer(flightHome, nil, errNoLeader) {
			f.answer(flightAway, nil, errUnknownOutcome)
		}
	})
	n.packer.large.Lock() // one encoded copy at a time
	defer n.packer.large.Unlock()
	var body []byte
	for f.state.CompareAndSwap(flightHome, flightAway) {
		if body == nil {
			body = appendRequest(make([]byte, packHeaderSize, packHeaderSize+requestSize(r)), r)
		}
		changed := n.changing.next()
		results, err := n.sendLarge(body)
		if !errors.Is(err, errNotApplied) || errors.Is(err, errDiskFull) {
			f.answer(flightAway, results, err)
			return
		}
		f.state.CompareAndSwap(flightAway, flightHome)
		if n.leaderless() > n.patience() {
			f.answer(flightHome, nil, fmt.Errorf("%w: %w", errNoLeader, err))
			return
		}
		select {
		case <-changed:
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// errNotApplied is wrapped by errors after which a pack may be sent again: it
// was certainly not applied.
var errNotApplied = errors.New("not applied")

// failedLanding is a landing that brings nothing but err.
func failedLanding(err error) func() ([]result, error) {
	return func() ([]result, error) { return nil, err }
}

// sendPack proposes a pack wherever the leader is, in the order of the calls,
// and returns how to wait for its results. body has room for the pack's header
// in front.
func (n *node) sendPack(body []byte) func() ([]result, error) {
	if n.leads() {
		return n.proposePack(body)
	}
	addr, _ := n.leaderServer()
	if addr == "" {
		return failedLanding(fmt.Errorf("%w: %w", errNotApplied, errNoLeader))
	}
	ctx, cancel := context.WithTimeout(n.ctx, time.Second)
	defer cancel()
	stream, err := n.streams.to(ctx, string(addr), true)
	if err != nil {
		return failedLanding(fmt.Errorf("%w: %w", errNotApplied, err))
	}
	answer, err := stream.ask(askPack, body[packHeaderSize:])
	if err != nil {
		return failedLanding(fmt.Errorf("%w: %w", errNotApplied, err))
	}
	return func() ([]result, error) {
		a := <-answer
		if a.err != nil {
			return nil, fmt.Errorf("%w: %w", errUnknownOutcome, a.err)
		}
		if err := answerError(&a.streamFrame); err != nil {
			return nil, err
		}
		return parseResults(a.payload)
	}
}

// proposePack puts a pack into the Raft log, in the order of the calls, and
// returns how to wait for the FSM's results.
func (n *node) proposePack(body []byte) func() ([]result, error) {
	if err := n.mayPropose(); err != nil {
		return failedLanding(err)
	}
	appendPackHeader(body[:0], n.o.now().UnixMilli())
	f := n.raft.Load().Apply(body, enqueueLimit)
	return func() ([]result, error) {
		if err := f.Error(); err != nil {
			return nil, n.fate(err)
		}
		n.transferStuck.Store(0)
		return n.resultsOf(f.Response())
	}
}

// sendLarge has a pack agreed that travels in parts, wherever the leader is.
func (n *node) sendLarge(body []byte) ([]result, error) {
	if n.leads() {
		return n.proposeLarge(body)
	}
	addr, _ := n.leaderServer()
	if addr == "" {
		return nil, fmt.Errorf("%w: %w", errNotApplied, errNoLeader)
	}
	return n.forwardLarge(string(addr), body[packHeaderSize:])
}

// proposeLarge puts a pack into the Raft log in parts.
func (n *node) proposeLarge(body []byte) ([]result, error) {
	if err := n.mayPropose(); err != nil {
		return nil, err
	}
	appendPackHeader(body[:0], n.o.now().UnixMilli())
	response, err := n.applyInParts(body)
	if err != nil {
		return nil, err
	}
	results, err := n.resultsOf(response)
	if errors.Is(err, errUploadLost) {
		err = fmt.Errorf("%w: %w", errNotApplied, err)
	}
	return results, err
}

// mayPropose holds writes back while the disk is behind with sealing, and
// refuses them when it is full.
func (n *node) mayPropose() error {
	if n.diskFull.Load() {
		return fmt.Errorf("%w: %w", errNotApplied, errDiskFull)
	}
	return n.waitBacklog()
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
	case errors.Is(err, syscall.ENOSPC): // the Raft log took nothing of it
		return fmt.Errorf("%w: %w: %w", errNotApplied, errDiskFull, err)
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

// notLeaderStatus answers a pack that was certainly not applied here.
const notLeaderStatus = http.StatusMisdirectedRequest

// forwardLarge has the leader agree a pack that needs parts.
func (n *node) forwardLarge(addr string, body []byte) ([]result, error) {
	ctx, cancel := context.WithTimeout(n.ctx, n.o.writeTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+"/pack", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.GetBody = nil // never sent twice by net/http
	res, err := n.port.client().Do(req)
	if errors.Is(err, errDial) {
		return nil, fmt.Errorf("%w: %w", errNotApplied, err)
	}
	if err != nil {
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
	case res.StatusCode == notLeaderStatus:
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

// serveLarge agrees a follower's pack that needs parts.
func (n *node) serveLarge(w http.ResponseWriter, r *http.Request) {
	if !n.leads() {
		http.Error(w, "not the leader", notLeaderStatus)
		return
	}
	if r.ContentLength < 0 || r.ContentLength > int64(n.uploadLimit()) {
		http.Error(w, fmt.Sprintf("pack of %d bytes", r.ContentLength), http.StatusBadRequest)
		return
	}
	release, err := n.reserve(r.Context(), r.ContentLength)
	if err != nil {
		http.Error(w, err.Error(), notLeaderStatus)
		return
	}
	defer release()
	body := make([]byte, packHeaderSize+r.ContentLength)
	if _, err := io.ReadFull(r.Body, body[packHeaderSize:]); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	results, err := n.proposeLarge(body)
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
