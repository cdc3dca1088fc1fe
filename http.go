package main

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// HTTP API; the contract is API.md. This file holds the server, its route
// table and its errors. The calls are in http_entry.go (one key), http_list.go
// (many keys), http_batch.go and http_admin.go; bodies in http_body.go, JSON in
// http_json.go, the connection in http_conn.go.

// serverNode is what the server needs of the node. Errors are those of
// fsm_command.go and store_read.go.
type serverNode interface {
	// submit is documented at node.submit; it must not keep r after it returns
	// a result, but may after errUnknownOutcome.
	submit(ctx context.Context, r *request) (result, error)
	// submitAsync is submit without waiting: done is called once, from any
	// goroutine, when the fate of r is known; not at all if an error is returned.
	submitAsync(r *request, done func(result, error)) error
	confirmRead(ctx context.Context) error
	reserve(ctx context.Context, size int64) (release func(), err error)
	status() nodeStatus
	members() []memberInfo
	seal(ctx context.Context) error
	transfer(ctx context.Context, to uint64) error
}

// serverStore is what the server needs of the store: everything applied here.
type serverStore interface {
	get(key []byte, sel selector) (entry, error)
	entryAt(seq uint64) (entry, error)
	history(key []byte, before uint64, limit int) ([]entry, *uint64, error)
	list(prefix, after []byte, limit int) ([]entry, bool, error)
	size() uint64
	waitSize(ctx context.Context, n uint64) error
	sealedFile(id string) (*os.File, segmentInfo, error)
	currentManifest() *manifest
	pendingInfo() (first, count, bytes uint64)
}

// serverOptions is what main takes from the configuration.
type serverOptions struct {
	maxValueSize int64 // bytes
	readTimeout  time.Duration
	writeTimeout time.Duration
	allowDelete  bool
	consistency  string // of reads that do not choose: linearizable or stale
	logger       *slog.Logger
	metrics      *metrics
	version      string

	limits *serverLimits // nil = defaultLimits
}

// serverLimits are the patience of the server; tests shorten them.
type serverLimits struct {
	head  time.Duration // for the request line and the headers
	body  time.Duration // for a body of up to bodyPiece, or each piece of a longer one
	write time.Duration // for a reply of up to bodyPiece, or each piece of a longer one
	idle  time.Duration // between two requests, or two lines of a stream
	small int64         // bytes of all bodies that reserve nothing
}

var defaultLimits = serverLimits{
	head:  5 * time.Second,
	body:  30 * time.Second,
	write: 30 * time.Second,
	idle:  120 * time.Second,
	small: 128 << 20,
}

// server answers clients.
type server struct {
	node   serverNode
	store  serverStore
	o      serverOptions
	limits serverLimits
	http   *http.Server
	routes map[string]route

	writes, reads deadlines    // contexts for calls to node and store
	small         atomic.Int64 // bytes of bodies under way that reserved nothing
	idPrefix      string       // of request ids
	ids           atomic.Uint64
	closing       context.Context // done when shutdown begins
	close         context.CancelFunc
}

// newServer returns a server for a node and its store.
func newServer(n *node, o serverOptions) *server { return newServerFor(n, n.store, o) }

func newServerFor(node serverNode, store serverStore, o serverOptions) *server {
	if o.metrics == nil {
		o.metrics = newMetrics()
	}
	if o.limits == nil {
		o.limits = &defaultLimits
	}
	s := &server{node: node, store: store, o: o, limits: *o.limits}
	s.routes = s.table()
	s.writes.after, s.reads.after = o.writeTimeout, o.readTimeout
	s.idPrefix = strconv.FormatInt(time.Now().UnixNano(), 36) + "-"
	s.closing, s.close = context.WithCancel(context.Background())
	s.http = &http.Server{
		Handler:                      s,
		ReadHeaderTimeout:            s.limits.head,
		ReadTimeout:                  s.limits.body,
		WriteTimeout:                 s.limits.body + s.limits.write + max(o.readTimeout, o.writeTimeout),
		IdleTimeout:                  s.limits.idle,
		MaxHeaderBytes:               32 << 10,
		DisableGeneralOptionsHandler: true,
		ConnContext:                  connContext,
		ConnState:                    connState,
		ErrorLog:                     slog.NewLogLogger(o.logger.Handler(), slog.LevelDebug),
	}
	s.http.RegisterOnShutdown(s.close)
	return s
}

