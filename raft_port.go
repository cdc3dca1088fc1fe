package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// The internal port: one TCP listener for all that nodes say to each other.
// The preamble (raft_preamble.go) of a connection decides whether Raft's
// stream layer or the internal HTTP server gets it.

const (
	preambleTimeout = 5 * time.Second // for dialling and the whole exchange
	maxStrangers    = 256             // connections that have not finished their preamble
	refusalLogEvery = 10 * time.Second
	internalHeader  = 10 * time.Second // time-out for the header of an internal request
	internalIdle    = 2 * time.Minute  // of the server; the client lets go before it
	clientIdle      = time.Minute
	clientIdleConns = 32 // per peer

	// After a cable is cut both ends believe in their connections for a quarter of
	// an hour, and once it is mended TCP waits as long again as it was cut before
	// it tries them. So they end early, and new ones are made all the time.
	dialTimeout = 2 * time.Second // TCP asks again after one
	unheardFor  = 3 * time.Second // what was sent; then the connection ends
)

// errDial is wrapped by errors that came before a connection was there: nothing
// was sent.
var errDial = errors.New("no connection")

// keepAlive ends a connection whose other end is silent, by asking for a sign of
// life when nothing else was sent.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: unheardFor - 2*time.Second, Interval: time.Second, Count: 2}

// portOptions is what an internal port needs; zero fields take the values of production.
type portOptions struct {
	identity  func() identity // asked for every connection: it changes when the cluster forms
	secret    string          // [cluster] secret; "" = none
	advertise string          // host:port under which peers reach this port; "" = the listener's own address
	logger    *slog.Logger

	dial      func(ctx context.Context, addr string) (net.Conn, error) // how tests cut links; nil = TCP
	listen    func(addr string) (net.Listener, error)                  // the same; nil = TCP
	timeout   time.Duration                                            // 0 = preambleTimeout
	strangers int                                                      // 0 = maxStrangers
}

// internalPort is a node's listener for its peers and its way to them.
type internalPort struct {
	o          portOptions
	listener   net.Listener
	httpClient *http.Client
	strangers  chan struct{} // a token for each connection that is not handed over
	refused    logLimit
	done       chan struct{} // closed by close
	wg         sync.WaitGroup

	mu     sync.Mutex // guards the rest; never held over network or disk
	conns  map[*peerConn]struct{}
	takers map[connKind]*portListener // who accepts connections of a kind now
	server *http.Server
	closed bool
}

// listenInternal opens the internal port at addr and admits peers from now on.
func listenInternal(addr string, o portOptions) (*internalPort, error) {
	if o.listen == nil {
		o.listen = func(addr string) (net.Listener, error) {
			return (&net.ListenConfig{KeepAliveConfig: keepAlive}).Listen(context.Background(), "tcp", addr)
		}
	}
	l, err := o.listen(addr)
	if err != nil {
		return nil, fmt.Errorf("opening the internal port: %w", err)
	}
	if o.advertise == "" {
		o.advertise = l.Addr().String()
	}
	if o.timeout == 0 {
		o.timeout = preambleTimeout
	}
	if o.strangers == 0 {
		o.strangers = maxStrangers
	}
	if o.dial == nil {
		o.dial = func(ctx context.Context, addr string) (net.Conn, error) {
			return (&net.Dialer{Timeout: dialTimeout, KeepAliveConfig: keepAlive}).DialContext(ctx, "tcp", addr)
		}
	}
	p := &internalPort{
		o:         o,
		listener:  l,
		strangers: make(chan struct{}, o.strangers),
		refused:   logLimit{log: o.logger, every: refusalLogEvery},
		done:      make(chan struct{}),
		conns:     make(map[*peerConn]struct{}),
		takers:    make(map[connKind]*portListener),
	}
	p.httpClient = p.newClient()
	p.wg.Go(p.acceptLoop)
	return p, nil
}

// addr returns the address the port listens on.
func (p *internalPort) addr() net.Addr { return p.listener.Addr() }

// close ends the listener and every connection and waits for the port's own
// goroutines; handlers of internal requests see their context end.
func (p *internalPort) close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	server := p.server
	p.mu.Unlock()

	close(p.done)
	err := p.listener.Close()
	if server != nil {
		server.Close()
	}
	p.closeConns(func(*peerConn) bool { return true })
	p.wg.Wait()
	return err
}

