package main

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
)

// node is one running member of a cluster: the store, the Raft log, Raft and
// the internal port, wired together. Its parts are in
//
//	raft_identity.go   who this node is: node.json
//	raft_join.go       how a cluster forms and how a node joins one
//	raft_pack.go       from a request to a log entry and back
//	raft_upload.go     the same for a request too large for a pack
//	raft_stream.go     what nodes ask each other all the time
//	raft_read.go       linearizable reads
//	raft_seal.go       when segments are sealed
//	raft_diverge.go    whether all nodes have the same; raft_repair.go what then
//	raft_key.go        the ledger's key and this node's own
//	raft_checkpoint.go signed tree heads; raft_cosign.go what other nodes say of them
//	raft_slow.go       a slow disk
//	raft_space.go      what happens before the disk is full
//	raft_snapshot.go   snapshots; raft_fetch.go the segments they name
//	raft_compact.go    which part of the Raft log is kept
//	raft_witness.go    the witnesses that cosign checkpoints
//	raft_archive.go    sealed segments on their way to the bucket;
//	                   raft_archive_segment.go one of them,
//	                   raft_archive_bucket.go what else lies in the bucket
//	raft_peers.go      what the nodes know of each other
//	raft_handover.go   handing over leadership
//	raft_member.go     joining, leaving and voting; raft_move.go what a member
//	                   does that was moved, copied or removed
//	raft_log.go        the Raft log on disk
//	raft_transport.go  Raft's messages; raft_port.go the port they travel on
type node struct {
	// immutable after open
	o         nodeOptions
	offline   bool // a command has the node open, and no other node can be asked for anything
	lock      *os.File
	store     *store
	log       *logStore
	stable    *stableStore
	port      *internalPort
	transport *raftTransport
	packer    packer
	reads     readRounds
	streams   streamTable
	bodies    budget
	witnesses witnessTable
	peers     peerTable
	key       ed25519.PrivateKey // node.key
	signer    headSigner
	cosigner  headCosigner
	collector headCollector
	archiver  archiver
	commits   sharedRounds[struct{}] // of hearCommit
	ctx       context.Context        // ends when the node closes
	cancel    context.CancelFunc
	done      goroutines

	forming   longMutex // held while the cluster forms: for changes of node.json and the start of Raft
	self      atomic.Pointer[nodeFile]
	raft      atomic.Pointer[raft.Raft] // nil until the cluster is formed
	fsm       atomic.Pointer[fsm]
	readyTerm atomic.Uint64 // the term in which this leader has applied everything before it
	diskFull  atomic.Bool
	spaceLow  chan struct{} // wakes spaceLoop
	door      doorway       // of this leader: shut while leadership is being handed over
	transfers chan struct{} // holds a token while one is under way: who waits for it has a deadline
	caughtUp  atomic.Bool   // since its start this node has had all that the leader had at some moment

	checks  comparisons
	refusal atomic.Pointer[error] // why this node signs no tree head any more
	ending  raftEnd

	sealNow  chan struct{} // look at once whether there is something to seal
	oldest   *pendingAge   // only sealLoop
	uploads  longMutex     // held by the leader for an upload or a seal: never both at a time
	failures chan error
	fetches  segmentFetcher
	serving  atomic.Int32  // segments being sent to other nodes
	lastD    atomic.Uint64 // Raft index of the newest checkpoint
	ages     logAges       // of the Raft log

	// Moments of the monotonic clock; nil = that is not so. See age.
	lostAt        atomic.Pointer[time.Time] // since when no leader is known
	transferStuck atomic.Pointer[time.Time] // since when Raft refuses entries for a leadership transfer
	ledSince      atomic.Pointer[time.Time] // since when this node leads

	changing changeSignal // leadership or the leader changed
	changes  longMutex    // held by the leader for a change of the membership: one at a time
}

