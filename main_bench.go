package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/bits"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// The command bench: a load generator. Each connection sends one request after
// the other on its own socket and reads the reply itself: net/http's client
// would cost more than the server does.

// benchOptions is what bench is asked to do.
type benchOptions struct {
	urls        urlList
	connections int
	duration    time.Duration
	count       int64 // requests; 0 = until duration is over
	op          string
	size        int // bytes of a value
	keySize     int // bytes of a key
	keys        int // keys that are read
	batch       int // lines of one POST /batch; 0 = single writes
	consistency string
	json        bool
}

// urlList is a flag that may be given several times.
type urlList []string

func (l *urlList) String() string     { return strings.Join(*l, " ") }
func (l *urlList) Set(s string) error { *l = append(*l, s); return nil }

// benchFlags returns the flags of bench, bound to o.
func benchFlags(o *benchOptions) *flag.FlagSet {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.Var(&o.urls, "url", "`URL` of a node; several share the connections")
	flags.IntVar(&o.connections, "connections", 64, "number of connections")
	flags.DurationVar(&o.duration, "duration", 10*time.Second, "how long to run")
	flags.Int64Var(&o.count, "count", 0, "number of requests, in place of a duration")
	flags.StringVar(&o.op, "op", "put", "put, get or mixed (half of each)")
	flags.IntVar(&o.size, "size", 100, "bytes of a value")
	flags.IntVar(&o.keySize, "key-size", 32, "bytes of a key, 16 to 1024")
	flags.IntVar(&o.keys, "keys", 10000, "number of keys written beforehand for get and mixed")
	flags.IntVar(&o.batch, "batch", 0, "write `N` entries with each request, as ndjson")
	flags.StringVar(&o.consistency, "consistency", "", "of reads: linearizable or stale")
	flags.BoolVar(&o.json, "json", false, "print the result as JSON")
	return flags
}

// validate returns what bench cannot do.
func (o *benchOptions) validate() error {
	switch {
	case o.op != "put" && o.op != "get" && o.op != "mixed":
		return unusable("bench: op %q: want put, get or mixed", o.op)
	case o.connections < 1 || o.connections > 10000:
		return unusable("bench: connections %d: want 1 to 10000", o.connections)
	case o.duration <= 0 || o.count < 0:
		return unusable("bench: duration and count must be positive")
	case o.keySize < 16 || o.keySize > 1024:
		return unusable("bench: key-size %d: want 16 to 1024", o.keySize)
	case o.size < 0 || o.keys < 1 || o.batch < 0:
		return unusable("bench: size, keys and batch must not be negative")
	case o.batch > 0 && o.op != "put":
		return unusable("bench: batch goes with op put only")
	}
	return nil
}

// bench generates load and prints what came of it.
func (p *program) bench(ctx context.Context, args []string) error {
	var o benchOptions
	if _, err := p.parse(benchFlags(&o), args, 0, 0); err != nil {
		return err
	}
	if err := o.validate(); err != nil {
		return err
	}
	if len(o.urls) == 0 {
		o.urls = urlList{p.getenv("SCRIBE_URL", defaultURL)}
	}
	var targets []*url.URL
	for _, base := range o.urls {
		u, err := url.Parse(base)
		if err != nil || u.Scheme != "http" || u.Port() == "" {
			return unusable("bench: url %q: want http://host:port", base)
		}
		targets = append(targets, u)
	}
	if o.op != "put" {
		if err := o.preload(ctx); err != nil {
			return fmt.Errorf("writing the keys to read: %w", err)
		}
	}
	r := o.run(ctx, targets)
	if o.json {
		r.printJSON(p.stdout)
	} else {
		r.print(p.stdout)
	}
	if len(r.errors) > 0 {
		return errors.New("some requests failed")
	}
	return nil
}

// preload writes the keys that get will read.
func (o *benchOptions) preload(ctx context.Context) error {
	c, err := newClient(o.urls[0])
	if err != nil {
		return err
	}
	w := &benchWorker{o: o, value: benchValue(o.size)}
	for first := 0; first < o.keys; first += 1000 {
		var body bytes.Buffer
		lines := min(1000, o.keys-first)
		for i := range lines {
			w.line(&body, w.readKey(first+i))
		}
		header := http.Header{"Content-Type": {"application/x-ndjson"}}
		resp, err := c.do(ctx, "POST", "/batch", header, &body, int64(body.Len()))
		if err != nil {
			return err
		}
		got := newBenchResult(o)
		err = got.countLines(resp.Body)
		resp.Body.Close()
		if err != nil {
			return err
		}
		if got.entries != int64(lines) {
			return fmt.Errorf("%d of %d were written, errors: %v", got.entries, lines, got.errors)
		}
	}
	return nil
}