// acceptLoop takes connections until the listener closes.
func (p *internalPort) acceptLoop() {
	var pause time.Duration
	for {
		c, err := p.listener.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil: // out of descriptors, mostly: let some go
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			p.refused.warn("internal port cannot accept", "error", err)
			select {
			case <-time.After(pause):
			case <-p.done:
				return
			}
			continue
		}
		pause = 0
		select {
		case p.strangers <- struct{}{}:
			p.wg.Go(func() {
				p.receive(c)
				<-p.strangers
			})
		default:
			c.Close()
			p.refused.warn("internal connection refused: too many have not said who they are",
				"from", c.RemoteAddr(), "limit", cap(p.strangers))
		}
	}
}

// receive admits one connection and hands it over to whom its preamble names.
func (p *internalPort) receive(raw net.Conn) {
	// TLS will wrap raw here, and in connect, before the preamble.
	c, err := p.track(raw)
	if err != nil {
		return
	}
	c.SetDeadline(time.Now().Add(p.o.timeout))
	hello, err := admit(c, p.o.identity(), p.o.secret)
	if err != nil {
		p.refused.warn("internal connection refused", "from", c.RemoteAddr(), "error", err)
		c.Close()
		return
	}
	c.SetDeadline(time.Time{})
	c.setPeer(hello.kind, hello.identity)
	p.mu.Lock()
	taker := p.takers[hello.kind]
	p.mu.Unlock()
	if taker == nil || !taker.hand(c) { // Raft or HTTP does not run yet, or any more: the peer will try again
		c.Close()
	}
}

// connect dials addr, exchanges preambles and returns the admitted connection.
func (p *internalPort) connect(ctx context.Context, addr string, kind connKind) (*peerConn, error) {
	ctx, cancel := context.WithTimeout(ctx, p.o.timeout)
	defer cancel()
	raw, err := p.o.dial(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errDial, err)
	}
	// TLS will wrap raw here, and in receive, before the preamble.
	c, err := p.track(raw)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	deadline, _ := ctx.Deadline()
	c.SetDeadline(deadline)
	peer, err := greet(c, p.o.identity(), kind, p.o.secret)
	if !stop() {
		err = context.Cause(ctx) // why c was closed
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("%w: connecting to %s: %w", errDial, addr, err)
	}
	c.SetDeadline(time.Time{})
	c.setPeer(kind, peer)
	return c, nil
}

// peerConn is a connection to another node, known to its port until it closes.
type peerConn struct {
	net.Conn
	port *internalPort
	gone chan struct{} // closed when the connection is
	once sync.Once

	// Set once, before the connection is handed over; guarded by port.mu until then.
	kind connKind
	peer identity
}

// track makes raw a connection that close closes; it closes raw itself when it is too late.
func (p *internalPort) track(raw net.Conn) (*peerConn, error) {
	c := &peerConn{Conn: raw, port: p, gone: make(chan struct{})}
	p.mu.Lock()
	closed := p.closed
	if !closed {
		p.conns[c] = struct{}{}
	}
	p.mu.Unlock()
	if closed {
		raw.Close()
		return nil, net.ErrClosed
	}
	return c, nil
}

// setPeer records what the preamble said.
func (c *peerConn) setPeer(kind connKind, peer identity) {
	c.port.mu.Lock()
	c.kind, c.peer = kind, peer
	c.port.mu.Unlock()
	if kind == kindHTTP { // a server reads a large body when it has room for it: the other end is not gone
		return
	}
	if err := limitUnheard(c.Conn, unheardFor); err != nil {
		c.port.o.logger.Warn("internal connection will notice late when it is cut", "peer", c.RemoteAddr(), "error", err)
	}
}

// Close ends the connection; more calls do nothing.
func (c *peerConn) Close() error {
	c.once.Do(func() {
		c.port.mu.Lock()
		delete(c.port.conns, c)
		c.port.mu.Unlock()
		close(c.gone)
		c.Conn.Close()
	})
	return nil
}

// ReadFrom lets the kernel send a file, where it can.
func (c *peerConn) ReadFrom(r io.Reader) (int64, error) { return io.Copy(c.Conn, r) }

// closeConns closes the connections that match.
func (p *internalPort) closeConns(match func(*peerConn) bool) {
	p.mu.Lock()
	var found []*peerConn
	for c := range p.conns {
		if match(c) {
			found = append(found, c)
		}
	}
	p.mu.Unlock()
	for _, c := range found {
		c.Close()
	}
}

// portListener is the port as net/http or Raft sees it: it accepts admitted connections of one kind.
type portListener struct {
	port  *internalPort
	kind  connKind
	conns chan *peerConn
	done  chan struct{} // closed by Close
	once  sync.Once
}

