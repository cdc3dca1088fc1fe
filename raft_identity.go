package main

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/hashicorp/raft"
)

// nodeFile is node.json: who this node is. For example
//
//	{
//	  "format": 1,
//	  "node_id": 1,
//	  "incarnation": "8f3a5c0b12d4e677",
//	  "cluster_name": "scribe",
//	  "cluster_id": "5b0c6e0f8a4d4a53b6f1d9b4c2a7e310",
//	  "members": [
//	    {"id": 1, "incarnation": "8f3a5c0b12d4e677", "http": "http://127.0.0.1:8001", "raft": "127.0.0.1:9001"}
//	  ],
//	  "started": true,
//	  "crc32c": "1c291ca3"
//	}
//
// crc32c is that of the same JSON, indented by two spaces and without this
// field: a flipped bit must not make this node one of another cluster, or a
// voter of a learner. A file without it, of an older program, is taken as it is.
//
// The incarnation is drawn when the directory is new. It is part of the node's
// Raft id: a node whose disk was replaced is another Raft server and cannot
// vote as its former self. members are those who formed the cluster together;
// they have the same list. A node that joined later has none.
type nodeFile struct {
	Format      int      `json:"format"`
	NodeID      uint64   `json:"node_id"`
	Incarnation string   `json:"incarnation"`
	ClusterName string   `json:"cluster_name"`
	ClusterID   string   `json:"cluster_id,omitempty"`
	Members     []member `json:"members,omitempty"`
	Started     bool     `json:"started,omitempty"` // Raft has state on this disk
	Pledge      *genesis `json:"pledge,omitempty"`  // the only cluster this node may form (raft_join.go)
	Raft        string   `json:"raft,omitempty"`    // its internal address when Raft last started (raft_move.go)
	Learner     bool     `json:"learner,omitempty"` // it was told not to vote
	Removed     bool     `json:"removed,omitempty"` // it was taken out of the cluster
	CRC32C      string   `json:"crc32c,omitempty"`

	cluster     clusterID
	incarnation uint64
}

// member is one node as the cluster's founders know it.
type member struct {
	ID          uint64 `json:"id"`
	Incarnation string `json:"incarnation"`
	HTTP        string `json:"http"`
	Raft        string `json:"raft"`
	Region      string `json:"region,omitempty"`
}

const (
	nodeFileName   = "node.json"
	nodeFileFormat = 1
)

// formed tells whether this node belongs to a cluster.
func (f *nodeFile) formed() bool { return f.ClusterID != "" }

// loadIdentity reads node.json or makes it, and refuses a directory that is not
// this node's.
func (n *node) loadIdentity() (*nodeFile, error) {
	if err := refuseHalfRestored(n.o.dataDir); err != nil {
		return nil, err
	}
	path := filepath.Join(n.o.dataDir, nodeFileName)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return n.newIdentity(path)
	}
	if err != nil {
		return nil, err
	}
	f, err := decodeNodeFile(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	switch {
	case f.NodeID != n.o.id:
		return nil, fmt.Errorf("%s: the directory belongs to node %d, this is node %d", path, f.NodeID, n.o.id)
	case f.ClusterName != n.o.clusterName:
		return nil, fmt.Errorf("%s: the directory belongs to cluster %q, this node is configured for %q", path, f.ClusterName, n.o.clusterName)
	}
	return f, nil
}

// decodeNodeFile reads the bytes of a node.json. Errors wrap errCorrupt, or
// errFormat: of a newer format nothing else is looked at.
func decodeNodeFile(b []byte) (*nodeFile, error) {
	f := &nodeFile{}
	if err := json.Unmarshal(b, f); err != nil {
		return nil, fmt.Errorf("%w: %w", errCorrupt, err)
	}
	if err := f.parse(); err != nil {
		return nil, err
	}
	sum, err := f.checksum()
	if err == nil && f.CRC32C != "" && f.CRC32C != sum {
		err = fmt.Errorf("%w: crc32c is %q, that of the content %q", errCorrupt, f.CRC32C, sum)
	}
	return f, err
}