// run sends requests on all connections until the time or the count is used up.
func (o *benchOptions) run(ctx context.Context, targets []*url.URL) *benchResult {
	limit := time.Now().Add(o.duration)
	var left atomic.Int64
	left.Store(o.count)
	if o.count == 0 {
		// A server that answers no more must not keep bench from ending.
		timed, cancel := context.WithDeadline(ctx, limit.Add(30*time.Second))
		defer cancel()
		ctx = timed
	}
	more := func(now time.Time) bool {
		if o.count > 0 {
			return left.Add(-1) >= 0
		}
		return now.Before(limit)
	}
	results := make([]*benchResult, o.connections)
	var wg sync.WaitGroup
	start := time.Now()
	for i := range results {
		w := &benchWorker{o: o, target: targets[i%len(targets)], value: benchValue(o.size),
			rng: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())), result: newBenchResult(o)}
		results[i] = w.result
		wg.Go(func() { w.loop(ctx, more) })
	}
	wg.Wait()
	total := newBenchResult(o)
	for _, r := range results {
		total.add(r)
	}
	total.elapsed = time.Since(start)
	return total
}

// benchValue returns the value that is written, again and again.
func benchValue(size int) []byte {
	return bytes.Repeat([]byte("0123456789abcdef"), size/16+1)[:size]
}

// benchWorker is one connection.
type benchWorker struct {
	o      *benchOptions
	target *url.URL
	value  []byte
	rng    *rand.Rand
	result *benchResult

	conn net.Conn // nil: not connected
	in   *bufio.Reader
	out  bytes.Buffer // the request
	body bytes.Buffer
	key  []byte
}

// loop sends one request after the other while there are more to send.
func (w *benchWorker) loop(ctx context.Context, more func(time.Time) bool) {
	for now := time.Now(); ctx.Err() == nil && more(now); {
		if err := w.connect(ctx); err != nil {
			w.result.errors["connect"]++
			select { // a node that is down must not be hammered
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
			now = time.Now()
			continue
		}
		w.request()
		start := time.Now()
		ok, err := w.exchange()
		now = time.Now()
		w.result.requests++
		if ok {
			w.result.latency.add(now.Sub(start))
		}
		if err != nil {
			w.result.errors["connection"]++
			w.conn.Close()
			w.conn = nil
		}
	}
	if w.conn != nil {
		w.conn.Close()
	}
}

// connect opens the connection, unless it is open.
func (w *benchWorker) connect(ctx context.Context) error {
	if w.conn != nil {
		return nil
	}
	dialer := net.Dialer{Timeout: 5 * time.Second}
	conn, err := dialer.DialContext(ctx, "tcp", w.target.Host)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { conn.Close() })
	w.conn, w.in = conn, bufio.NewReaderSize(conn, 16<<10)
	return nil
}

// request builds the next request.
func (w *benchWorker) request() {
	w.out.Reset()
	switch {
	case w.o.batch > 0:
		w.body.Reset()
		for range w.o.batch {
			w.line(&w.body, w.writeKey())
		}
		w.head("POST", "/batch", "Content-Type: application/x-ndjson\r\n", w.body.Bytes())
	case w.o.op == "get" || w.o.op == "mixed" && w.rng.IntN(2) == 0:
		path := "/kv/" + string(w.readKey(w.rng.IntN(w.o.keys)))
		w.head("GET", withQuery(path, "consistency", w.o.consistency), "", nil)
	default:
		w.head("PUT", "/kv/"+string(w.writeKey()), "", w.value)
	}
}

// head writes the request with its body.
func (w *benchWorker) head(method, path, header string, body []byte) {
	w.out.WriteString(method + " " + path + " HTTP/1.1\r\nHost: " + w.target.Host + "\r\n" + header)
	if method != "GET" {
		w.out.WriteString("Content-Length: " + strconv.Itoa(len(body)) + "\r\n")
	}
	w.out.WriteString("\r\n")
	w.out.Write(body)
}

// line appends one put as a line of a batch.
func (w *benchWorker) line(b *bytes.Buffer, key []byte) {
	b.WriteString(`{"op":"put","key":"`)
	b.Write(key)
	b.WriteString(`","value":"`)
	b.Write(w.value)
	b.WriteString("\"}\n")
}

// writeKey returns a key that nobody used before.
func (w *benchWorker) writeKey() []byte {
	w.key = appendBenchKey(w.key[:0], w.rng.Uint64(), w.rng.Uint64(), w.o.keySize)
	return w.key
}

// readKey returns the i-th of the keys that get reads; they look random too.
func (w *benchWorker) readKey(i int) []byte {
	pcg := rand.NewPCG(0, uint64(i))
	w.key = appendBenchKey(w.key[:0], pcg.Uint64(), pcg.Uint64(), w.o.keySize)
	return w.key
}

// appendBenchKey appends a key of size bytes: 32 hex digits, repeated or cut.
func appendBenchKey(b []byte, hi, lo uint64, size int) []byte {
	var raw [16]byte
	for i := range 8 {
		raw[i], raw[8+i] = byte(hi>>(8*i)), byte(lo>>(8*i))
	}
	for len(b) < size {
		b = hex.AppendEncode(b, raw[:])
	}
	return b[:size]
}