// serve answers connections of ln until shutdown.
func (s *server) serve(ln net.Listener) error {
	err := s.http.Serve(clientListener{ln, s})
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// shutdown stops taking requests and returns when those under way are answered,
// or cuts them off when ctx ends.
func (s *server) shutdown(ctx context.Context) error {
	if err := s.http.Shutdown(ctx); err != nil {
		s.http.Close()
		return err
	}
	return nil
}

// call is one request on its way through the server.
type call struct {
	w     http.ResponseWriter // written by answer and by streams only
	r     *http.Request
	route int    // index into routeLabels
	raw   string // path of the key as it was sent
	key   []byte // for routes that take one; segment id for /ledger/segments/
	query []param
	lines headerLines // of the reply
}

// reply is what a handler answers, beside call.lines.
type reply struct {
	status int
	body   []byte
	size   int64        // Content-Length of a HEAD whose body was not read
	pooled *[]byte      // body's backing array goes back to bodyPool
	stream func() error // writes head and body itself; body and status are not used
}

// handler is one row of the API.
type handler func(c *call) (reply, error)

// route is what can be done with one path.
type route struct {
	label   int
	methods map[string]handler // HEAD is answered by GET
	allow   string
}

// Indexes into routeLabels.
const (
	routeEntry = iota
	routeHistory
	routeKeys
	routeBatch
	routeHealth
	routeMetrics
	routeCluster
	routeLedger
	routeOther
)

// table holds all paths below reserved names; one that ends in a slash is
// followed by a key or an id.
func (s *server) table() map[string]route {
	type m = map[string]handler
	entry := m{"GET": s.get, "PUT": s.put, "DELETE": s.delete}
	if !s.o.allowDelete {
		entry["DELETE"] = s.deletesDisabled
	}
	t := map[string]route{
		"kv/":                {routeEntry, entry, ""},
		"history/":           {routeHistory, m{"GET": s.history}, ""},
		"keys":               {routeKeys, m{"GET": s.keys}, ""},
		"batch":              {routeBatch, m{"POST": s.batch}, ""},
		"health":             {routeHealth, m{"GET": s.health}, ""},
		"health/live":        {routeHealth, m{"GET": s.live}, ""},
		"metrics":            {routeMetrics, m{"GET": s.showMetrics}, ""},
		"metrics/prometheus": {routeMetrics, m{"GET": s.prometheus}, ""},
		"cluster/status":     {routeCluster, m{"GET": s.clusterStatus}, ""},
		"cluster/members":    {routeCluster, m{"GET": s.clusterMembers}, ""},
		"cluster/leader":     {routeCluster, m{"GET": s.clusterLeader}, ""},
		"cluster/metrics":    {routeCluster, m{"GET": s.clusterMetrics}, ""},
		"cluster/transfer":   {routeCluster, m{"POST": s.transfer}, ""},
		"cluster/seal":       {routeCluster, m{"POST": s.seal}, ""},
		"ledger/manifest":    {routeLedger, m{"GET": s.manifest}, ""},
		"ledger/entries":     {routeLedger, m{"GET": s.entries}, ""},
		"ledger/segments/":   {routeLedger, m{"GET": s.segment}, ""},
	}
	for path, r := range t {
		for method := range r.methods {
			switch {
			case method == "DELETE" && !s.o.allowDelete:
			case method == "GET":
				r.allow += ", GET, HEAD"
			default:
				r.allow += ", " + method
			}
		}
		names := strings.Split(r.allow[2:], ", ")
		slices.Sort(names)
		r.allow = strings.Join(names, ", ")
		t[path] = r
	}
	return t
}

// reserved reports whether name, decoded, is a first segment kept for the interface.
func reserved(name string) bool {
	switch name {
	case "health", "metrics", "cluster", "verify", "history", "keys", "batch", "kv", "ledger", "region", "ui":
		return true
	}
	return false
}

// ServeHTTP answers one request. It is the one place that counts and logs.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	s.o.metrics.http.inFlight.add(1)
	var c *call
	fault := ""
	if conn := connOf(r); conn != nil && r.ProtoMajor == 1 {
		c, fault = &conn.call, conn.begin()
	} else {
		c = &call{}
	}
	c.reset(w, r)
	s.addRequestID(c)
	rep, err := reply{}, error(nil)
	if fault != "" {
		err = &apiError{status: 400, code: "malformed", message: fault, close: true}
	} else {
		rep, err = s.route(c)
	}
	if err == nil && rep.stream != nil {
		rep.status = http.StatusOK
		err = rep.stream()
	} else if err == nil {
		c.answer(rep)
	}
	cut := errors.Is(err, errCutOff)
	if err != nil && !cut {
		rep.status = s.refuse(c, err)
	}
	m := &s.o.metrics.http
	m.inFlight.add(-1)
	m.requests[c.route][rep.status/100-1].add(1)
	m.seconds[c.route].observe(time.Since(start))
	if cut {
		panic(http.ErrAbortHandler) // the client must see that the reply is not whole
	}
}