// nodeOptions is what a node needs to know; sizes are bytes.
type nodeOptions struct {
	id          uint64
	httpURL     string                                                   // URL of the client port, as others reach it
	raftAddr    string                                                   // host:port of the internal port, as others reach it
	raftListen  string                                                   // where the internal port listens
	seeds       []string                                                 // internal addresses of other nodes
	suggest     func() []string                                          // more of them, as they are found; nil: none
	peerState   func(node, incarnation uint64, contact time.Time) string // alive, suspect or dead; nil: by contact alone
	dataDir     string
	clusterName string
	secret      string
	region      string
	version     string
	expect      int  // nodes that form the first cluster; 1 = alone
	bootstrap   bool // expect 1 for this start
	learner     bool // never votes, whatever others say

	removeDeadAfter time.Duration // of silence; 0 = never

	segmentSize  int64
	maxValueSize int64
	sealAfter    time.Duration
	scrubRate    int64         // bytes a second; 0 = no scrub
	scrubPause   time.Duration // between its passes; 0 = scrubPause

	electionMin  time.Duration // how long a leader is silent before an election: see silence
	electionMax  time.Duration
	heartbeat    time.Duration
	checkEvery   time.Duration // between two comparisons with the other nodes; 0 = checkEvery
	writeTimeout time.Duration
	readTimeout  time.Duration

	objects      objectStore   // nil = nothing is archived
	objectPrefix string        // "" or with a slash at its end
	packLevel    int           // of compress/gzip; 0 = its default
	archiveEvery time.Duration // between two looks for segments to archive and copies to drop; 0 = archiveEvery
	archiveAsked bool          // archive only when asked to
	patrolTime   time.Duration // in which each object is looked at once; 0 = patrolTime
	cacheSize    int64         // bytes of memory for what was read from objects
	dropAge      time.Duration // see storeOptions
	localMax     int64         // see storeOptions

	witnesses      []witnessTarget
	witnessEvery   time.Duration // between two rounds
	witnessTimeout time.Duration // of a round

	logger  *slog.Logger
	metrics *metrics
	now     func() time.Time

	// For tests: how connections are made, how soon Raft tells what is committed
	// and nodes say hello (0 = commitTimeout, helloEvery), and what breaks on disk.
	dial        func(ctx context.Context, addr string) (net.Conn, error)
	listen      func(addr string) (net.Listener, error)
	commitAfter time.Duration
	helloAfter  time.Duration
	space       func(dir string) (diskSpace, error) // nil: as the file system says
	storeFault  func(step string) error
	alter       func(command []byte) []byte // what this node applies in place of a command
	logDisk     logDisk
	logFileSize int64
	logLimits   logLimits                         // zero = defaultLogLimits
	treeFault   func(size uint64, root hash) hash // what this node takes for the root
}

// errRestart asks for the node to be closed and opened again in this process.
var errRestart = errors.New("node must be opened again")

const (
	lockName = "LOCK"
	raftDir  = "raft"
	stableDB = "stable.db"

	commitTimeout = 20 * time.Millisecond // after which idle followers learn what is committed
)

// openNode starts the node in o.dataDir. It returns once the node answers its
// peers; the cluster may still have to form.
func openNode(o nodeOptions) (_ *node, err error) {
	if err := makeDir(o.dataDir); err != nil {
		return nil, err
	}
	if o.metrics == nil {
		o.metrics = newMetrics()
	}
	n := &node{o: o, sealNow: make(chan struct{}, 1), failures: make(chan error, 1), transfers: make(chan struct{}, 1), spaceLow: make(chan struct{}, 1)}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.checks.wake = make(chan struct{}, 1)
	if n.o.archiveEvery == 0 {
		n.o.archiveEvery = archiveEvery
	}
	if n.o.patrolTime == 0 {
		n.o.patrolTime = patrolTime
	}
	if n.o.checkEvery == 0 {
		n.o.checkEvery = checkEvery
	}
	n.packer.n, n.reads.n, n.fetches.n, n.streams.n = n, n, n, n
	n.signer.n, n.cosigner.n, n.collector.n, n.archiver.n = n, n, n, n
	n.bodies.free = max(bodyBudget, 2*o.maxValueSize)
	n.changing.init()
	n.witnesses.init(&n.o)
	defer func() {
		if err != nil {
			n.release()
		}
	}()
	if n.lock, err = lockDir(o.dataDir); err != nil {
		return nil, err
	}
	if err := removeTmp(o.dataDir); err != nil { // of node.json and the like
		return nil, err
	}
	if err := refuseDiverged(o.dataDir); err != nil {
		return nil, err
	}
	self, err := n.loadIdentity()
	if err != nil {
		return nil, err
	}
	n.self.Store(self)
	if err := n.loadNodeKey(); err != nil {
		return nil, err
	}
	if err := n.openDisk(self.Started); err != nil {
		return nil, err
	}
	n.port, err = listenInternal(o.raftListen, portOptions{
		identity: n.identity, secret: o.secret, advertise: o.raftAddr, logger: o.logger, dial: o.dial, listen: o.listen,
	})
	if err != nil {
		return nil, err
	}
	n.transport = newRaftTransport(n.port, transportOptions{
		stalled: n.stalled,
		waits:   n.waitsFor,
		sendsTo: n.sendsTo,
		timeout: 10 * time.Second,
		logger:  o.logger,
	})
	switch {
	case self.formed() && self.Removed:
		o.logger.Warn("this node was removed from the cluster and takes no part in it until it is joined again")
	case self.formed() && self.moved(o.raftAddr):
		n.done.Go(n.moveLoop)
	case self.formed():
		if err := n.startRaft(); err != nil {
			return nil, err
		}
	}
	n.port.serveHTTP(n.internalRoutes())
	questions := n.port.listen(kindStream)
	n.done.Go(func() { n.streamLoop(questions) })
	n.done.Go(n.spaceLoop)
	n.done.Go(n.peerLoop)
	if !self.formed() {
		n.done.Go(n.formLoop)
	}
	return n, nil
}