// exchange sends the request and reads the reply. ok means the server did what
// it was asked; err that the connection cannot be used any more.
func (w *benchWorker) exchange() (ok bool, err error) {
	if _, err := w.conn.Write(w.out.Bytes()); err != nil {
		return false, err
	}
	resp, err := http.ReadResponse(w.in, nil)
	if err != nil {
		return false, err
	}
	switch {
	case resp.StatusCode >= 300:
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		code := "http_" + strconv.Itoa(resp.StatusCode)
		if e := parseServerError(text); e != nil {
			code = e.Code
		}
		w.result.errors[code]++
	case w.o.batch > 0:
		ok, err = true, w.result.countLines(resp.Body)
	default:
		ok = true
		w.result.entries++
	}
	n, copied := io.Copy(io.Discard, resp.Body)
	w.result.bytes += n
	if err = errors.Join(err, copied); err == nil && resp.Close {
		w.conn.Close()
		w.conn = nil
	}
	return ok && err == nil, err
}

// benchResult is what became of the requests of one connection, or of all.
type benchResult struct {
	o        *benchOptions
	requests int64
	entries  int64 // written or read
	bytes    int64 // of replies
	errors   map[string]int64
	latency  latencies
	elapsed  time.Duration
}

func newBenchResult(o *benchOptions) *benchResult {
	return &benchResult{o: o, errors: make(map[string]int64)}
}

// countLines counts the results in the reply to a batch.
func (r *benchResult) countLines(body io.Reader) error {
	in := bufio.NewReader(body)
	var line []byte
	for {
		var err error
		if line, err = readLine(in, line); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		r.bytes += int64(len(line))
		var e *serverError
		if errors.As(resultError(line), &e) {
			r.errors[e.Code]++
		} else {
			r.entries++
		}
	}
}

// add adds the counts of another result.
func (r *benchResult) add(other *benchResult) {
	r.requests += other.requests
	r.entries += other.entries
	r.bytes += other.bytes
	for code, n := range other.errors {
		r.errors[code] += n
	}
	r.latency.merge(&other.latency)
}

// printJSON prints the result for programs.
func (r *benchResult) printJSON(w io.Writer) {
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	text, _ := json.Marshal(map[string]any{
		"op": r.o.op, "urls": r.o.urls, "connections": r.o.connections, "batch": r.o.batch, "size": r.o.size,
		"seconds": r.elapsed.Seconds(), "requests": r.requests, "entries": r.entries, "bytes": r.bytes,
		"requests_per_second": float64(r.requests) / r.elapsed.Seconds(),
		"entries_per_second":  float64(r.entries) / r.elapsed.Seconds(),
		"p50_ms":              ms(r.latency.quantile(0.50)), "p95_ms": ms(r.latency.quantile(0.95)),
		"p99_ms": ms(r.latency.quantile(0.99)), "max_ms": ms(r.latency.max), "errors": r.errors,
	})
	fmt.Fprintf(w, "%s\n", text)
}

// print prints the result for people.
func (r *benchResult) print(w io.Writer) {
	seconds := r.elapsed.Seconds()
	fmt.Fprintf(w, "%s on %d connections for %.1f s\n", r.o.op, r.o.connections, seconds)
	fmt.Fprintf(w, "requests  %d, %.0f/s\n", r.requests, float64(r.requests)/seconds)
	fmt.Fprintf(w, "entries   %d, %.0f/s\n", r.entries, float64(r.entries)/seconds)
	fmt.Fprintf(w, "latency   p50 %v  p95 %v  p99 %v  max %v\n", r.latency.quantile(0.50), r.latency.quantile(0.95),
		r.latency.quantile(0.99), r.latency.max.Round(time.Microsecond))
	for _, code := range slices.Sorted(maps.Keys(r.errors)) {
		fmt.Fprintf(w, "errors    %d %s\n", r.errors[code], code)
	}
}

// latencies is a histogram of durations in microseconds: exact below 128, with
// 64 buckets for each power of two above, so that a quantile is at most 1.6 %
// too high.
type latencies struct {
	buckets [64 * 64]int64
	count   int64
	max     time.Duration
}

// add counts one duration.
func (l *latencies) add(d time.Duration) {
	l.buckets[latencyBucket(uint64(max(d, 0)/time.Microsecond))]++
	l.count++
	l.max = max(l.max, d)
}

// latencyBucket returns the bucket that counts the given microseconds.
func latencyBucket(us uint64) int {
	shift := max(bits.Len64(us)-7, 0)
	return shift*64 + int(us>>shift)
}

// bucketTop returns the most microseconds that the bucket counts.
func bucketTop(bucket int) uint64 {
	if bucket < 128 {
		return uint64(bucket)
	}
	shift := bucket/64 - 1
	return uint64(bucket-shift*64+1)<<shift - 1
}

// merge adds the counts of another histogram.
func (l *latencies) merge(other *latencies) {
	for i, n := range other.buckets {
		l.buckets[i] += n
	}
	l.count += other.count
	l.max = max(l.max, other.max)
}

// quantile returns the duration that the part q of all does not exceed.
func (l *latencies) quantile(q float64) time.Duration {
	rank := int64(q * float64(l.count))
	for i, n := range l.buckets {
		if rank -= n; rank < 0 {
			return min(time.Duration(bucketTop(i))*time.Microsecond, l.max)
		}
	}
	return l.max
}
