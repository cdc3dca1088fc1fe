package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"time"
)

// audit --url: the ledger of a server. Its checkpoint must be signed by the
// pinned key and extend what was seen before; each segment file is fetched into
// a temporary file and audited like a local one; the entries behind them come
// from /ledger/entries with their values; each tile up to the checkpoint must
// be the one that the entries give.

const (
	maxManifest = 1 << 30   // bytes of the reply; a segment takes some 400
	maxLine     = 512 << 20 // bytes of one entry with its value, as JSON
)

// manifestJSON is what /ledger/manifest answers.
type manifestJSON struct {
	LedgerSize uint64 `json:"ledger_size"`
	Segments   []struct {
		ID        string    `json:"id"`
		FirstSeq  uint64    `json:"first_seq"`
		Count     uint64    `json:"count"`
		Size      uint64    `json:"size"`
		Timestamp time.Time `json:"timestamp"`
		Root      string    `json:"merkle_root"`
		SHA256    string    `json:"sha256"`
	} `json:"segments"`
}

// server audits the ledger of a server.
func (a *audit) server(ctx context.Context, o auditOptions) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	t, err := a.newVisitor(o.url, o.key)
	if err != nil {
		return err
	}
	trusted, err := t.checkpoint(ctx)
	if err != nil {
		return err
	}
	var m manifestJSON
	if err := t.client.getJSON(ctx, "/ledger/manifest", maxManifest, &m); err != nil {
		return err
	}
	if err := a.listRemote(t.client, &m); err != nil {
		return fmt.Errorf("%w: manifest: %w", errDifference, err)
	}
	a.begin()
	a.chains.find = func(seq uint64) (header, string, error) { return a.findRemote(ctx, t.client, seq) }
	a.tree.heads = []treeHead{trusted.head}
	a.tree.tiles = newTileCheck(trusted.head.size, t.client.readTile(ctx))
	err = a.tree.compareHeads() // that of the empty tree
	if err == nil {
		err = a.segments(ctx)
	}
	pending := a.entries
	if err == nil {
		err = a.pending(ctx, t.client, trusted.head.size)
	}
	pending = a.entries - pending
	if err != nil {
		cancel() // tiles that are still asked for
	}
	tiles, differ := a.tree.tiles.wait()
	if err == nil {
		err = differ
	}
	if err == nil {
		err = a.unseen()
	}
	if err != nil {
		return err
	}
	a.report(fmt.Sprintf("pending    %d entries that are in no segment yet", pending),
		fmt.Sprintf("checkpoint %d entries, root %s: agrees, and %d tiles", trusted.head.size, trusted.head.root, tiles),
		"signed by  "+trusted.key.String())
	return nil
}

// listRemote makes a source of each segment of the manifest.
func (a *audit) listRemote(c *ledgerClient, m *manifestJSON) error {
	var next uint64
	for _, s := range m.Segments {
		info := &segmentInfo{first: s.FirstSeq, count: s.Count, size: s.Size, time: s.Timestamp.UnixMilli()}
		var errs [2]error
		info.root, errs[0] = parseHash(s.Root)
		info.sum, errs[1] = parseHash(s.SHA256)
		if err := errors.Join(errs[:]...); err != nil {
			return fmt.Errorf("segment %.100q: %w", s.ID, err)
		}
		if s.ID != info.id() || info.first != next || info.count == 0 || info.end() < next || info.size == 0 {
			return fmt.Errorf("segment %.100q has %d entries from %d in %d bytes, want them from %d", s.ID, s.Count, s.FirstSeq, s.Size, next)
		}
		next = info.end()
		a.sources = append(a.sources, auditSource{name: info.id() + segmentSuffix, size: info.size, info: info, open: c.openSegment(info)})
	}
	return nil
}

// openSegment returns the open of a source that is a segment of the server: it
// fetches it whole, for its values come before what says where they are.
func (c *ledgerClient) openSegment(info *segmentInfo) func(context.Context) (io.ReaderAt, int64, func(), error) {
	return func(ctx context.Context) (io.ReaderAt, int64, func(), error) {
		f, err := os.CreateTemp("", "scribe-ledger-audit-*"+segmentSuffix)
		if err != nil {
			return nil, 0, nil, err
		}
		os.Remove(f.Name()) // the space is free again when the file is closed
		if err := c.copySegment(ctx, *info, f); err != nil {
			f.Close()
			return nil, 0, nil, err
		}
		return f, int64(info.size), func() { f.Close() }, nil
	}
}

