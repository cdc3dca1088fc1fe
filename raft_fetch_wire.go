package main

import (
	"bytes"
	"compress/flate"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

// How a segment travels: GET /segments/<id> on the internal port, with a Range
// that says which of its bytes. 410 with the header Scribe-Object says that the
// sender has it in the bucket only. Who asks with the header
//
//	Accept-Encoding: scribe-flate
//
// may get the same bytes in frames, which Content-Encoding then says:
//
//	offset  size  field
//	     0     4  n: bytes in this frame, 1 to 262,144
//	     4     4  m: bytes that follow, at most n
//	     8     m  the bytes themselves if m = n, else their DEFLATE (RFC 1951)
//
// Integers are big-endian. Each frame stands for itself, so that a reader that
// goes on elsewhere needs nothing of those before; there is no checksum, for
// the whole segment has one. Nodes of older versions send plain bytes.

const (
	packedEncoding  = "scribe-flate"
	packedFrame     = 256 << 10
	packedHeader    = 8
	packedSkip      = 15 // frames not tried after one that would not shrink by an eighth
	maxServeStreams = 4  // segments sent at a time; who comes then asks another node
)

// appendPacked appends one frame that stands for raw; pack says whether to try.
func appendPacked(b, raw []byte, z *flate.Writer) ([]byte, error) {
	at := len(b)
	b = binary.BigEndian.AppendUint32(b, uint32(len(raw)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(raw)))
	if z != nil {
		out := bytes.NewBuffer(b)
		z.Reset(out)
		_, err := z.Write(raw)
		if err = errors.Join(err, z.Close()); err != nil {
			return b, err
		}
		if m := out.Len() - at - packedHeader; m < len(raw)-len(raw)/8 {
			b = out.Bytes()
			binary.BigEndian.PutUint32(b[at+4:], uint32(m))
			return b, nil
		}
	}
	return append(b[:at+packedHeader], raw...), nil
}

// packedReader reads the bytes that frames stand for.
type packedReader struct {
	in    io.Reader
	wire  *uint64 // counts the bytes of frames
	frame []byte  // as it came
	raw   []byte  // what it stands for
	rest  []byte  // of raw
	z     io.ReadCloser
}

// Read implements io.Reader.
func (p *packedReader) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		if err := p.next(); err != nil {
			return 0, err
		}
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

// next reads a frame; io.EOF is the end between two.
func (p *packedReader) next() error {
	var h [packedHeader]byte
	if _, err := io.ReadFull(p.in, h[:]); err != nil {
		return err
	}
	n, m := binary.BigEndian.Uint32(h[:]), binary.BigEndian.Uint32(h[4:])
	if n == 0 || n > packedFrame || m == 0 || m > n {
		return fmt.Errorf("%w: frame of %d bytes for %d", errCorrupt, m, n)
	}
	if p.frame == nil {
		p.frame, p.raw = make([]byte, packedFrame), make([]byte, packedFrame)
	}
	if _, err := io.ReadFull(p.in, p.frame[:m]); err != nil {
		return io.ErrUnexpectedEOF
	}
	*p.wire += packedHeader + uint64(m)
	if m == n {
		p.rest = p.frame[:m]
		return nil
	}
	return p.inflate(p.frame[:m], p.raw[:n])
}

// inflate fills raw with what frame stands for, exactly.
func (p *packedReader) inflate(frame, raw []byte) error {
	in := bytes.NewReader(frame)
	if p.z == nil {
		p.z = flate.NewReader(in)
	}
	p.z.(flate.Resetter).Reset(in, nil)
	if _, err := io.ReadFull(p.z, raw); err != nil {
		return fmt.Errorf("%w: frame of %d bytes for %d: %w", errCorrupt, len(frame), len(raw), err)
	}
	if n, err := p.z.Read(make([]byte, 1)); n > 0 || err != io.EOF {
		return fmt.Errorf("%w: frame of %d bytes stands for more than %d", errCorrupt, len(frame), len(raw))
	}
	p.rest = raw
	return nil
}

// serveSegment sends a sealed segment file, or the part of it that Range says.
func (n *node) serveSegment(w http.ResponseWriter, r *http.Request) {
	info, ok := n.store.sealedByID(r.PathValue("id"))
	if !ok {
		http.Error(w, "no such segment here", http.StatusNotFound)
		return
	}
	if n.serving.Add(1) > maxServeStreams {
		n.serving.Add(-1)
		n.o.metrics.fetch.busy.add(1)
		http.Error(w, "sending as many segments as it may", http.StatusServiceUnavailable)
		return
	}
	defer n.serving.Add(-1)
	file, err := os.Open(n.store.segmentPath(info))
	if err != nil && n.store.isCold(info.first) {
		w.Header().Set(objectHeader, n.store.objectOf(info))
		http.Error(w, "it is in the bucket only", http.StatusGone)
		return
	}
	if err != nil {
		http.Error(w, "its file cannot be opened", http.StatusNotFound)
		return
	}
	defer file.Close()
	from, to, ranged := parseByteRange(r.Header.Get("Range"), info.size)
	if ranged && strings.Contains(r.Header.Get("Accept-Encoding"), packedEncoding) {
		n.servePacked(w, file, from, to, info.size)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream") // else it would be guessed
	http.ServeContent(n.paced(w, r), r, "", time.Time{}, file)
	n.o.metrics.fetch.served.add(to - from)
}

// pacedBody is the body of a segment that is sent beside the requests of clients:
// while there are such, it rests after each block as long as the block took.
type pacedBody struct {
	http.ResponseWriter
	n   *node
	ctx context.Context
}

// servedBlock is what is sent between two rests.
const servedBlock = 1 << 20

// paced returns w as a pacedBody.
func (n *node) paced(w http.ResponseWriter, r *http.Request) *pacedBody {
	return &pacedBody{w, n, r.Context()}
}

// ReadFrom sends a part of a file block by block; the kernel copies it.
func (b *pacedBody) ReadFrom(r io.Reader) (int64, error) {
	to, all := b.ResponseWriter.(io.ReaderFrom), r.(*io.LimitedReader) // as net/http has them
	for sent := int64(0); ; {
		p := pacer{turn: time.Now()}
		block := &io.LimitedReader{R: all.R, N: min(all.N, servedBlock)}
		k, err := to.ReadFrom(block)
		sent += k
		all.N -= k
		if err != nil || all.N == 0 || block.N > 0 {
			return sent, err
		}
		if b.n.o.metrics.http.inFlight.value() == 0 {
			continue
		}
		if err := p.rest(b.ctx); err != nil {
			return sent, err
		}
	}
}

// parseByteRange reads "bytes=a-b" of a file of the given size and returns a
// and b+1; anything else is all of it.
func parseByteRange(s string, size uint64) (from, to uint64, ok bool) {
	a, b, found := strings.Cut(strings.TrimPrefix(s, "bytes="), "-")
	from, err1 := strconv.ParseUint(a, 10, 64)
	last, err2 := strconv.ParseUint(b, 10, 64)
	if !found || err1 != nil || err2 != nil || from > last || last >= size {
		return 0, size, false
	}
	return from, last + 1, true
}

// servePacked sends bytes of a segment file in frames.
func (n *node) servePacked(w http.ResponseWriter, file *os.File, from, to, size uint64) {
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Encoding", packedEncoding)
	h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, size))
	w.WriteHeader(http.StatusPartialContent)
	z, _ := flate.NewWriter(nil, flate.BestSpeed) // the level is one there is
	raw, frame := make([]byte, packedFrame), make([]byte, 0, packedFrame+packedHeader)
	for skip := 0; from < to; skip-- {
		k, err := file.ReadAt(raw[:min(packedFrame, to-from)], int64(from))
		if k == 0 || err != nil && err != io.EOF {
			panic(http.ErrAbortHandler) // the reader sees a cut connection
		}
		try := z
		if skip > 0 {
			try = nil
		}
		if frame, err = appendPacked(frame[:0], raw[:k], try); err != nil {
			panic(http.ErrAbortHandler)
		}
		if skip <= 0 && len(frame) == k+packedHeader {
			skip = packedSkip + 1
		}
		if _, err := w.Write(frame); err != nil {
			return
		}
		n.o.metrics.fetch.served.add(uint64(k))
		from += uint64(k)
	}
}