// reset makes c the call of one request; its scratch space stays.
func (c *call) reset(w http.ResponseWriter, r *http.Request) {
	c.w, c.r, c.route, c.raw, c.key, c.query = w, r, routeOther, "", nil, nil
	c.lines.reset()
}

// route finds the handler of a request by the raw bytes of its target. Nothing
// is cleaned and nobody is redirected: each path is a key of its own.
func (s *server) route(c *call) (reply, error) {
	path, query, ok := splitTarget(c.r.RequestURI)
	if !ok {
		return reply{}, badRequest("malformed", "request target %q is not a path", clip(c.r.RequestURI))
	}
	segment, rest, slash := strings.Cut(path, "/")
	first, err := unescapePath(segment)
	if err != nil {
		return reply{}, err
	}
	if query != "" {
		if c.query, err = parseQuery(query); err != nil {
			return reply{}, err
		}
	}
	head, _, hidden := strings.Cut(string(first), "/")
	if !reserved(head) {
		c.route = routeEntry
		return s.dispatch(c, s.routes["kv/"], path)
	}
	name := head
	if slash {
		name += "/"
	}
	if r, ok := s.routes[name]; ok && !hidden {
		return s.dispatch(c, r, rest)
	}
	sub, id, slash := strings.Cut(rest, "/")
	name += sub
	if slash {
		name += "/"
	}
	if r, ok := s.routes[name]; ok && !hidden {
		return s.dispatch(c, r, id)
	}
	if isChange(c.r.Method) {
		return reply{}, reservedKey(head, path)
	}
	return reply{}, &apiError{status: 404, code: "not_found", message: "nothing is served at /" + clip(path)}
}

func isChange(method string) bool { return method == "PUT" || method == "DELETE" }

func reservedKey(head, path string) error {
	return badRequest("reserved_key", "keys that begin with %q are reached as /kv/%s", head, clip(path))
}

// dispatch runs the handler of r; raw is the part of the path that names the key.
func (s *server) dispatch(c *call, r route, raw string) (reply, error) {
	c.route = r.label
	method := c.r.Method
	if method == "HEAD" {
		method = "GET"
	}
	h, ok := r.methods[method]
	switch {
	case ok:
	case isChange(method):
		path, _, _ := splitTarget(c.r.RequestURI)
		head, _, _ := strings.Cut(path, "/")
		return reply{}, reservedKey(head, path)
	default:
		return reply{}, &apiError{status: 405, code: "method_not_allowed", message: c.r.Method + " is not served here; " + r.allow + " are", allow: r.allow}
	}
	key, err := unescapePath(raw)
	if err != nil {
		return reply{}, err
	}
	c.raw, c.key = raw, key
	return h(c)
}

