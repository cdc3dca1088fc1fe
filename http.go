package main

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"
)

// HTTP API; the contract is API.md. This file holds the server and the way of
// a request through it. What is at which path is in http_route.go; the calls are
// in http_entry.go (one key), http_list.go (many keys), http_follow.go (the
// ledger as a stream), http_batch.go, http_verify.go (receipts), http_tree.go
// and http_admin.go. Bodies are in http_body.go, replies and errors in
// http_reply.go, JSON in http_json.go and http_scan.go, connections in
// http_conn.go.

// serverNode is what the server needs of the node. Errors are those of
// fsm_command.go and store_read.go.
type serverNode interface {
	// submit is documented at node.submit. The server never writes to r or to
	// the memory of its operations again, whatever becomes of them.
	submit(ctx context.Context, r *request) (result, error)
	// submitAsync is submit without waiting: done is called once, from any
	// goroutine, when the fate of r is known; not at all if an error is returned.
	submitAsync(r *request, done func(result, error)) error
	confirmRead(ctx context.Context) error
	// waitCommitted returns when this node's store holds size entries, which are committed.
	waitCommitted(ctx context.Context, size uint64) error
	reserve(ctx context.Context, size int64) (release func(), err error)
	status() nodeStatus
	lastContact() int64
	mayServe() error
	members() []memberInfo
	seal(ctx context.Context) error
	archive(ctx context.Context) (archiveResult, error)
	transfer(ctx context.Context, to uint64) error
	// changeMember is documented at node.changeMember.
	changeMember(ctx context.Context, c *memberChange) error
	// signedHead is documented at node.signedHead.
	signedHead(ctx context.Context, minSize uint64, cosigned bool) (signedHead, error)
	// witnessedHead is documented at node.witnessedHead.
	witnessedHead(ctx context.Context, least uint64) (signedHead, error)
	// signedManifest is documented at node.signedManifest.
	signedManifest(ctx context.Context) ([]byte, error)
	ledgerVKeys() (current string, former []string, err error)
	nodeVKeys() map[uint64]string
	rotateLedgerKey(ctx context.Context) error
}

// serverStore is what the server needs of the store: everything applied here.
type serverStore interface {
	get(key []byte, sel selector) (entry, error)
	entryAt(seq uint64) (entry, error)
	headerAt(seq uint64) (entry, error)
	history(key []byte, before uint64, limit int) ([]entry, *uint64, error)
	list(prefix, after []byte, limit int) ([]entry, bool, error)
	size() uint64
	waitSize(ctx context.Context, n uint64) error
	sealedFile(id string) (io.ReadSeekCloser, segmentInfo, error)
	currentManifest() *manifest
	objectKey(info segmentInfo) string
	isCold(first uint64) bool
	prefetch(ctx context.Context, from, to uint64, pin *bool) (prefetchResult, error)
	pendingInfo() (first, count, bytes uint64)
	root(size uint64) (hash, error)
	inclusion(seq, size uint64) ([]hash, error)
	consistency(from, to uint64) ([]hash, error)
	tile(id tileID) ([]byte, error)
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
	ping  time.Duration // between two signs of life to one who follows the ledger
	small int64         // bytes of all bodies that reserve nothing
}

var defaultLimits = serverLimits{
	head:  5 * time.Second,
	body:  30 * time.Second,
	write: 30 * time.Second,
	idle:  120 * time.Second,
	ping:  15 * time.Second,
	small: 128 << 20,
}

// server answers clients.
type server struct {
	node    serverNode
	store   serverStore
	o       serverOptions
	limits  serverLimits
	http    *http.Server
	routes  map[string]route
	entry   route // of keys
	sweeper sweeper

	heads         headCache
	writes, reads deadlines    // contexts for calls to node and store
	small         atomic.Int64 // bytes of bodies under way that reserved nothing
	idPrefix      string       // of request ids
	ids           atomic.Uint64
	closing       context.Context // done when the node begins to stop
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
	s.limits.ping = cmp.Or(s.limits.ping, defaultLimits.ping)
	s.routes = s.table()
	s.entry = s.routes["kv/"]
	s.writes.after, s.reads.after = o.writeTimeout, o.readTimeout
	s.idPrefix = strconv.FormatInt(time.Now().UnixNano(), 36) + "-"
	s.closing, s.close = context.WithCancel(context.Background())
	s.http = &http.Server{
		Handler:                      s,
		ReadHeaderTimeout:            s.limits.head,
		ReadTimeout:                  s.limits.body,
		WriteTimeout:                 s.limits.body + s.limits.write + o.readTimeout + o.writeTimeout, // a receipt follows a write
		IdleTimeout:                  s.limits.idle,
		MaxHeaderBytes:               32 << 10,
		DisableGeneralOptionsHandler: true,
		ConnContext:                  connContext,
		ConnState:                    connState,
		ErrorLog:                     slog.NewLogLogger(o.logger.Handler(), slog.LevelWarn),
	}
	s.http.RegisterOnShutdown(s.close)
	return s
}

// serve answers connections of ln until retire or shutdown.
func (s *server) serve(ln net.Listener) error {
	quit := make(chan struct{})
	defer close(quit)
	go s.sweeper.run(quit)
	err := s.http.Serve(clientListener{ln, s})
	if errors.Is(err, http.ErrServerClosed) || s.closing.Err() != nil {
		return nil
	}
	return err
}

// farewell is how long a node that stops goes on answering, so that no client
// finds its connection closed under a request.
const farewell = 200 * time.Millisecond

// retire ends streams now and each connection with its next reply.
func (s *server) retire() { s.close() }

// awaitRetired returns when no client is connected, or after farewell: who is
// connected still asks for nothing.
func (s *server) awaitRetired() {
	look := time.NewTicker(farewell / 20)
	defer look.Stop()
	for end := time.Now().Add(farewell); s.o.metrics.http.connections.n.Load() > 0 && time.Now().Before(end); {
		<-look.C
	}
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
	conn  *clientConn         // nil in tests without one
	w     http.ResponseWriter // written by answer and by streams only
	r     *http.Request
	route int    // index into routeLabels
	raw   string // path of the key as it was sent
	key   []byte // for routes that take one; segment id for /ledger/segments/
	query []param
	stale bool        // it is read without asking the leader
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

// ServeHTTP answers one request. It is the one place that counts and logs.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	s.o.metrics.http.inFlight.add(1)
	conn, fault := connOf(r), ""
	var c *call
	if conn != nil {
		c, fault = &conn.call, conn.begin()
	} else {
		c = &call{}
	}
	c.reset(w, r, conn)
	if s.closing.Err() != nil {
		w.Header().Set("Connection", "close")
	}
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
	took := time.Since(start)
	m.seconds[c.route].observe(took)
	if s.o.logger.Enabled(context.Background(), slog.LevelDebug) {
		s.o.logger.Debug("request", "method", r.Method, "target", clip(r.RequestURI), "status", rep.status, "took", took, "from", r.RemoteAddr)
	}
	if cut {
		panic(http.ErrAbortHandler) // the client must see that the reply is not whole
	}
}

// reset makes c the call of one request; its scratch space stays.
func (c *call) reset(w http.ResponseWriter, r *http.Request, conn *clientConn) {
	c.conn, c.w, c.r, c.route, c.raw, c.key, c.query, c.stale = conn, w, r, routeOther, "", nil, nil, false
	c.lines.reset()
}
