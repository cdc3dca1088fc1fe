package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// oneGated is a cluster of one whose log disk can be made to hang.
func oneGated(t *testing.T, change ...func(*nodeOptions)) (*testCluster, *gateDisk) {
	disks, gate := gates()
	c := newCluster(t, 1, append(change, gate)...)
	return c, disks[1]
}

// Requests that arrive together share packs, are applied in the order they were
// submitted, and each gets its own result.
func TestPackResults(t *testing.T) {
	t.Parallel()
	for _, through := range []string{"leader", "follower"} {
		t.Run(through, func(t *testing.T) {
			t.Parallel()
			disks, gate := gates()
			c := newCluster(t, 2, gate, electing(10)) // a leader whose disk hangs for long steps down
			lead := c.leader()
			n := c.nodes[lead]
			if through == "follower" {
				n = c.nodes[1-lead]
			}
			const count = 2000
			requests := make([]request, count)
			for i := range requests {
				requests[i].ops = []operation{putOf(fmt.Sprint("key-", i), strings.Repeat("v", i%200))}
				if i%10 == 9 { // refused, and its neighbours are not
					requests[i].ops = []operation{{kind: opDelete, key: []byte("missing"), ifSeq: noSeq}}
				}
			}
			open := disks[c.nodes[lead].o.id].close()
			defer open()
			var fates []<-chan fate
			for i := range requests {
				fates = append(fates, n.send(&requests[i]))
			}
			before := c.lastIndex(lead)
			open()
			next := uint64(0)
			for i, ch := range fates {
				f := receive(t, ch, "an answer")
				if f.err != nil {
					t.Fatalf("request %d: %v", i, f.err)
				}
				if i%10 == 9 {
					if f.outcome != outcomeNotFound || len(f.headers) != 0 {
						t.Fatalf("request %d: %+v", i, f.result)
					}
					continue
				}
				h, err := parseHeader(f.headers[0])
				if err != nil || string(h.key) != fmt.Sprint("key-", i) || h.size != uint64(i%200) || h.seq != next {
					t.Fatalf("request %d: %+v, %v", i, h, err)
				}
				next++
				c.note(h)
			}
			if packs := c.lastIndex(lead) - before; packs > count/20 {
				t.Errorf("%d requests took %d log entries", count, packs)
			}
		})
	}
}

// The order holds while leadership moves: nothing that was acknowledged has
// overtaken what was asked for earlier.
func TestPackOrderWhileLeadershipMoves(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	type one struct {
		from, number int
		ch           <-chan fate
	}
	sent := make(chan one, 100_000)
	done := make(chan struct{})
	var wg sync.WaitGroup
	for i, n := range c.nodes {
		wg.Go(func() {
			for k := 0; ; k++ {
				select {
				case <-done:
					return
				default:
				}
				o := one{i, k, n.send(&request{ops: []operation{putOf(fmt.Sprint("key-", i), fmt.Sprint(k))}})}
				sent <- o
				if k%100 == 99 { // let the others have a turn
					<-o.ch
				}
			}
		})
	}
	for range 3 {
		before := c.nodes[0].store.size()
		eventually(t, "nothing is written", func() bool { return c.nodes[0].store.size() > before+500 })
		c.transfer((c.leader() + 1) % 3)
	}
	close(done)
	wg.Wait()
	close(sent)
	last := make(map[int]header)
	for o := range sent {
		f, ok := <-o.ch
		if !ok { // the sender has read it
			continue
		}
		if f.err != nil {
			if !errors.Is(f.err, errUnknownOutcome) && !errors.Is(f.err, errNoLeader) {
				t.Errorf("request %d of node %d: %v", o.number, o.from+1, f.err)
			}
			continue
		}
		h, err := parseHeader(f.headers[0])
		if err != nil {
			t.Fatal(err)
		}
		if before, ok := last[o.from]; ok && before.seq >= h.seq {
			t.Errorf("request %d of node %d is entry %d, one before it is entry %d", o.number, o.from+1, h.seq, before.seq)
		}
		last[o.from] = h
		c.note(h)
	}
}