// lockDir makes sure that one process at a time uses dir.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("data directory %s is in use by another process", dir)
	}
	return f, nil
}

// openStore opens the store.
func (n *node) openStore() (err error) {
	o := storeOptions{
		dir: n.o.dataDir, cluster: n.self.Load().cluster, logger: n.o.logger, metrics: n.o.metrics,
		moved: n.checkpointMoved, fatal: n.fail, fault: n.o.storeFault,
		refetch: n.refetch, mayRefetch: hasOthers, scrubRate: n.o.scrubRate, scrubPause: n.o.scrubPause,
		objects: n.o.objects, objectPrefix: n.o.objectPrefix, cacheSize: n.o.cacheSize,
		dropAge: n.o.dropAge, localMax: n.o.localMax, tierEvery: n.o.archiveEvery,
	}
	if n.archiver.n != nil {
		o.unreadable = n.archiver.note
	}
	if n.offline {
		o.refetch, o.mayRefetch = nil, nil
	}
	n.store, err = openStore(o)
	return err
}

// openDisk opens the store and the Raft log and makes them agree. started says that
// Raft has run on this disk: then there is a log.
func (n *node) openDisk(started bool) (err error) {
	if n.o.space == nil {
		n.o.space = statSpace
	}
	if err := n.openStore(); err != nil {
		return err
	}
	dir := filepath.Join(n.o.dataDir, raftDir)
	n.log, err = openLogStore(dir, logOptions{
		fileSize:   n.o.logFileSize,
		mustExist:  started,
		room:       n.spareSpace,
		gapAllowed: func(first uint64) bool { return n.store.durable.Load().at.index+1 >= first },
		fatal:      n.fail,
		logger:     n.o.logger,
		disk:       n.o.logDisk,
	})
	if err != nil {
		return err
	}
	if n.stable, err = openStableStore(filepath.Join(dir, stableDB)); err != nil {
		return err
	}
	return n.matchLog()
}

// matchLog compares the Raft log with the durable checkpoint D. A log that ends
// before D is what a crash leaves after a snapshot was installed: D has it all,
// and the log starts anew behind it; so does a log that has entries of a leader
// that lost where D has what was committed (raft.md F4). A log that starts after D means that
// ledger.db is older than the log: acknowledged entries would be missing.
func (n *node) matchLog() error {
	at := n.store.durable.Load().at
	first, err := n.log.FirstIndex()
	if err != nil {
		return err
	}
	last, err := n.log.LastIndex()
	if err != nil {
		return err
	}
	if first > at.index+1 {
		return fmt.Errorf("%s: the Raft log starts at index %d but the checkpoint is at %d: entries between are missing", n.o.dataDir, first, at.index)
	}
	n.lastD.Store(at.index)
	if last == 0 || at.index == 0 {
		return nil
	}
	conflict, err := n.conflicts(at.index, at.term)
	if err != nil || last >= at.index && !conflict {
		return err
	}
	n.o.logger.Warn("the Raft log does not go on from the checkpoint and starts anew behind it", "checkpoint", at.index, "log_end", last)
	return n.log.reset(at.index)
}