// The reasons to leave a peer, as the metric names them.
var (
	errPeerLacks   = errors.New("it does not have the segment")
	errPeerCold    = errors.New("it has the segment in the bucket only")
	errPeerBusy    = errors.New("it is busy")
	errPeerStalled = errors.New("nothing came any more")
	errPeerSlow    = errors.New("another one is much faster")
	errPeerBroken  = errors.New("the connection broke")
)

// objectHeader names the object in which a segment is that a peer does not have
// as a file any more.
const objectHeader = "Scribe-Object"

// peerCold is the answer of a peer that has a segment in the bucket only.
type peerCold struct{ object string }

func (p *peerCold) Error() string { return "it has the segment in the bucket only, as " + p.object }

// Is makes it errPeerCold.
func (p *peerCold) Is(target error) bool { return target == errPeerCold }

// pulled is what came of asking for a piece of a segment.
type pulled struct {
	bytes  uint64        // of the segment
	wire   uint64        // that travelled for them
	took   time.Duration // waiting for the peer
	packed bool
}

// pullPiece asks the node at addr for the bytes of a segment from from to to-1
// and copies them to w. An error of w is returned as it is. slow is asked now
// and then whether to leave this peer.
func (n *node) pullPiece(ctx context.Context, addr string, info segmentInfo, from, to uint64, pack bool, slow func(pulled) bool, w io.Writer) (pulled, error) {
	var p pulled
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watch := time.AfterFunc(stallAfter, func() { cancel(errPeerStalled) })
	defer watch.Stop()
	start := time.Now()
	body, packed, err := n.askPiece(ctx, addr, info.id(), from, to, pack)
	if err != nil {
		return p, stalled(ctx, err)
	}
	defer body.Close()
	p.packed = packed
	in := io.Reader(body)
	if packed {
		in = &packedReader{in: body, wire: &p.wire}
	}
	buf := make([]byte, partBuffer)
	for p.bytes < to-from {
		watch.Reset(stallAfter)
		k, err := in.Read(buf[:min(uint64(len(buf)), to-from-p.bytes)])
		watch.Stop() // this node's disk may take its time
		p.took += time.Since(start)
		if k > 0 {
			if _, werr := w.Write(buf[:k]); werr != nil {
				return p, &writeError{werr}
			}
			p.bytes += uint64(k)
		}
		if !packed {
			p.wire = p.bytes
		}
		switch {
		case p.bytes == to-from:
			return p, nil
		case err != nil:
			return p, stalled(ctx, fmt.Errorf("%w: %w", errPeerBroken, err))
		case slow(p):
			return p, errPeerSlow
		}
		start = time.Now()
	}
	return p, nil
}