// A pack that takes longer than the write time-out is answered once, as
// unknown; those that wait behind it are answered in time too, although nobody comes
// after them, and the packer goes on when the disk does.
func TestPackTimeout(t *testing.T) {
	t.Parallel()
	c, disk := oneGated(t, func(o *nodeOptions) { o.writeTimeout = 2 * time.Second })
	c.put(0, "a", "1")
	open := disk.close()
	defer open()
	var fates []<-chan fate
	for i := range 6 { // each a pack of its own, more than are under way at a time
		fates = append(fates, c.nodes[0].send(&request{ops: []operation{putOf(fmt.Sprint("late-", i), strings.Repeat("x", packSize/2))}}))
	}
	for i, ch := range fates { // what is still in line when its time is up is not applied
		if f := receive(t, ch, "an answer"); !errors.Is(f.err, errUnknownOutcome) && (i < packFlights || !errors.Is(f.err, errNoLeader)) {
			t.Errorf("request %d: %v", i, f.err)
		}
	}
	large := c.nodes[0].send(&request{ops: []operation{putOf("large", strings.Repeat("x", 3*packSize))}})
	if f := receive(t, large, "an answer to the upload"); !errors.Is(f.err, errUnknownOutcome) {
		t.Errorf("the upload: %v", f.err)
	}
	open()
	c.put(0, "a", "2") // a second answer would have closed a channel twice
	c.nodes[0].packer.mu.Lock()
	defer c.nodes[0].packer.mu.Unlock()
	if p := &c.nodes[0].packer; p.bytes != 0 || len(p.queue) != 0 || p.flying < 0 || p.flying > packFlights {
		t.Errorf("%d requests of %d bytes wait, %d packs are under way", len(p.queue), p.bytes, p.flying)
	}
}

// The queue is bounded.
func TestPackQueueLimit(t *testing.T) {
	c, disk := oneGated(t, func(o *nodeOptions) { o.writeTimeout = time.Minute })
	open := disk.close()
	defer open()
	n := c.nodes[0]
	n.packer.mu.Lock()
	n.packer.bytes += queueBytes - 1000 // as if so much waited
	n.packer.mu.Unlock()
	first := n.send(&request{ops: []operation{putOf("a", strings.Repeat("x", 500))}})
	eventually(t, "the first request is not taken", func() bool { return disk.waiting.Load() > 0 })
	second := n.send(&request{ops: []operation{putOf("a", strings.Repeat("x", 1000))}})
	if f := receive(t, second, "an answer"); !errors.Is(f.err, errOverloaded) {
		t.Errorf("a request beyond the limit: %v", f.err)
	}
	n.packer.mu.Lock()
	n.packer.bytes -= queueBytes - 1000
	n.packer.mu.Unlock()
	open()
	if f := receive(t, first, "an answer"); f.err != nil {
		t.Errorf("a request below the limit: %v", f.err)
	}
}

// A leader that dies with a request on its way answers unknown, once, and the
// same through a follower; a node that closes answers what still waits.
func TestPackUnknownOutcome(t *testing.T) {
	t.Parallel()
	disks, gate := gates()
	c := newCluster(t, 3, gate, electing(4), func(o *nodeOptions) { o.writeTimeout = 5 * time.Second })
	c.key(0) // its entry is the last that a leader writes by itself
	lead := c.leader()
	follower := (lead + 1) % 3
	open := disks[c.nodes[lead].o.id].close()
	defer open()
	var fates []<-chan fate
	for i, n := range []*testNode{c.nodes[lead], c.nodes[follower]} {
		fates = append(fates, n.send(&request{ops: []operation{putOf(fmt.Sprint("key-", i), "x")}}))
	}
	eventually(t, "nothing is on its way", func() bool {
		p := &c.nodes[lead].packer
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.flying > p.pausing && disks[c.nodes[lead].o.id].waiting.Load() > 0
	})
	dying := c.down(lead)
	released := make(chan error)
	go func() { released <- dying.release() }()
	for i, ch := range fates {
		// The request through the follower may have come after the leader stopped: then another takes it, or nobody.
		if f := receive(t, ch, "an answer"); !errors.Is(f.err, errUnknownOutcome) && (i == 0 || f.err != nil && !errors.Is(f.err, errNoLeader)) {
			t.Errorf("request %d: %v", i, f.err)
		}
	}
	open()
	if err := receive(t, released, "the leader closes"); err != nil {
		t.Error(err)
	}
	c.start(lead)
}