// conflicts tells whether the Raft log has another entry at index than one of
// the given term.
func (n *node) conflicts(index, term uint64) (bool, error) {
	var l raft.Log
	err := n.log.GetLog(index, &l)
	if err == raft.ErrLogNotFound {
		return false, nil
	}
	return l.Term != term, err
}

// startRaft starts Raft on this node's state, writing the first configuration
// if this node was there when the cluster formed and has no state yet.
func (n *node) startRaft() error {
	if n.self.Load().Raft != n.o.raftAddr {
		if err := n.become(func(f *nodeFile) { f.Raft = n.o.raftAddr }); err != nil {
			return err
		}
	}
	self := n.self.Load()
	if n.store.o.cluster != self.cluster { // formed or joined just now; else the store reads it already
		n.store.o.cluster = self.cluster
	}
	f, err := newFSM(n.store, uploadLimit, n.fail)
	if err != nil {
		return err
	}
	f.fetch, f.installed, f.rekeyed = n.fetches.fetch, n.snapshotInstalled, n.changing.fire
	f.agreed, f.alter = n.agreed, n.o.alter
	snaps := &snapshotStore{n: n}
	conf := n.raftConfig(self)
	if !self.Started {
		if err := n.bootstrap(conf, snaps); err != nil {
			return err
		}
	} else if has, err := n.hasTerm(); err != nil || !has {
		return errors.Join(err, fmt.Errorf("%s: %w", n.o.dataDir, errNoLog))
	}
	notify := make(chan bool, 16)
	conf.NotifyCh = notify
	r, err := raft.NewRaft(conf, f, n.log, raftStable{n.stable, n.fail}, snaps, n.transport)
	if err != nil {
		return err
	}
	n.fsm.Store(f)
	n.raft.Store(r)
	if n.checks.doomed.Load() != nil { // since a moment ago: who condemned this node saw no Raft to stop
		n.stopRaft()
	}
	n.changing.fire()
	n.done.Go(func() { n.leadershipLoop(r, notify) })
	n.done.Go(func() { n.observeLeader(r) })
	n.done.Go(n.sealLoop)
	n.done.Go(n.checkLoop)
	n.done.Go(n.catchUp)
	if len(n.o.witnesses) > 0 {
		n.done.Go(n.witnessLoop)
	}
	if n.o.objects != nil {
		n.done.Go(n.archiver.loop)
		n.done.Go(n.archiver.liveLoop)
	}
	n.done.Go(n.checkSigned)
	if servers := n.servers(); len(servers) == 1 && servers[0].ID == conf.LocalID {
		n.done.Go(func() { n.transport.lead(conf.LocalID) }) // nobody else can be the leader
	}
	return nil
}

// hasTerm tells whether Raft has ever had a term on this disk. Every node that
// was in touch with another, or led, has one; D does not count, for it stays
// when the directory of the log is lost.
func (n *node) hasTerm() (bool, error) {
	term, err := n.stable.GetUint64(termKey)
	return term > 0, err
}

// termKey is where Raft keeps its term.
var termKey = []byte("CurrentTerm")

// raftConfig returns Raft's configuration. Raft itself never takes snapshots and
// never shortens the log; this program does (store_seal.go).
func (n *node) raftConfig(self *nodeFile) *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = serverID(n.identity())
	c.HeartbeatTimeout = n.silence()
	c.ElectionTimeout = n.silence()
	c.LeaderLeaseTimeout = n.silence()
	c.CommitTimeout = cmp.Or(n.o.commitAfter, commitTimeout)
	c.MaxAppendEntries = 16
	c.BatchApplyCh = true
	c.SnapshotInterval = 24 * time.Hour
	c.SnapshotThreshold = 1 << 62
	c.TrailingLogs = 1 << 62
	c.NoSnapshotRestoreOnStart = true
	c.NoLegacyTelemetry = true
	c.ShutdownOnRemove = false
	c.LogOutput, c.LogLevel = raftLogger{n.o.logger}, "WARN"
	return c
}

// silence is Raft's HeartbeatTimeout. Raft looks at the time of the last contact
// when a timer of one to two of them fires, and starts the timer again if that
// was less than one ago: a follower stands for election after a silence of one
// to three of them, at most electionMax. Pre-votes make one that was too quick
// harmless.
func (n *node) silence() time.Duration { return min(n.o.electionMin, n.o.electionMax/3) }