// splitTarget cuts a request target into its path after the first slash and
// its query, both as they were sent. The target may be a whole URL.
func splitTarget(target string) (path, query string, ok bool) {
	if target == "" || target[0] != '/' {
		_, rest, found := strings.Cut(target, "://")
		if !found {
			return "", "", false
		}
		i := strings.IndexAny(rest, "/?")
		if i < 0 {
			return "", "", true
		}
		if target = rest[i:]; target[0] == '?' {
			return "", target[1:], true
		}
	}
	path, query, _ = strings.Cut(target[1:], "?")
	return path, query, true
}

// unescapePath percent-decodes s once. The result is the caller's.
func unescapePath(s string) ([]byte, error) {
	if strings.IndexByte(s, '%') < 0 {
		return []byte(s), nil
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b = append(b, s[i])
			continue
		}
		if len(s)-i < 3 || unhex(s[i+1]) < 0 || unhex(s[i+2]) < 0 {
			return nil, badRequest("malformed", "%q is not percent-encoded", clip(s[i:min(i+3, len(s))]))
		}
		b = append(b, byte(unhex(s[i+1])<<4|unhex(s[i+2])))
		i += 2
	}
	return b, nil
}

// unhex returns the value of a hexadecimal digit, or -1.
func unhex(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c|0x20 >= 'a' && c|0x20 <= 'f':
		return int(c|0x20-'a') + 10
	}
	return -1
}

// param is one name=value of a query, decoded.
type param struct{ name, value string }

// parseQuery reads a query; unknown names are kept and never looked at.
func parseQuery(raw string) ([]param, error) {
	var params []param
	for raw != "" {
		var pair string
		pair, raw, _ = strings.Cut(raw, "&")
		if pair == "" {
			continue
		}
		n, v, _ := strings.Cut(pair, "=")
		name, err := url.QueryUnescape(n)
		value, err2 := url.QueryUnescape(v)
		if err != nil || err2 != nil {
			return nil, badRequest("malformed", "query parameter %q is not percent-encoded", clip(pair))
		}
		params = append(params, param{name, value})
	}
	return params, nil
}

// param returns the value of a query parameter, which may be given once.
func (c *call) param(name string) (value string, given bool, err error) {
	for _, p := range c.query {
		if p.name != name {
			continue
		}
		if given {
			return "", false, badRequest("malformed", "query parameter %s is given twice", name)
		}
		value, given = p.value, true
	}
	return value, given, nil
}

// number returns a query parameter that is a number between low and high.
func (c *call) number(name string, low, high uint64) (n uint64, given bool, err error) {
	v, given, err := c.param(name)
	if err != nil || !given {
		return 0, false, err
	}
	n, ok := parseNumber([]byte(v))
	if !ok || n < low || n > high {
		return 0, false, badRequest("malformed", "%s is %q, want a number from %d to %d", name, clip(v), low, high)
	}
	return n, true, nil
}

// limit returns the query parameter limit, cut to most.
func (c *call) limit(usual, most int) (int, error) {
	n, given, err := c.number("limit", 1, 1<<63-1)
	if err != nil || !given {
		return usual, err
	}
	return int(min(n, uint64(most))), nil
}

// flag returns a query parameter that is true or false, false if not given.
func (c *call) flag(name string) (bool, error) {
	v, given, err := c.param(name)
	if err != nil || !given || v == "false" || v == "0" {
		return false, err
	}
	if v == "true" || v == "1" || v == "" {
		return true, nil
	}
	return false, badRequest("malformed", "%s is %q, want true or false", name, clip(v))
}