// newIdentity makes node.json in a directory that must be new.
func (n *node) newIdentity(path string) (*nodeFile, error) {
	for _, name := range []string{ledgerName, raftDir} {
		if _, err := os.Lstat(filepath.Join(n.o.dataDir, name)); !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s is missing but %s is there: this is not a new directory", path, name)
		}
	}
	f := &nodeFile{Format: nodeFileFormat, NodeID: n.o.id, Incarnation: newIncarnation(), ClusterName: n.o.clusterName}
	if err := f.parse(); err != nil {
		return nil, err
	}
	return f, f.save(n.o.dataDir)
}

// newIncarnation draws 16 hex digits.
func newIncarnation() string {
	var b [8]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// parse checks f and fills the fields that are derived.
func (f *nodeFile) parse() error {
	if f.Format != nodeFileFormat {
		return fmt.Errorf("%w: format is %d, this program reads %d", errFormat, f.Format, nodeFileFormat)
	}
	var err error
	if f.incarnation, err = parseIncarnation(f.Incarnation); err != nil {
		return err
	}
	if f.ClusterID == "" {
		return nil
	}
	f.cluster, err = parseClusterID(f.ClusterID)
	return err
}

// parseIncarnation reads 16 hex digits.
func parseIncarnation(s string) (uint64, error) {
	v, err := strconv.ParseUint(s, 16, 64)
	if err != nil || len(s) != 16 {
		return 0, fmt.Errorf("%w: incarnation %q is not 16 hex digits", errCorrupt, s)
	}
	return v, nil
}

// save writes node.json durably, whole or not at all.
func (f *nodeFile) save(dir string) error {
	var err error
	if f.CRC32C, err = f.checksum(); err != nil {
		return err
	}
	b, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	return writeDurably(filepath.Join(dir, nodeFileName), func(w io.Writer) error {
		_, err := w.Write(append(b, '\n'))
		return err
	})
}

// checksum returns the CRC32C of what f says, as 8 hex digits.
func (f *nodeFile) checksum() (string, error) {
	bare := *f
	bare.CRC32C = ""
	b, err := json.MarshalIndent(&bare, "", "  ")
	return fmt.Sprintf("%08x", crc32.Checksum(b, castagnoli)), err
}

// become saves a changed identity and then uses it.
func (n *node) become(change func(*nodeFile)) error {
	next := *n.self.Load()
	change(&next)
	if err := next.parse(); err != nil {
		return err
	}
	if err := next.save(n.o.dataDir); err != nil {
		return err
	}
	n.self.Store(&next)
	return nil
}

// identity is what this node says of itself in every preamble.
func (n *node) identity() identity {
	f := n.self.Load()
	return identity{cluster: f.cluster, name: f.ClusterName, node: f.NodeID, incarnation: f.incarnation}
}

// announced is what discovery tells others of this node.
func (n *node) announced() (incarnation uint64, cluster [16]byte) {
	self := n.identity()
	return self.incarnation, self.cluster
}

// server returns the Raft server id of a founding member.
func (m *member) server(c clusterID) (raft.Server, error) {
	inc, err := parseIncarnation(m.Incarnation)
	if err != nil {
		return raft.Server{}, err
	}
	return raft.Server{
		Suffrage: raft.Voter,
		ID:       serverID(identity{cluster: c, node: m.ID, incarnation: inc}),
		Address:  raft.ServerAddress(m.Raft),
	}, nil
}

// newClusterID draws the id of a new cluster.
func newClusterID() clusterID {
	var c clusterID
	rand.Read(c[:])
	binary.BigEndian.PutUint16(c[6:], binary.BigEndian.Uint16(c[6:])&0x0fff|0x4000) // a version 4 UUID
	c[8] = c[8]&0x3f | 0x80
	return c
}
