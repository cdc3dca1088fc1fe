package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"
)

// Repair of a node whose state is wrong or damaged beyond what the scrub mends:
// the state is set aside, never deleted, and the node comes back as a new
// incarnation that fetches everything from the others (raft_join.go).

const (
	setAsidePrefix = "set-aside-"
	repairTimeout  = 5 * time.Second // for asking the other nodes
)

// errAlone says that a node's state may be the only copy of something.
var errAlone = errors.New("the other nodes have no leader without this one, so its state may be the only copy of something")

// repairNode sets the state of a stopped node aside and returns where it is.
// Only a cluster that has a leader without this node has all that was
// acknowledged, and can take the node in again.
func repairNode(ctx context.Context, o nodeOptions) (string, error) {
	if _, err := os.Stat(filepath.Join(o.dataDir, nodeFileName)); err != nil {
		return "", fmt.Errorf("%s: no node to repair: %w", o.dataDir, err)
	}
	n := &node{o: o}
	n.changing.init()
	n.ctx, n.cancel = context.WithTimeout(ctx, repairTimeout)
	defer n.release()
	var err error
	if n.lock, err = lockDir(o.dataDir); err != nil {
		return "", err
	}
	self, err := n.loadIdentity()
	if err != nil {
		return "", err
	}
	n.self.Store(self)
	n.port, err = listenInternal(o.raftListen, portOptions{
		identity: n.identity, secret: o.secret, advertise: o.raftAddr, logger: o.logger, dial: o.dial, listen: o.listen,
	})
	if err != nil {
		return "", err
	}
	if err := n.findOthers(); err != nil {
		return "", err
	}
	return setAside(o.dataDir, o.now())
}

// hasOthers tells whether the cluster had more than one server at a checkpoint.
func hasOthers(at checkpoint) bool {
	return len(at.configuration) > 0 && len(raft.DecodeConfiguration(at.configuration).Servers) > 1
}

// refetch gets a segment file from another node that has it sound, through write.
func (n *node) refetch(info segmentInfo, write func(body func(io.Writer) error) error) error {
	for n.raft.Load() == nil { // the store is open before the node is
		if n.pause(10 * time.Millisecond); n.ctx.Err() != nil {
			return n.ctx.Err()
		}
	}
	err := errors.New("no other node to fetch from")
	for _, s := range n.fetches.sources() {
		werr := write(func(w io.Writer) error {
			_, err := n.pullPiece(n.ctx, string(s.Address), info, 0, info.size, false, func(pulled) bool { return false }, w)
			return err
		})
		if werr == nil {
			n.o.logger.Info("segment fetched again", "segment", info.id(), "from", s.ID)
			return nil
		}
		err = errors.Join(err, fmt.Errorf("server %s: %w", s.ID, werr))
	}
	return err
}

// findOthers returns nil if another node says that it leads this node's cluster.
func (n *node) findOthers() error {
	self := n.self.Load()
	ask := n.places()
	for _, m := range self.Members {
		if m.ID != self.NodeID && !slices.Contains(ask, m.Raft) {
			ask = append(ask, m.Raft)
		}
	}
	missing := errAlone
	for i := 0; i < len(ask); i++ {
		var h hello
		err := n.call(n.ctx, http.MethodGet, ask[i], "/hello", nil, &h)
		switch {
		case err != nil:
			missing = fmt.Errorf("%w; %s: %w", missing, ask[i], err)
		case h.ClusterID != self.ClusterID || h.ID == self.NodeID:
			missing = fmt.Errorf("%w; %s is node %d of cluster %q", missing, ask[i], h.ID, h.ClusterID)
		case h.Leader == "" || h.Leader == n.o.raftAddr:
			missing = fmt.Errorf("%w; node %d at %s knows no other leader", missing, h.ID, ask[i])
		case h.Doubt:
			missing = fmt.Errorf("%w; node %d at %s does not know whether its own is right", missing, h.ID, ask[i])
		case h.Leader == h.Raft:
			return nil
		case !slices.Contains(ask, h.Leader):
			ask = append(ask, h.Leader)
		}
	}
	return missing
}

// setAside moves everything below dir into a new directory there. The marker
// that keeps the node from starting comes first and is moved last: a crash
// between leaves a node that does not start until it is repaired again.
func setAside(dir string, now time.Time) (string, error) {
	if err := refuseDiverged(dir); err == nil {
		if err := markDiverged(dir, "its state is being set aside: "+howToRepair); err != nil {
			return "", err
		}
	} else if !errors.Is(err, errDiverged) {
		return "", err
	}
	aside := filepath.Join(dir, fmt.Sprintf("%s%d", setAsidePrefix, now.Unix()))
	if err := os.Mkdir(aside, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	for _, f := range files {
		if name := f.Name(); name != lockName && name != divergedName && !strings.HasPrefix(name, setAsidePrefix) {
			if err := os.Rename(filepath.Join(dir, name), filepath.Join(aside, name)); err != nil {
				return "", err
			}
		}
	}
	if err := errors.Join(syncDir(aside), syncDir(dir)); err != nil {
		return "", err
	}
	if err := os.Rename(filepath.Join(dir, divergedName), filepath.Join(aside, divergedName)); err != nil {
		return "", err
	}
	return aside, errors.Join(syncDir(aside), syncDir(dir))
}
