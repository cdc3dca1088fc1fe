package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Restore of a ledger whose nodes are all lost, from what its cluster archived: an
// empty directory becomes a node that is a cluster of one, which others then join.
// It is the same cluster and the same ledger up to the archive's last entry, in
// another life: its Raft log begins anew, and so does the key that signs, for the
// old one was on the lost nodes only. The ledger itself says so in its next entry.

// restoredKey is the key of the entries that tell of restores, reached as /kv/….
const restoredKey = "cluster/restored"

// errNotEmpty says that a directory is not one to restore into.
var errNotEmpty = errors.New("the directory is not empty")

// errHalfRestored says that a node was not restored to the end.
var errHalfRestored = errors.New("this node is not restored to the end: run restore again, or empty the directory")

// restoration is what restoreNode makes a node of.
type restoration struct {
	cluster  clusterID
	segments []segmentInfo
	root     hash   // over all their entries
	key      string // vkey that signed so
	manifest string // where: the key of the manifest's object

	// adopt takes over the kth segment: its file, or what a node keeps of a cold one.
	adopt func(ctx context.Context, s *store, k int) (fetchedSegment, error)
	told  func(entries uint64) // how many are adopted
}

// size returns the number of entries.
func (r *restoration) size() uint64 { return r.segments[len(r.segments)-1].end() }

// restoredCut is the value of the entry that tells of a restore. What comes before
// it is what the archive had; what the lost nodes had behind that is lost.
type restoredCut struct {
	Node        uint64 `json:"node"`
	Incarnation string `json:"incarnation"`
	Time        string `json:"time"`
	Entries     uint64 `json:"entries"`     // in the archive
	Root        string `json:"root"`        // over them
	SignedBy    string `json:"signed_by"`   // vkey of the ledger until then
	Manifest    string `json:"manifest"`    // of the archive
	LastSealed  string `json:"last_sealed"` // when the last of its segments was sealed
}

// restoreFile is restore.json. It is in the directory from the first step of a
// restore to the last, and no node starts beside it. For example
//
//	{
//	  "manifest": "5b0c…e310/manifests/00000000000000001042-2b4c…",
//	  "node": {"format": 1, "node_id": 1, …}
//	}
//
// node is the node.json that the directory will get.
type restoreFile struct {
	Manifest string          `json:"manifest"`
	Node     json.RawMessage `json:"node"`
}

const restoreFileName = "restore.json"

// refuseHalfRestored returns why the node in dir must not start.
func refuseHalfRestored(dir string) error {
	if _, err := os.Lstat(filepath.Join(dir, restoreFileName)); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	return fmt.Errorf("%s: %w", dir, errHalfRestored)
}

// restoreNode makes o.dataDir the node of a cluster of one that goes on from r, and
// returns what it wrote into the ledger. A crash at any step leaves a directory
// that no node starts on, and that the same restore finishes:
//
//	restore.json                  who the node will be
//	segments, runs, tiles         behind D, which is none yet
//	D                             one transaction (store_install.go)
//	term, cut entry               of a Raft log that begins behind D
//	node.json
//	restore.json is removed       a node
func restoreNode(ctx context.Context, o nodeOptions, r *restoration) (*restoredCut, error) {
	if o.metrics == nil {
		o.metrics = newMetrics()
	}
	n := &node{o: o, offline: true, sealNow: make(chan struct{}, 1), failures: make(chan error, 1)}
	n.changing.init()
	n.checks.wake = make(chan struct{}, 1)
	n.ctx, n.cancel = context.WithCancel(ctx)
	defer n.release()
	if err := n.beginRestore(r); err != nil {
		return nil, err
	}
	if err := n.openDisk(false); err != nil {
		return nil, err
	}
	if err := n.adoptAll(r); err != nil {
		return nil, err
	}
	if root, err := n.store.root(r.size()); err != nil || root != r.root {
		return nil, errors.Join(err, fmt.Errorf("%w: the segments give root %s over %d entries, manifest %s says %s", errCorrupt, root, r.size(), r.manifest, r.root))
	}
	cut, err := n.beginLog(r)
	if err != nil {
		return nil, err
	}
	step := n.store.step
	if err := step("write node.json", func() error { return n.self.Load().save(o.dataDir) }); err != nil {
		return nil, err
	}
	if err := step("remove restore.json", func() error { return os.Remove(filepath.Join(o.dataDir, restoreFileName)) }); err != nil {
		return nil, err
	}
	return cut, syncDir(o.dataDir)
}