// A request that waits behind others which do not land, or cannot even be sent,
// is answered in time all the same.
func TestPackExpiresInLine(t *testing.T) {
	t.Parallel()
	calmly(t, func(slower int) (*testCluster, error) { return expireInLine(t, slower) })
}

// expireInLine fails if requests in line wait for longer than two time-outs.
func expireInLine(t *testing.T, slower int) (*testCluster, error) {
	timeout := time.Duration(slower) * time.Second
	c := newCluster(t, 2, electing(slower), func(o *nodeOptions) { o.writeTimeout = timeout })
	lead := c.leader()
	follower := c.nodes[1-lead]
	c.put(1-lead, "a", "1")
	for i := range c.nodes { // the leader hangs, for the follower; it stays in office
		c.links.set(i, 1-i, linkSlow)
	}
	c.links.set(1-lead, lead, linkSilent)
	var waiting []<-chan fate
	start := time.Now()
	for i := range 20 {
		waiting = append(waiting, follower.send(&request{ops: []operation{putOf(fmt.Sprint(i), strings.Repeat("x", packSize-100))}}))
	}
	for i, ch := range waiting {
		if f := receive(t, ch, "an answer"); f.err == nil || !errors.Is(f.err, errNoLeader) && !errors.Is(f.err, errUnknownOutcome) {
			t.Errorf("request %d: %v", i, f.err)
		}
	}
	took := time.Since(start)
	c.links.heal()
	c.put(1-lead, "b", "1")
	if took > 2*timeout+timeout/2 {
		return c, fmt.Errorf("the last answer came after %v, want at most two time-outs of %v", took, timeout)
	}
	return c, nil
}

// Raft forgets what is in its queue when it shuts down; a node that closes does
// not wait for it.
func TestCloseWithQueuedEntries(t *testing.T) {
	t.Parallel()
	c, disk := oneGated(t, func(o *nodeOptions) { o.writeTimeout = time.Second })
	c.put(0, "a", "1")
	open := disk.close()
	defer open()
	n := c.nodes[0]
	first := n.send(&request{ops: []operation{putOf("small", "x")}})
	eventually(t, "the disk does not hang", func() bool { return disk.waiting.Load() > 0 })
	before := disk.waiting.Load()
	large := n.send(&request{ops: []operation{putOf("large", strings.Repeat("x", 3*packSize))}})
	queued := make(chan error, 1)
	up := n.node
	go func() {
		_, err := up.apply(appendSeal(nil, 0, 99))
		queued <- err
	}()
	for _, ch := range []<-chan fate{first, large} { // by now they are in Raft's queue
		if f := receive(t, ch, "an answer"); !errors.Is(f.err, errUnknownOutcome) {
			t.Errorf("%v", f.err)
		}
	}
	if disk.waiting.Load() != before {
		t.Error("something else waits for the disk")
	}
	dying := c.down(0)
	released := make(chan error, 1)
	go func() { released <- dying.release() }()
	<-dying.ctx.Done()
	open()
	if err := receive(t, queued, "the queued entry is given up"); !errors.Is(err, errUnknownOutcome) {
		t.Errorf("the queued entry: %v", err)
	}
	if err := receive(t, released, "the node closes"); err != nil {
		t.Error(err)
	}
	c.start(0)
}