// writeError is an error of this node's own disk, not of a peer.
type writeError struct{ error }

func (e *writeError) Unwrap() error { return e.error }

// stalled says so if that is why the request ended.
func stalled(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, errPeerStalled) {
		return errPeerStalled
	}
	return err
}

// askPiece opens the body of a piece.
func (n *node) askPiece(ctx context.Context, addr, id string, from, to uint64, pack bool) (body io.ReadCloser, packed bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/segments/"+id, nil)
	if err != nil {
		return nil, false, err
	}
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", from, to-1))
	if pack {
		req.Header.Set("Accept-Encoding", packedEncoding)
	}
	res, err := n.port.client().Do(req)
	if err != nil {
		return nil, false, fmt.Errorf("%w: %w", errPeerBroken, err)
	}
	want := fmt.Sprintf("bytes %d-%d/", from, to-1)
	switch {
	case res.StatusCode == http.StatusNotFound:
		err = errPeerLacks
	case res.StatusCode == http.StatusGone:
		err = &peerCold{res.Header.Get(objectHeader)}
	case res.StatusCode == http.StatusServiceUnavailable:
		err = errPeerBusy
	case res.StatusCode != http.StatusPartialContent || !strings.HasPrefix(res.Header.Get("Content-Range"), want):
		err = fmt.Errorf("%w: got %s with %q, want %q", errPeerBroken, res.Status, res.Header.Get("Content-Range"), want)
	}
	if err != nil {
		res.Body.Close()
		return nil, false, err
	}
	return res.Body, res.Header.Get("Content-Encoding") == packedEncoding, nil
}