// beginRestore takes possession of the directory, which must be empty or what an
// earlier restore left, once it is sure that no node of the cluster answers. What is
// refused leaves nothing there: the node may be meant to join those that answer.
func (n *node) beginRestore(r *restoration) (err error) {
	if err := makeDir(n.o.dataDir); err != nil {
		return err
	}
	if err := wantRestorable(n.o.dataDir); err != nil { // before it gets a file of ours
		return err
	}
	if n.lock, err = lockDir(n.o.dataDir); err != nil {
		return err
	}
	if err := removeTmp(n.o.dataDir); err != nil {
		return err
	}
	self, err := n.resumeRestore(r)
	fresh := err == nil && self == nil
	if fresh {
		self, err = n.newRestored(r)
	}
	if err != nil {
		return err
	}
	n.self.Store(self)
	n.port, err = listenInternal(n.o.raftListen, portOptions{
		identity: n.identity, secret: n.o.secret, advertise: n.o.raftAddr, logger: n.o.logger, dial: n.o.dial, listen: n.o.listen,
	})
	if err == nil {
		err = n.wantSilence(nil)
	}
	if err == nil && fresh {
		err = n.markRestore(r)
	}
	return err
}

// wantRestorable returns an error unless dir is empty, or an earlier restore began there.
func wantRestorable(dir string) error {
	if err := refuseHalfRestored(dir); err != nil {
		if errors.Is(err, errHalfRestored) {
			err = nil
		}
		return err
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		if name := f.Name(); name != lockName && name != "lost+found" && !strings.HasSuffix(name, tmpSuffix) {
			return fmt.Errorf("%s: %w: it has %s", dir, errNotEmpty, name)
		}
	}
	return nil
}

// resumeRestore returns who the node will be if an earlier restore from the same
// manifest left it, nil if none did.
func (n *node) resumeRestore(r *restoration) (*nodeFile, error) {
	path := filepath.Join(n.o.dataDir, restoreFileName)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var left restoreFile
	if err := json.Unmarshal(b, &left); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", path, errCorrupt, err)
	}
	self, err := decodeNodeFile(left.Node)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if left.Manifest == r.manifest && self.NodeID == n.o.id && self.ClusterName == n.o.clusterName && self.Raft == n.o.raftAddr {
		n.o.logger.Info("going on with the restore that was begun here", "manifest", r.manifest)
		return self, nil
	}
	n.o.logger.Info("beginning anew, for a restore was begun here from another manifest, or of another node", "manifest", left.Manifest)
	return nil, nil
}

// newRestored returns who the node will be.
func (n *node) newRestored(r *restoration) (*nodeFile, error) {
	self := &nodeFile{Format: nodeFileFormat, NodeID: n.o.id, Incarnation: newIncarnation(), ClusterName: n.o.clusterName,
		ClusterID: r.cluster.String(), Started: true, Raft: n.o.raftAddr}
	if err := self.parse(); err != nil {
		return nil, err
	}
	var err error
	self.CRC32C, err = self.checksum()
	return self, err
}

// markRestore removes what another restore left and writes restore.json in the
// place of that one's: a crash between leaves the old mark.
func (n *node) markRestore(r *restoration) error {
	files, err := os.ReadDir(n.o.dataDir)
	if err != nil {
		return err
	}
	for _, f := range files {
		if name := f.Name(); name != lockName && name != "lost+found" && name != restoreFileName {
			if err := os.RemoveAll(filepath.Join(n.o.dataDir, name)); err != nil {
				return err
			}
		}
	}
	node, err := json.Marshal(n.self.Load())
	if err != nil {
		return err
	}
	b, err := json.MarshalIndent(restoreFile{r.manifest, node}, "", "  ")
	if err != nil {
		return err
	}
	return writeDurably(filepath.Join(n.o.dataDir, restoreFileName), func(w io.Writer) error {
		_, err := w.Write(append(b, '\n'))
		return err
	})
}