// What a follower asks of a node that does not lead is not applied, and the
// answer says so.
func TestForwardRefusals(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2)
	lead := c.leader()
	n, other := c.nodes[lead], c.nodes[1-lead]
	pack := appendRequest(nil, &request{ops: []operation{putOf("a", "1")}})
	if _, err := n.forwardLarge(other.o.raftAddr, pack); !errors.Is(err, errNotApplied) {
		t.Errorf("a pack sent to a follower: %v", err)
	}
	if _, err := n.forwardLarge(freeAddrs(t, 1)[0], pack); !errors.Is(err, errNotApplied) {
		t.Errorf("a pack sent to nobody: %v", err)
	}
	c.nodes[lead].diskFull.Store(true)
	if _, err := other.forwardLarge(n.o.raftAddr, pack); err != nil && (!errors.Is(err, errNotApplied) || !strings.Contains(err.Error(), errDiskFull.Error()) && !strings.Contains(err.Error(), errHandingOver.Error())) {
		t.Errorf("a pack sent to a full disk: %v", err)
	}
	c.nodes[lead].diskFull.Store(false)
	eventually(t, "a pack sent to the leader is not applied", func() bool {
		lead := c.leader()
		res, err := c.nodes[1-lead].forwardLarge(c.nodes[lead].o.raftAddr, pack)
		return err == nil && len(res) == 1 && res[0].outcome == outcomeApplied
	})
	for name, row := range map[string]struct {
		size int64
		want int
	}{"no length": {-1, http.StatusBadRequest}, "too long": {uploadLimit + 1, http.StatusBadRequest}, "cut short": {10, http.StatusBadRequest}} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+n.o.raftAddr+"/pack", strings.NewReader("short"))
		if err != nil {
			t.Fatal(err)
		}
		w := &statusWriter{header: make(http.Header)}
		req.ContentLength = row.size
		n.serveLarge(w, req)
		if w.status != row.want {
			t.Errorf("%s: status is %d, want %d", name, w.status, row.want)
		}
	}
	if res, err := parseResults([]byte{1, 2, 3}); !errors.Is(err, errUnknownOutcome) {
		t.Errorf("an answer that is cut short: %+v, %v", res, err)
	}
}

// statusWriter keeps the status of an answer.
type statusWriter struct {
	header http.Header
	status int
}

func (w *statusWriter) Header() http.Header         { return w.header }
func (w *statusWriter) WriteHeader(status int)      { w.status = status }
func (w *statusWriter) Write(b []byte) (int, error) { return len(b), nil }

// The budget serves in order of arrival, nobody overtakes, and who leaves gives
// up the place.
func TestBudget(t *testing.T) {
	b := &budget{free: 100}
	must := func(size int64) {
		t.Helper()
		if err := b.take(t.Context(), size); err != nil {
			t.Fatal(err)
		}
	}
	must(60)
	waits := func(count int) {
		eventually(t, fmt.Sprintf("%d do not wait", count), func() bool {
			b.mu.Lock()
			defer b.mu.Unlock()
			return len(b.queue) == count
		})
	}
	var served sync.Map
	take := func(ctx context.Context, name string, size int64) <-chan error {
		ch := make(chan error, 1)
		go func() {
			err := b.take(ctx, size)
			served.Store(name, err)
			ch <- err
		}()
		return ch
	}
	ctx, leave := context.WithCancel(t.Context())
	first := take(ctx, "first", 70)
	waits(1)
	second := take(t.Context(), "second", 10) // would fit, but came later
	waits(2)
	third := take(t.Context(), "third", 50)
	waits(3)
	leave()
	if err := receive(t, first, "the first leaves"); !errors.Is(err, errOverloaded) {
		t.Errorf("who left got %v", err)
	}
	if err := receive(t, second, "the second is served"); err != nil {
		t.Error(err)
	}
	if _, ok := served.Load("third"); ok {
		t.Error("the third was served although it does not fit")
	}
	b.give(60)
	if err := receive(t, third, "the third is served"); err != nil {
		t.Error(err)
	}
	b.give(50)
	b.give(10)
	if b.free != 100 || len(b.queue) != 0 {
		t.Errorf("%d bytes are free, %d wait", b.free, len(b.queue))
	}
}