// header returns the one line of a request header; key is canonical.
func (c *call) header(key string) (value string, given bool, err error) {
	lines := c.r.Header[key]
	switch len(lines) {
	case 0:
		return "", false, nil
	case 1:
		return lines[0], true, nil
	}
	return "", false, badRequest("malformed", "header %s is given %d times", key, len(lines))
}

// parseNumber reads decimal digits without sign or leading zeros.
func parseNumber(s []byte) (uint64, bool) {
	if len(s) == 0 || len(s) > 20 || (s[0] == '0' && len(s) > 1) {
		return 0, false
	}
	n := uint64(0)
	for _, c := range s {
		d := uint64(c - '0')
		if d > 9 || n > (^uint64(0)-d)/10 {
			return 0, false
		}
		n = n*10 + d
	}
	return n, true
}

// decimal is n in digits.
func decimal(n int64) string { return strconv.FormatInt(n, 10) }

// clip shortens what a client sent, for a message.
func clip(s string) string {
	if len(s) <= 80 {
		return s
	}
	return s[:77] + "..."
}

// apiError is an error a client sees.
type apiError struct {
	status       int
	code         string
	message      string
	allow        string // 405: the Allow header
	retry        bool   // Retry-After: 1
	close        bool   // the connection cannot be used again
	etag         string // 412: that of the live version
	failed       *int   // index of the operation of an atomic batch that failed
	contentRange string // 416
}

func (e *apiError) Error() string { return e.code + ": " + e.message }

// explain turns any error into one a client may see. The text of an error
// that is not ours stays here: it may name paths.
func (s *server) explain(c *call, err error) *apiError {
	var e *apiError
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, errNotFound):
		return &apiError{status: 404, code: "not_found", message: "no such version of key " + clip(c.raw)}
	case errors.Is(err, errDeleted):
		return &apiError{status: 404, code: "deleted", message: "key " + clip(c.raw) + " is deleted in this version; /history/ has the others"}
	case errors.Is(err, fs.ErrNotExist):
		return &apiError{status: 404, code: "not_found", message: "no segment " + clip(c.raw)}
	case errors.Is(err, errCorrupt):
		s.o.metrics.store.corrupt.add(1)
		s.o.logger.Error("corrupt data read", "err", err)
		return &apiError{status: 409, code: "corrupt", message: "the stored bytes are damaged on this node"}
	case errors.Is(err, errNoLeader):
		return &apiError{status: 503, code: "no_leader", message: "no leader is known; nothing was applied", retry: true}
	case errors.Is(err, errOverloaded):
		return &apiError{status: 429, code: "overloaded", message: "this node has no room for the request now; nothing was applied", retry: true}
	case errors.Is(err, errDiskFull):
		return &apiError{status: 507, code: "disk_full", message: "the disk is full; nothing was applied"}
	case errors.Is(err, errUnknownOutcome):
		return &apiError{status: 504, code: "unknown_outcome", message: "the request may be applied later; repeat it with the same Idempotency-Key"}
	case errors.Is(err, errNotYetApplied):
		return &apiError{status: 504, code: "not_yet_applied", message: "this node did not reach the wanted entry in time"}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return &apiError{status: 503, code: "timeout", message: "the node did not get to the request in time; nothing was applied", retry: true}
	}
	s.o.logger.Error("request failed", "err", err)
	return &apiError{status: 500, code: "internal", message: "internal error; the log of the node has more"}
}

// refuse answers err and returns the status.
func (s *server) refuse(c *call, err error) int {
	e := s.explain(c, err)
	c.lines.reset()
	s.addRequestID(c)
	c.lines.add("Content-Type", "application/json")
	if e.allow != "" {
		c.lines.add("Allow", e.allow)
	}
	if e.retry {
		c.lines.add("Retry-After", "1")
	}
	if e.close {
		c.lines.add("Connection", "close")
	}
	if e.etag != "" {
		c.lines.add("Etag", e.etag)
	}
	if e.contentRange != "" {
		c.lines.add("Content-Range", e.contentRange)
	}
	c.answer(reply{status: e.status, body: e.appendJSON(nil)})
	return e.status
}