// adoptAll takes over all segments and moves D behind them.
func (n *node) adoptAll(r *restoration) error {
	if at := n.store.durable.Load().at; at.size != 0 {
		if at.size != r.size() {
			return fmt.Errorf("%s: %w: the checkpoint is at %d entries, manifest %s has %d", n.o.dataDir, errCorrupt, at.size, r.manifest, r.size())
		}
		return nil
	}
	fetched, err := n.adoptSegments(r)
	if err != nil {
		return err
	}
	alone := raft.Configuration{Servers: []raft.Server{{
		Suffrage: raft.Voter, ID: serverID(n.identity()), Address: raft.ServerAddress(n.o.raftAddr),
	}}}
	// No index of an earlier life can be as large, for none had a log entry in each
	// ms since 1970: a lost node that comes back cannot take this log for its own.
	last := r.segments[len(r.segments)-1].time
	index := uint64(max(n.o.now().UnixMilli(), last)) // the clock may be wrong
	return n.store.install(checkpoint{
		index: index, term: index / 1000, configuration: raft.EncodeConfiguration(alone), configIndex: index,
		size: r.size(), time: last, version: uint64(len(r.segments)), confirmed: uint64(len(r.segments)),
	}, r.segments, fetched, nil)
}

// adoptStreams is how many segments are taken over at a time.
const adoptStreams = 4

// adoptSegments takes over all segments, several at a time, in order.
func (n *node) adoptSegments(r *restoration) ([]fetchedSegment, error) {
	ctx, cancel := context.WithCancelCause(n.ctx)
	defer cancel(nil)
	fetched := make([]fetchedSegment, len(r.segments))
	var mu sync.Mutex // guards next, done
	next, done := 0, uint64(0)
	parallel(min(adoptStreams, len(r.segments)), func(int) {
		for {
			mu.Lock()
			k := next
			next++
			mu.Unlock()
			if k >= len(r.segments) || ctx.Err() != nil {
				return
			}
			g, err := n.adoptSegment(ctx, r, k)
			if err != nil {
				cancel(err)
				return
			}
			fetched[k] = g
			mu.Lock()
			done += g.info.count
			r.told(done)
			mu.Unlock()
		}
	})
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return fetched, nil
}

// adoptTries is how often a segment is tried while the bucket does not answer.
const adoptTries = 6

// adoptSegment takes over one segment, and waits for the bucket if need be: who has
// read for an hour should not begin anew because of a minute.
func (n *node) adoptSegment(ctx context.Context, r *restoration, k int) (fetchedSegment, error) {
	for try := 1; ; try++ {
		g, err := r.adopt(ctx, n.store, k)
		if !errors.Is(err, errArchiveUnavailable) || try == adoptTries || ctx.Err() != nil {
			return g, err
		}
		n.o.logger.Warn("the bucket does not answer, trying again", "segment", r.segments[k].id(), "try", try, "error", err)
		n.pause(time.Duration(try) * (objectRest + 100*time.Millisecond)) // the store asks nobody before
	}
}

// beginLog writes the beginning of the Raft log, unless it is there: the entry that
// tells of the restore. The next start commits it, as the only voter.
func (n *node) beginLog(r *restoration) (*restoredCut, error) {
	at := n.store.durable.Load().at
	last := r.segments[len(r.segments)-1]
	c := &restoredCut{Node: n.o.id, Incarnation: n.self.Load().Incarnation, Time: n.o.now().UTC().Format(time.RFC3339),
		Entries: r.size(), Root: r.root.String(), SignedBy: r.key, Manifest: r.manifest,
		LastSealed: time.UnixMilli(last.time).UTC().Format(time.RFC3339)}
	if end, err := n.log.LastIndex(); err != nil || end > at.index {
		return c, err
	}
	value, err := json.Marshal(c)
	if err != nil {
		panic("restore: " + err.Error())
	}
	tell := request{ops: []operation{{
		kind: opPut, key: []byte(restoredKey), value: value, contentType: "application/json", author: "scribe-ledger restore", ifSeq: noSeq,
	}}}
	if err := n.store.step("write term", func() error { return n.stable.SetUint64(termKey, at.term) }); err != nil {
		return nil, err
	}
	entry := &raft.Log{Index: at.index + 1, Term: at.term, Type: raft.LogCommand,
		Data: appendRequest(appendPackHeader(nil, n.o.now().UnixMilli()), &tell)}
	return c, n.store.step("write log", func() error { return n.log.StoreLogs([]*raft.Log{entry}) })
}