// A reservation is given back once, however often it is released.
func TestReserve(t *testing.T) {
	n := &node{}
	n.bodies.free = 100
	release, err := n.reserve(t.Context(), 100)
	if err != nil || n.bodies.free != 0 {
		t.Fatalf("%v, %d free", err, n.bodies.free)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := n.reserve(ctx, 1); !errors.Is(err, errOverloaded) {
		t.Errorf("beyond the budget: %v", err)
	}
	release()
	release()
	if n.bodies.free != 100 {
		t.Errorf("%d free", n.bodies.free)
	}
}

// With large values on their way, no AppendEntries message is much larger than
// 1 MiB: a follower stores the entries of one message with one write.
func TestMessagesStaySmall(t *testing.T) {
	t.Parallel()
	disks, gate := gates()
	c := newCluster(t, 3, gate, func(o *nodeOptions) {
		o.segmentSize, o.logFileSize, o.maxValueSize = 62<<20, 32<<20, 32<<20
		o.electionMin, o.electionMax = time.Second, 3*time.Second // a follower's leader stays
		o.writeTimeout = waitLimit
	})
	lead := c.leader()
	behind := (lead + 1) % 3
	c.kill(behind) // it will get it all at once
	fates := make(chan error, 6)
	for i := range cap(fates) {
		go func() {
			var err error
			for again := true; again; again = unsettled(err) {
				_, err = c.nodes[(lead+2*(i%2))%3].put(fmt.Sprint("large-", i), string(bytes.Repeat([]byte{byte(i)}, 2<<20)), fmt.Sprint("large-", i))
			}
			fates <- err
		}()
	}
	for range cap(fates) {
		if err := receive(t, fates, "a large value is written"); err != nil {
			t.Errorf("a large value: %v", err)
		}
	}
	c.start(behind)
	eventually(t, "the follower does not catch up", func() bool { return c.nodes[behind].store.size() == c.nodes[lead].store.size() })
	if c.leader() != lead {
		t.Skip("the leader changed: its own writes may be larger than messages")
	}
	for i, n := range c.nodes {
		if size := disks[n.o.id].largest.Load(); i != lead && size > appendBudget+(128<<10) {
			t.Errorf("node %d stored %d bytes at a time", i+1, size)
		}
	}
}

// TestRepeatUnread: a repeated request whose first result cannot be read is of unknown
// outcome; the others of its pack were applied, and are told so.
func TestRepeatUnread(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	c.put(0, "a", "1")
	n := c.nodes[0].node
	beyond := n.store.size() + 10 // stands for an entry in a bucket that does not answer
	fresh := result{outcome: outcomeApplied, current: noSeq, headers: [][]byte{[]byte("header")}}
	results, err := n.resultsOf([]result{fresh, {outcome: outcomeApplied, first: beyond, count: 2}, fresh})
	if err != nil {
		t.Fatal(err)
	}
	var b []byte // as to a follower
	for i := range results {
		b = appendResult(b, &results[i])
	}
	sent, err := parseResults(b)
	if err != nil {
		t.Fatal(err)
	}
	for name, results := range map[string][]result{"here": results, "at a follower": sent} {
		errs := make([]error, 3)
		f := &flight{expiry: time.NewTimer(time.Hour)}
		for i := range errs {
			f.pack = append(f.pack, waiting{done: func(r result, err error) {
				errs[i] = err
				if (err == nil) != (len(r.headers) == 1) {
					t.Errorf("%s: request %d: %+v, %v", name, i, r, err)
				}
			}})
		}
		f.answer(flightHome, results, nil)
		if errs[0] != nil || errs[2] != nil || !errors.Is(errs[1], errUnknownOutcome) {
			t.Errorf("%s: %v", name, errs)
		}
	}
}

// TestNothingOvertakes: while a pack that was refused waits to be sent again, none
// that came later is started.
func TestNothingOvertakes(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	p := &packer{n: c.nodes[0].node, landed: make(chan struct{}, 1), flying: 1}
	p.queue = make([]waiting, packWorth)
	refused := &flight{number: 1, expiry: time.NewTimer(time.Hour)}
	refused.state.Store(flightAway)
	changed := make(chan struct{})
	go p.retry(refused, changed, errNotApplied)
	eventually(t, "it does not wait", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.pausing == 1 || len(p.again) == 1
	})
	p.mu.Lock()
	f := p.next()
	p.mu.Unlock()
	if f != nil && f != refused {
		t.Error("a later pack is started first")
	}
	close(changed)
	if f == nil {
		eventually(t, "it is not put back", func() bool {
			p.mu.Lock()
			defer p.mu.Unlock()
			f = p.next()
			return f == refused
		})
	}
}