// errCutOff is returned by a stream whose reply broke off after its head.
var errCutOff = errors.New("reply cut off")

// answer writes a reply whose body is in memory.
func (c *call) answer(rep reply) {
	c.lines.addNumber("Content-Length", uint64(max(rep.size, int64(len(rep.body)))))
	c.lines.moveTo(c.w.Header())
	c.w.WriteHeader(rep.status)
	if c.r.Method != "HEAD" {
		c.w.Write(rep.body) // an error means the client is gone
	}
	if rep.pooled != nil {
		*rep.pooled = rep.body[:0]
		putBody(rep.pooled)
	}
}

// deadlines gives out contexts that end after a time, one for all calls of the
// same moment: a context of its own costs each call five allocations.
type deadlines struct {
	after   time.Duration
	current atomic.Pointer[sharedDeadline]
}

type sharedDeadline struct {
	context.Context
	until time.Time // given out before
}

// context returns a context that ends in d.after, or up to 1/8 later.
func (d *deadlines) context() context.Context {
	now := time.Now()
	if c := d.current.Load(); c != nil && now.Before(c.until) {
		return c.Context
	}
	spread := d.after / 8
	ctx, cancel := context.WithDeadline(context.Background(), now.Add(d.after+spread))
	context.AfterFunc(ctx, cancel)
	d.current.Store(&sharedDeadline{ctx, now.Add(spread)})
	return ctx
}

// headerLines collects the headers of a reply: one string backs all values.
type headerLines struct {
	n      int
	names  [maxLines]string
	ends   [maxLines]int
	buf    []byte
	values [maxLines]string
}

const maxLines = 16

func (l *headerLines) reset() { l.n, l.buf = 0, l.buf[:0] }

// end makes what was appended to buf since the last line the value of name.
func (l *headerLines) end(name string) {
	l.names[l.n], l.ends[l.n] = name, len(l.buf)
	l.n++
}

func (l *headerLines) add(name, value string) {
	l.buf = append(l.buf, value...)
	l.end(name)
}

func (l *headerLines) addNumber(name string, n uint64) {
	l.buf = strconv.AppendUint(l.buf, n, 10)
	l.end(name)
}

func (l *headerLines) addETag(seq uint64) {
	l.buf = append(l.buf, '"')
	l.buf = strconv.AppendUint(l.buf, seq, 10)
	l.buf = append(l.buf, '"')
	l.end("Etag")
}

// moveTo puts the lines into h. The slices in h share l until the next reset.
func (l *headerLines) moveTo(h http.Header) {
	all, start := string(l.buf), 0
	for i := range l.n {
		l.values[i] = all[start:l.ends[i]]
		start = l.ends[i]
		h[l.names[i]] = l.values[i : i+1 : i+1]
	}
	l.reset()
}

// addRequestID adds the X-Request-Id: the client's, if it is sane.
func (s *server) addRequestID(c *call) {
	if ids := c.r.Header["X-Request-Id"]; len(ids) == 1 && saneID(ids[0]) {
		c.lines.add("X-Request-Id", ids[0])
		return
	}
	c.lines.buf = s.appendRequestID(c.lines.buf)
	c.lines.end("X-Request-Id")
}

// appendRequestID appends an id no other request of this process has.
func (s *server) appendRequestID(b []byte) []byte {
	return strconv.AppendUint(append(b, s.idPrefix...), s.ids.Add(1), 10)
}

// saneID accepts 1 to 64 of A-Z a-z 0-9 . _ -
func saneID(id string) bool {
	if len(id) == 0 || len(id) > 64 {
		return false
	}
	for i := range len(id) {
		c := id[i]
		ok := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-'
		if !ok {
			return false
		}
	}
	return true
}