// uploadLimit is the largest command the FSM joins from parts: a batch with the
// largest value there can be. It is the same on all nodes, whatever their
// configuration says.
const uploadLimit = 2<<30 + 64<<20

// leadershipLoop follows whether this node leads. A new leader waits until it
// has applied everything before its term; then it may serve reads.
func (n *node) leadershipLoop(r *raft.Raft, notify <-chan bool) {
	for {
		select {
		case <-n.ctx.Done():
			return
		case leads := <-notify:
			if leads {
				n.done.Go(func() { n.becomeReady(r) })
			}
			n.changing.fire()
		}
	}
}

// becomeReady marks the current term as one in which reads may be served.
func (n *node) becomeReady(r *raft.Raft) {
	for n.ctx.Err() == nil && r.State() == raft.Leader {
		term := r.CurrentTerm()
		if err := n.wait(r.Barrier(time.Second)); err != nil {
			n.fate(err)
			n.pause(10 * time.Millisecond)
			continue
		}
		n.transferStuck.Store(nil)
		if r.State() == raft.Leader && r.CurrentTerm() == term {
			n.ledSince.Store(new(time.Now()))
			n.readyTerm.Store(term)
			n.o.logger.Info("leading", "term", term, "ledger_size", n.store.size())
			n.changing.fire()
			n.wakeSeal()
			n.makeKey()
			return
		}
	}
}

// catchUp notes when this node first has what the leader has. Before, after a
// restart, it may still be applying its own log: it would answer reads, but late.
func (n *node) catchUp() {
	for n.ctx.Err() == nil {
		if n.confirmRead(n.ctx) == nil {
			n.caughtUp.Store(true)
			return
		}
		n.pause(20 * time.Millisecond)
	}
}

// observeLeader fires changing whenever Raft hears of another leader.
func (n *node) observeLeader(r *raft.Raft) {
	ch := make(chan raft.Observation, 16)
	o := raft.NewObserver(ch, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	})
	r.RegisterObserver(o)
	defer r.DeregisterObserver(o)
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-ch:
			n.leaderless()
			n.changing.fire()
			addr, _ := n.leaderServer()
			time.AfterFunc(n.grace(string(addr)), func() {
				if now, _ := n.leaderServer(); now == addr {
					n.streams.leave(string(addr))
				}
			})
		}
	}
}

// leaderless returns for how long this node has known no leader.
func (n *node) leaderless() time.Duration {
	if addr, _ := n.leaderServer(); addr != "" {
		n.lostAt.Store(nil)
		return 0
	}
	if since := n.lostAt.Load(); since != nil {
		return time.Since(*since)
	}
	n.lostAt.CompareAndSwap(nil, new(time.Now()))
	return 0
}

// age is the time since a moment, by the monotonic clock, which no change of the
// wall clock moves; without a moment it is longer than anything.
func age(moment *atomic.Pointer[time.Time]) time.Duration {
	if t := moment.Load(); t != nil {
		return time.Since(*t)
	}
	return math.MaxInt64
}

// leads tells whether this node is the leader as far as it knows.
func (n *node) leads() bool {
	r := n.raft.Load()
	return r != nil && r.State() == raft.Leader
}

// errReplaced is why the context of whileLeads ended.
var errReplaced = errors.New("the leader that was asked was replaced and does not answer")

// grace is how long a former leader may still answer what it was asked, when the
// one at addr leads now, "" = nobody.
func (n *node) grace(addr string) time.Duration {
	if addr == "" {
		return n.patience() // it may be heard again
	}
	return n.silence()
}

// whileLeads returns a context that ends some time after this node hears that
// not the one at addr leads any more, which was asked something. A leader that
// is alive answers when it loses its office; one that hangs or is cut off does
// not, and its connections stay open: who waits for it would not turn to the
// new one.
func (n *node) whileLeads(ctx context.Context, addr string) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		for ctx.Err() == nil {
			changed := n.changing.next()
			var late <-chan time.Time
			if now, _ := n.leaderServer(); string(now) != addr {
				late = time.After(n.grace(string(now)))
			}
			select {
			case <-changed:
			case <-late:
				cancel(errReplaced)
			case <-ctx.Done():
			}
		}
	}()
	return ctx, func() { cancel(nil) }
}

// pause waits a moment or until the node closes.
func (n *node) pause(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-n.ctx.Done():
	}
}