// listen returns a listener that takes over the connections of a kind from now on.
func (p *internalPort) listen(kind connKind) *portListener {
	l := &portListener{port: p, kind: kind, conns: make(chan *peerConn), done: make(chan struct{})}
	p.mu.Lock()
	p.takers[kind] = l
	p.mu.Unlock()
	return l
}

// hand gives c to Accept and reports whether it was taken.
func (l *portListener) hand(c *peerConn) bool {
	select {
	case l.conns <- c:
		return true
	case <-l.done:
	case <-l.port.done:
	}
	return false
}

// Accept returns the next admitted connection, always a *peerConn.
func (l *portListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
	case <-l.port.done:
	}
	return nil, net.ErrClosed
}

// Addr returns the address peers know this node by.
func (l *portListener) Addr() net.Addr { return peerAddr(l.port.o.advertise) }

// Close ends Accept; the port goes on.
func (l *portListener) Close() error {
	l.once.Do(func() {
		l.port.mu.Lock()
		if l.port.takers[l.kind] == l {
			delete(l.port.takers, l.kind)
		}
		l.port.mu.Unlock()
		close(l.done)
	})
	return nil
}

// peerAddr is a host:port as a net.Addr.
type peerAddr string

func (peerAddr) Network() string  { return "tcp" }
func (a peerAddr) String() string { return string(a) }

// raftStreams is Raft's stream layer on the port.
type raftStreams struct{ *portListener }

// raftLayer returns a stream layer for one Raft instance. Only one may be open at a time.
func (p *internalPort) raftLayer() raft.StreamLayer {
	return &raftStreams{p.listen(kindRaft)}
}

// Dial opens a Raft stream to "host:port", or to "server id@host:port", which
// fails when another server answers there: a node that lost its disk and came
// back under the same address must not acknowledge entries for its old self.
func (s *raftStreams) Dial(to raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	want, addr, found := strings.Cut(string(to), "@")
	if !found {
		want, addr = "", string(to)
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	c, err := s.port.connect(ctx, addr, kindRaft)
	if err != nil {
		return nil, err
	}
	if got := serverID(c.peer); want != "" && string(got) != want {
		c.Close()
		return nil, fmt.Errorf("connecting to %s: %w: server %s answers, want %s", addr, errRefused, got, want)
	}
	select {
	case <-s.done: // Close came while we dialled and did not see this one
		c.Close()
		return nil, net.ErrClosed
	default:
		return c, nil
	}
}

// Close ends Accept and every Raft stream of the port.
func (s *raftStreams) Close() error {
	s.portListener.Close()
	s.port.closeConns(func(c *peerConn) bool { return c.kind == kindRaft })
	return nil
}

// peerKey is the context key of the identity of a request's sender.
type peerKey struct{}

// peerOf returns who sent an internal request, as its connection's preamble
// said: a sender that has formed its cluster since is still shown as not formed.
func peerOf(ctx context.Context) (identity, bool) {
	id, ok := ctx.Value(peerKey{}).(identity)
	return id, ok
}

// serveHTTP answers internal requests with h from now on. It is called once.
func (p *internalPort) serveHTTP(h http.Handler) {
	server := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: internalHeader,
		IdleTimeout:       internalIdle,
		ErrorLog:          slog.NewLogLogger(p.o.logger.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, peerKey{}, c.(*peerConn).peer)
		},
	}
	l := p.listen(kindHTTP)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.server = server
	p.wg.Go(func() { server.Serve(l) })
}

// client returns the client for internal requests: http://host:raft_port/path.
// After the cluster has formed, CloseIdleConnections makes it introduce itself anew.
func (p *internalPort) client() *http.Client { return p.httpClient }

// newClient makes the client that client returns.
func (p *internalPort) newClient() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
				return p.connect(ctx, addr, kindHTTP)
			},
			DisableCompression:  true,
			MaxIdleConnsPerHost: clientIdleConns,
			IdleConnTimeout:     clientIdle,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// logLimit lets one line through in a while and counts the others.
type logLimit struct {
	log   *slog.Logger
	every time.Duration

	mu     sync.Mutex // guards the rest
	next   time.Time
	hidden int
}

// warn logs, unless it did a moment ago.
func (l *logLimit) warn(msg string, args ...any) {
	l.mu.Lock()
	hidden, now := l.hidden, time.Now()
	show := now.After(l.next)
	if show {
		l.hidden, l.next = 0, now.Add(l.every)
	} else {
		l.hidden++
	}
	l.mu.Unlock()
	if show {
		l.log.Warn(msg, append(args, "more", hidden)...)
	}
}
