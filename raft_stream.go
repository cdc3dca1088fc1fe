package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// A stream is one lasting connection of the internal port on which a node asks
// another many small things without waiting in between: to agree a pack, to
// confirm a read, for its term. The questions of a stream reach the other side
// in the order they were asked, which is what keeps packs in order.
//
// Both ways it carries frames, all integers big-endian:
//
//	offset  size  field
//	     0     4  length of the payload, at most 16 MiB
//	     4     4  number of the question, which its answer repeats
//	     8     1  question: 1 pack, 2 confirm, 3 term, 4 commit; answer: its status
//	     9     .  payload
//
// Payloads: a pack is a sequence of requests, its answer one of results
// (fsm_command.go). confirm, term and commit are asked with nothing. confirm and
// term are answered with a uint64: the leader's confirmed ledger size, the node's
// Raft term; commit with two: the leader's term and the Raft index up to which
// everything is committed (raft_commit.go).

const (
	askPack    = 1
	askConfirm = 2
	askTerm    = 3
	askCommit  = 4

	answerOK         = 0
	answerNotApplied = 1 // certainly not applied; the payload says why
	answerDiskFull   = 2 // the same, because the disk is full
	answerUnknown    = 3 // may be applied later

	streamHead     = 9
	streamMax      = 16 << 20
	streamDeadline = 5 * time.Second // for one write, or for what was written to be received
)

// streamFrame is one question or answer.
type streamFrame struct {
	number  uint32
	kind    byte
	payload []byte
}

// readStreamFrame reads the next frame.
func readStreamFrame(r *bufio.Reader) (streamFrame, error) {
	var head [streamHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return streamFrame{}, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > streamMax {
		return streamFrame{}, fmt.Errorf("%w: frame of %d bytes", errCorrupt, size)
	}
	f := streamFrame{binary.BigEndian.Uint32(head[4:]), head[8], make([]byte, size)}
	_, err := io.ReadFull(r, f.payload)
	return f, err
}

// appendStreamFrame appends f.
func appendStreamFrame(b []byte, f streamFrame) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(f.payload)))
	b = binary.BigEndian.AppendUint32(b, f.number)
	b = append(b, f.kind)
	return append(b, f.payload...)
}

// frameWriter writes whole frames, one at a time.
type frameWriter struct {
	mu   sync.Mutex
	conn net.Conn
	buf  []byte
}

// write sends f; after an error the connection is closed.
func (w *frameWriter) write(f streamFrame) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf = appendStreamFrame(w.buf[:0], f)
	w.conn.SetWriteDeadline(time.Now().Add(streamDeadline))
	_, err := w.conn.Write(w.buf)
	if err != nil {
		w.conn.Close()
	}
	return err
}

// streamAnswer is what came back, or why nothing did.
type streamAnswer struct {
	streamFrame
	err error
}

// peerStream is the asking side of a stream.
type peerStream struct {
	out frameWriter

	mu      sync.Mutex // guards the rest
	last    uint32
	waiting map[uint32]chan streamAnswer
	broken  error
}

// ask sends a question and returns where its answer will come. An error means
// that the question was not sent whole: nobody will act on it.
func (s *peerStream) ask(kind byte, payload []byte) (<-chan streamAnswer, error) {
	ch := make(chan streamAnswer, 1)
	s.mu.Lock()
	if s.broken != nil {
		s.mu.Unlock()
		return nil, s.broken
	}
	s.last++
	number := s.last
	s.waiting[number] = ch
	s.mu.Unlock()
	if err := s.out.write(streamFrame{number, kind, payload}); err != nil {
		return nil, err
	}
	return ch, nil
}

// receive hands out answers until the connection ends; then all who wait learn
// that it did.
func (s *peerStream) receive(conn net.Conn) {
	in := bufio.NewReaderSize(conn, 64<<10)
	for {
		f, err := readStreamFrame(in)
		s.mu.Lock()
		if err != nil {
			s.broken = fmt.Errorf("stream ended: %w", err)
			for _, ch := range s.waiting {
				ch <- streamAnswer{err: s.broken}
			}
			s.waiting = nil
			s.mu.Unlock()
			conn.Close()
			return
		}
		ch := s.waiting[f.number]
		delete(s.waiting, f.number)
		s.mu.Unlock()
		if ch != nil {
			ch <- streamAnswer{streamFrame: f}
		}
	}
}

// ended tells whether nothing can be asked any more.
func (s *peerStream) ended() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.broken != nil
}

// streamTable keeps a node's streams to others, one for packs and one for
// questions each, so that a question does not wait behind packs.
type streamTable struct {
	n       *node
	mu      sync.Mutex
	streams map[streamKey]*peerStream
}

type streamKey struct {
	addr  string
	packs bool
}

// to returns the stream to addr, connecting if there is none.
func (t *streamTable) to(ctx context.Context, addr string, packs bool) (*peerStream, error) {
	key := streamKey{addr, packs}
	t.mu.Lock()
	s := t.streams[key]
	t.mu.Unlock()
	if s != nil && !s.ended() {
		return s, nil
	}
	conn, err := t.n.port.connect(ctx, addr, kindStream)
	if err != nil {
		return nil, err
	}
	s = &peerStream{out: frameWriter{conn: conn}, waiting: make(map[uint32]chan streamAnswer)}
	t.mu.Lock()
	if other := t.streams[key]; other != nil && !other.ended() {
		t.mu.Unlock()
		conn.Close()
		return other, nil
	}
	if t.streams == nil {
		t.streams = make(map[streamKey]*peerStream)
	}
	t.streams[key] = s
	t.mu.Unlock()
	if !t.n.done.Go(func() { s.receive(conn) }) {
		conn.Close()
		return nil, errClosed
	}
	return s, nil
}

