package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
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
	packWorth    = 32       // requests for which a second pack starts beside the first
	packFlights  = 4        // packs under way at a time; the third and fourth are full
	queueBytes   = 64 << 20 // requests waiting to be packed
	enqueueLimit = time.Second
)

// waiting is a request on its way.
type waiting struct {
	body []byte // encoded request
	done func(result, error)
	came time.Time
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
		switch {
		case err != nil:
			f.pack[i].done(result{}, err)
		case results[i].outcome == outcomeUnknown:
			f.pack[i].done(result{}, fmt.Errorf("%w: the result of the first time cannot be read now", errUnknownOutcome))
		default:
			f.pack[i].done(results[i], nil)
		}
	}
	return true
}

// packer gathers requests into packs. Its zero value with n set is ready.
type packer struct {
	n     *node
	large longMutex // held while a request that needs parts is encoded and sent

	mu      sync.Mutex
	queue   []waiting   // not in a pack yet
	bytes   int         // of queue
	expiry  *time.Timer // of what is first in queue
	again   []*flight   // not applied, to be started again, first of all
	flying  int
	pausing int // of those flying: on their way to again, and none overtakes them
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
// any goroutine, after at most one write time-out in line, which says that nothing
// was applied, and one under way. Requests of one caller are applied
// in the order of its calls, except that one of more than packSize bytes finds
// its own place: let those before it be done first, and it before those after
// it. If submitAsync returns an error, done is never called and nothing was
// applied.
func (n *node) submitAsync(r *request, done func(result, error)) error {
	if n.self.Load().Removed {
		return errRemoved
	}
	size := requestSize(r)
	if size > packSize {
		if !n.done.Go(func() { n.upload(r, done) }) {
			return errClosed
		}
		return nil
	}
	return n.packer.add(waiting{appendRequest(make([]byte, 0, size), r), done, time.Now()})
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
	if p.expiry == nil {
		p.expiry = time.AfterFunc(p.n.o.writeTimeout, p.expireQueue)
	} else if len(p.queue) == 1 {
		p.expiry.Reset(p.n.o.writeTimeout)
	}
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
	if p.pausing > 0 {
		return nil
	}
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

// expireQueue answers the requests that were in line for too long: those ahead of
// them do not land, or cannot even be sent.
func (p *packer) expireQueue() {
	p.mu.Lock()
	k := 0
	for ; k < len(p.queue) && time.Since(p.queue[k].came) >= p.n.o.writeTimeout; k++ {
		p.bytes -= len(p.queue[k].body)
	}
	late := p.queue[:k:k]
	if p.queue = p.queue[k:]; len(p.queue) > 0 {
		p.expiry.Reset(p.n.o.writeTimeout - time.Since(p.queue[0].came))
	}
	p.mu.Unlock()
	for i := range late {
		late[i].done(result{}, errNoLeader)
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
	p.mu.Lock()
	p.pausing++
	p.mu.Unlock()
	select {
	case <-changed:
	case <-time.After(20 * time.Millisecond):
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pausing--
	p.again = append(p.again, f)
	slices.SortFunc(p.again, func(a, b *flight) int { return cmp.Compare(a.number, b.number) })
	p.flying--
	p.poke()
}

// errNotApplied is wrapped by errors after which a pack may be sent again: it
// was certainly not applied.
var errNotApplied = errors.New("not applied")

// errHandingOver is returned instead of letting anything in at the end of a term.
var errHandingOver = fmt.Errorf("%w: leadership is being handed over", errNotApplied)

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
	if !n.door.enter() {
		return failedLanding(errHandingOver)
	}
	appendPackHeader(body[:0], n.o.now().UnixMilli())
	f := n.raft.Load().Apply(body, enqueueLimit)
	return func() ([]result, error) {
		defer n.door.leave()
		if err := f.Error(); err != nil {
			return nil, n.fate(err)
		}
		n.transferStuck.Store(nil)
		return n.resultsOf(f.Response())
	}
}

// mayPropose holds writes back while the disk is behind with sealing, and
// refuses them when it is full, leadership is being handed over or this node's
// bytes are in doubt.
func (n *node) mayPropose() error {
	if err := n.mayServe(); err != nil {
		return fmt.Errorf("%w: %w", errNotApplied, err)
	}
	if n.raft.Load() == nil || n.ctx.Err() != nil {
		return fmt.Errorf("%w: %w", errNotApplied, errNoLeader)
	}
	if n.door.isShut() {
		return errHandingOver
	}
	if n.diskFull.Load() {
		if len(n.withRoom()) > 0 {
			return errHandingOver
		}
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
	if err := n.wait(f); err != nil {
		return nil, n.fate(err)
	}
	n.transferStuck.Store(nil)
	return f.Response(), nil
}

// wait returns the error of a future, or that the node closes: what is in one
// of Raft's queues when it shuts down is never answered.
func (n *node) wait(f raft.Future) error {
	answered := make(chan error, 1)
	go func() { answered <- f.Error() }()
	select {
	case err := <-answered:
		return err
	case <-n.ctx.Done():
		return raft.ErrRaftShutdown
	}
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
	first := n.transferStuck.CompareAndSwap(nil, new(time.Now()))
	if stuck := n.transferStuck.Load(); !first && stuck != nil && time.Since(*stuck) > 6*n.silence() {
		n.fail(fmt.Errorf("%w: leadership transfer is stuck", errRestart))
	}
}

// resultsOf turns the FSM's response into results; those of repeated requests
// get the headers of the first time, or outcomeUnknown while these cannot be read:
// the others of the pack are applied.
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
				n.o.logger.Warn("a repeated request is not answered, its entry cannot be read", "seq", seq, "error", err)
				*r = result{outcome: outcomeUnknown, current: noSeq}
				break
			}
			r.headers = append(r.headers, e.raw)
		}
	}
	return results, nil
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