// pending audits the entries behind the segments, up to size.
func (a *audit) pending(ctx context.Context, c *ledgerClient, size uint64) error {
	if a.entries >= size {
		return nil
	}
	path := fmt.Sprintf("/ledger/entries?from=%d&limit=%d&values=true", a.entries, size-a.entries)
	body, err := c.open(ctx, path)
	if err != nil {
		return err
	}
	defer body.Close()
	in := bufio.NewReaderSize(body, 256<<10)
	var line []byte
	for a.entries < size {
		if line, err = readEntryLine(in, line); err != nil {
			return fmt.Errorf("%w: GET %s: before entry %d: %w", errReply, path, a.entries, err)
		}
		if err := a.addLine(line); err != nil {
			return err
		}
		if a.progress != nil {
			a.progress(int64(a.entries), float64(a.entries)/float64(size))
		}
	}
	return nil
}

// readEntryLine reads the next line into buf.
func readEntryLine(in *bufio.Reader, buf []byte) ([]byte, error) {
	buf = buf[:0]
	for {
		part, err := in.ReadSlice('\n')
		if len(buf)+len(part) > maxLine {
			return buf, fmt.Errorf("line of more than %d bytes", maxLine)
		}
		buf = append(buf, part...)
		if err == nil || errors.Is(err, io.EOF) && len(buf) > 0 {
			return buf, nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return buf, err
		}
	}
}

// streamedEntry is a line of /ledger/entries.
type streamedEntry struct {
	entryJSON
	Value       *string         `json:"value"`
	ValueBase64 []byte          `json:"value_base64"`
	Error       json.RawMessage `json:"error"`
}

// addLine audits one line of /ledger/entries and adds its entry.
func (a *audit) addLine(line []byte) error {
	var e streamedEntry
	if err := json.Unmarshal(line, &e); err != nil {
		return fmt.Errorf("%w: entry %d: %w", errReply, a.entries, err)
	}
	if e.Error != nil {
		return fmt.Errorf("%w: entry %d: %.300q", errReply, a.entries, e.Error)
	}
	h, err := e.header()
	if err != nil {
		return err
	}
	leaf := leafHash(appendHeader(nil, &h))
	value := e.ValueBase64
	if e.Value != nil {
		value = []byte(*e.Value)
	}
	switch sum := hash(sha256.Sum256(value)); {
	case h.seq != a.entries:
		err = fmt.Errorf("the server sent entry %d", h.seq)
	case h.time < a.time:
		err = fmt.Errorf("time goes back from %d to %d", a.time, h.time)
	case e.LeafHash != leaf.String():
		err = fmt.Errorf("leaf_hash is %.64q, the entry gives %s", e.LeafHash, leaf)
	case uint64(len(value)) != h.size || sum != h.sum:
		err = fmt.Errorf("value of %d bytes has SHA-256 %s, its entry says %d and %s", len(value), sum, h.size, h.sum)
	}
	if err != nil {
		return fmt.Errorf("%w: pending: entry %d: %w", errDifference, a.entries, err)
	}
	if err := a.chains.add(&link{a.chains.tag(h.key), h.seq, h.version, h.prev}); err != nil {
		return err
	}
	a.time = h.time
	a.entries++
	return a.tree.append(leaf)
}

// findRemote returns the header of an entry of the server and where it is.
func (a *audit) findRemote(ctx context.Context, c *ledgerClient, seq uint64) (header, string, error) {
	if n := len(a.sources); n > 0 && seq < a.sources[n-1].info.end() {
		return a.findEntry(seq)
	}
	text, err := c.get(ctx, "/ledger/entries?limit=1&from="+strconv.FormatUint(seq, 10), maxReply)
	if err != nil {
		return header{}, "", err
	}
	var e entryJSON
	if err := json.Unmarshal(bytes.TrimSpace(text), &e); err != nil {
		return header{}, "", fmt.Errorf("%w: entry %d: %w", errReply, seq, err)
	}
	h, err := e.header()
	if err == nil && h.seq != seq {
		err = fmt.Errorf("%w: asked for entry %d, got %d", errReply, seq, h.seq)
	}
	h.key = slices.Clone(h.key)
	return h, "pending", err
}