// leave closes the streams for packs to all but the leader and, when there is
// none, all streams. An old leader that is alive has answered what it was sent;
// one that hangs or is cut off would hold up what is behind, for its connections
// stay open.
func (t *streamTable) leave(leader string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for key, s := range t.streams {
		if leader == "" || key.packs && key.addr != leader {
			s.out.conn.Close() // receive ends then
			delete(t.streams, key)
		}
	}
}

// askNumber asks the node at addr for a number and waits for it.
func (n *node) askNumber(ctx context.Context, addr string, kind byte) (uint64, error) {
	b, err := n.ask(ctx, addr, kind, 8)
	if err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint64(b), nil
}

// ask asks the node at addr a question without payload and waits for its
// answer of size bytes.
func (n *node) ask(ctx context.Context, addr string, kind byte, size int) ([]byte, error) {
	s, err := n.streams.to(ctx, addr, false)
	if err != nil {
		return nil, err
	}
	ch, err := s.ask(kind, nil)
	if err != nil {
		return nil, err
	}
	select {
	case a := <-ch:
		if a.err != nil {
			return nil, a.err
		}
		if a.kind != answerOK || len(a.payload) != size {
			return nil, fmt.Errorf("%s: %s", addr, a.payload)
		}
		return a.payload, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// streamLoop answers the streams of other nodes.
func (n *node) streamLoop(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		if !n.done.Go(func() {
			defer conn.Close()
			n.serveStream(conn)
		}) {
			conn.Close()
		}
	}
}

// serveStream answers one stream. Packs are proposed in the order they come;
// what takes time is waited for elsewhere. All that a follower sends at a time
// is read, also while packs are held back: to its kernel a full connection would
// look like one that is cut.
func (n *node) serveStream(conn net.Conn) {
	in := bufio.NewReaderSize(conn, 64<<10)
	out := &frameWriter{conn: conn}
	packs := make(chan streamFrame, packFlights)
	defer close(packs)
	if !n.done.Go(func() {
		for f := range packs {
			n.servePack(out, f)
		}
	}) {
		return
	}
	for {
		f, err := readStreamFrame(in)
		if err != nil {
			return
		}
		switch f.kind {
		case askPack:
			packs <- f
		case askConfirm:
			go n.serveConfirm(out, f)
		case askTerm:
			n.serveTerm(out, f)
		case askCommit:
			n.serveCommit(out, f)
		default:
			out.write(streamFrame{f.number, answerNotApplied, []byte("unknown question")})
		}
	}
}

// servePack proposes a follower's pack and answers when it is applied.
func (n *node) servePack(out *frameWriter, f streamFrame) {
	body := append(make([]byte, packHeaderSize, packHeaderSize+len(f.payload)), f.payload...)
	land := n.proposePack(body)
	go func() {
		results, err := land()
		if err != nil {
			out.write(streamFrame{f.number, answerStatus(err), []byte(err.Error())})
			return
		}
		var b []byte
		for i := range results {
			b = appendResult(b, &results[i])
		}
		out.write(streamFrame{f.number, answerOK, b})
	}()
}

// answerStatus is the status that tells the fate err means.
func answerStatus(err error) byte {
	switch {
	case errors.Is(err, errDiskFull):
		return answerDiskFull
	case errors.Is(err, errNotApplied):
		return answerNotApplied
	}
	return answerUnknown
}

// answerError is the error a status means.
func answerError(f *streamFrame) error {
	switch f.kind {
	case answerOK:
		return nil
	case answerDiskFull:
		return fmt.Errorf("%w: %w", errNotApplied, errDiskFull)
	case answerNotApplied:
		return fmt.Errorf("%w: %s", errNotApplied, f.payload)
	}
	return fmt.Errorf("%w: %s", errUnknownOutcome, f.payload)
}

// serveTerm tells this node's Raft term. Raft persists and publishes a higher
// term before it grants a vote in it, which is what confirmTerm relies on.
func (n *node) serveTerm(out *frameWriter, f streamFrame) {
	r := n.raft.Load()
	if r == nil {
		out.write(streamFrame{f.number, answerNotApplied, []byte("not formed")})
		return
	}
	out.write(streamFrame{f.number, answerOK, binary.BigEndian.AppendUint64(nil, r.CurrentTerm())})
}

// serveConfirm answers a follower's reads: the leader's ledger size, after it
// has confirmed that it leads.
func (n *node) serveConfirm(out *frameWriter, f streamFrame) {
	if !n.leads() {
		out.write(streamFrame{f.number, answerNotApplied, []byte("not the leader")})
		return
	}
	if err := n.confirmRead(n.ctx); err != nil || !n.leads() {
		out.write(streamFrame{f.number, answerNotApplied, []byte("not confirmed")})
		return
	}
	out.write(streamFrame{f.number, answerOK, binary.BigEndian.AppendUint64(nil, n.store.size())})
}