// fail reports the error that ends this node; only the first counts.
func (n *node) fail(err error) {
	if errors.Is(err, errDiverged) {
		err = n.condemn(err)
	}
	n.o.logger.Debug("node cannot go on", "error", err) // who reads failed says it aloud
	select {
	case n.failures <- err:
	default:
	}
}

// failed delivers the error that ends this node, errRestart if it should be
// opened again.
func (n *node) failed() <-chan error { return n.failures }

// close hands over leadership, stops everything and releases the directory.
// What was acknowledged is on disk; nothing else is promised.
func (n *node) close(ctx context.Context) error {
	n.handOver(ctx)
	return n.release()
}

// release stops and closes whatever was opened.
func (n *node) release() error {
	n.cancel()
	if n.store != nil {
		n.store.stop() // Raft waits for the FSM, which may wait for a full disk
	}
	if r := n.raft.Load(); r != nil {
		if err := n.stopRaft().Error(); err != nil {
			n.o.logger.Warn("stopping Raft", "error", err)
		}
	}
	n.changing.fire()
	var errs []error
	if n.transport != nil {
		errs = append(errs, n.transport.Close())
	}
	if n.port != nil {
		errs = append(errs, n.port.close())
	}
	n.done.Wait()
	n.forming.Lock() // a peer may have had Raft started just now; nobody does any more
	defer n.forming.Unlock()
	if r := n.raft.Load(); r != nil {
		errs = append(errs, n.stopRaft().Error())
	}
	if n.store != nil {
		errs = append(errs, n.store.close())
	}
	if n.log != nil {
		errs = append(errs, n.log.close())
	}
	if n.stable != nil {
		errs = append(errs, n.stable.close())
	}
	for _, f := range []*signedFile{n.signer.file, n.cosigner.file} {
		if f != nil {
			errs = append(errs, f.close())
		}
	}
	if n.lock != nil {
		errs = append(errs, n.lock.Close())
	}
	return errors.Join(errs...)
}

// errClosed says that a node that closes does nothing more.
var errClosed = fmt.Errorf("%w: %w: this node closes", errNotApplied, errNoLeader)

// goroutines are what runs for a node. Unlike those of a sync.WaitGroup they may
// be waited for while somebody, a handler of a request, would start another.
type goroutines struct {
	running sync.WaitGroup
	mu      sync.Mutex
	closed  bool
}

// Go runs f, unless the others are being waited for: what f needs is closed then.
func (g *goroutines) Go(f func()) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.running.Go(f)
	}
	return !g.closed
}

// Wait waits until all have ended. None starts any more.
func (g *goroutines) Wait() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.running.Wait()
}

// changeSignal lets goroutines wait for a change without missing one.
type changeSignal struct {
	mu sync.Mutex
	ch chan struct{}
}

func (c *changeSignal) init() { c.ch = make(chan struct{}) }

// next returns a channel that the next fire closes. Take it before looking at
// what may change.
func (c *changeSignal) next() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ch
}

// fire wakes everybody who took next.
func (c *changeSignal) fire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.ch)
	c.ch = make(chan struct{})
}

// internalRoutes is what nodes ask each other over the internal port.
func (n *node) internalRoutes() http.Handler {
	m := http.NewServeMux()
	m.HandleFunc("GET /hello", n.serveHello)
	m.HandleFunc("POST /pledge", n.servePledge)
	m.HandleFunc("POST /form", n.serveForm)
	m.HandleFunc("POST /join", n.serveJoin)
	m.HandleFunc("POST /member", n.serveMember)
	m.HandleFunc("POST /role", n.serveRole)
	m.HandleFunc("POST /enter", n.serveEnter)
	m.HandleFunc("POST /belongs", n.serveBelongs)
	m.HandleFunc("POST /pack", n.serveLarge)
	m.HandleFunc("POST /seal", n.serveSeal)
	m.HandleFunc("POST /shown", n.serveShown)
	m.HandleFunc("POST /compare", n.serveCompare)
	m.HandleFunc("POST /archive", n.serveArchive)
	m.HandleFunc("POST /transfer", n.serveTransfer)
	m.HandleFunc("GET /segments/{id}", n.serveSegment)
	m.HandleFunc("GET /witnessed", n.serveWitnessed)
	m.HandleFunc("POST /rotate-key", n.serveRotate)
	m.HandleFunc("POST /head", n.serveHead)
	m.HandleFunc("POST /cosign", n.serveCosign)
	return m
}
