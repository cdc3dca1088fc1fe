package main

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// audit --data: the data folder of a node, or any folder of segment files. Of a
// node that does not run, the manifest and the tiles of ledger.db are compared
// as well (its format is in store_ledger.go and store_tree.go); a running node
// holds that file's lock. Segment files never change, so they can be read
// either way.

// folder audits the files of a folder.
func (a *audit) folder(ctx context.Context, o auditOptions) error {
	if err := a.readCheckpoint(o); err != nil {
		return err
	}
	dir, node, err := segmentFolder(o.data)
	if err != nil {
		return err
	}
	indexed, err := indexedEntries(o.data) // before the segments, which come before their index
	if err != nil {
		return err
	}
	if err := a.listFiles(dir); err != nil {
		return err
	}
	a.begin()
	if len(a.sources) == 0 && !node {
		return fmt.Errorf("%w folder %s: %w", errBadArgument, o.data, errNoSegments)
	}
	if node {
		if err := a.readSigned(o.data); err != nil {
			return err
		}
	}
	if err := a.tree.compareHeads(); err != nil { // those of the empty tree
		return err
	}
	var compared []string
	if !node {
		err = a.segments(ctx)
	} else {
		compared, err = a.withLedger(ctx, filepath.Join(o.data, "ledger.db"))
	}
	if err == nil && a.locked && indexed > a.tree.size {
		err = a.maybeCold(a.tree.size, indexed)
	}
	if err == nil {
		err = a.unseen()
	}
	if err != nil {
		return err
	}
	for _, s := range a.signed {
		compared = append(compared, s.compared(a.tree.size))
	}
	if o.checkpoint != "" {
		compared = append(compared, "checkpoint "+o.checkpoint+" agrees")
	}
	a.report(compared...)
	return nil
}

// indexedEntries returns how many entries a node had sealed, as the names of its index
// runs say: who may not read ledger.db learns from them what is in the bucket only.
func indexedEntries(data string) (entries uint64, err error) {
	files, err := os.ReadDir(filepath.Join(data, "index"))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	for _, f := range files {
		var level, first, last uint64
		if n, _ := fmt.Sscanf(f.Name(), "%d-%d-%d.run", &level, &first, &last); n == 3 {
			entries = max(entries, last+1)
		}
	}
	return entries, err
}

// maybeCold is the error of entries that are not in the segment files of a running node.
func (a *audit) maybeCold(from, to uint64) error {
	return fmt.Errorf("entries %d to %d are not here, but maybe in the bucket: audit the node (--url), or stop it, for it holds the lock of ledger.db", from, to-1)
}

// readCheckpoint reads the signed checkpoint that the user has.
func (a *audit) readCheckpoint(o auditOptions) error {
	if o.checkpoint == "" {
		return nil
	}
	key, err := readKey(o.key, sigEd25519)
	if err != nil {
		return err
	}
	text, err := readSmallFile(o.checkpoint)
	if err != nil {
		return err
	}
	n, err := parseNote(text)
	if err != nil {
		return fmt.Errorf("%w: checkpoint %s: %w", errDifference, o.checkpoint, err)
	}
	head, err := openTreeHead(n, key)
	if err != nil {
		return fmt.Errorf("%w: checkpoint %s: %w", errDifference, o.checkpoint, err)
	}
	a.tree.heads = []treeHead{head}
	return nil
}

// segmentFolder returns the folder of the segment files, and whether it is a node's.
func segmentFolder(data string) (dir string, node bool, err error) {
	info, err := os.Stat(data)
	if err != nil {
		return "", false, fmt.Errorf("%w folder: %w", errBadArgument, err)
	}
	if !info.IsDir() {
		return "", false, fmt.Errorf("%w folder: %s is a file", errBadArgument, data)
	}
	sub := filepath.Join(data, "segments")
	if info, err := os.Stat(sub); err == nil && info.IsDir() {
		return sub, true, nil
	}
	return data, false, nil
}

// listFiles makes a source of each segment file of dir, in order. Files under
// other names, as a crash may leave, are no segments.
func (a *audit) listFiles(dir string) error {
	files, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("%w folder: %w", errBadArgument, err)
	}
	for _, f := range files { // ReadDir sorts, and the names begin with the first entry
		if !strings.HasSuffix(f.Name(), segmentSuffix) {
			continue
		}
		path := filepath.Join(dir, f.Name())
		if _, ok := parseSegmentName(f.Name()); !ok {
			return fmt.Errorf("%w: %s: not the name of a segment file", errDifference, path)
		}
		info, err := f.Info()
		if err != nil {
			return err
		}
		a.sources = append(a.sources, auditSource{name: path, size: uint64(info.Size()), open: openFile(path)})
	}
	return nil
}

// openFile returns the open of a source that is a file.
func openFile(path string) func(context.Context) (io.ReaderAt, int64, func(), error) {
	return func(context.Context) (io.ReaderAt, int64, func(), error) {
		f, err := os.Open(path)
		if err != nil {
			return nil, 0, nil, err
		}
		info, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, 0, nil, err
		}
		return f, info.Size(), func() { f.Close() }, nil
	}
}

// signedTree is what a node remembers of the last tree it signed or cosigned.
type signedTree struct {
	name string // of the file
	size uint64
	root hash
}

// compared says whether the tree could be compared with one of entries.
func (s signedTree) compared(entries uint64) string {
	if s.size > entries {
		return fmt.Sprintf("not compared: %s is a tree of %d entries, later ones than the segments have", s.name, s.size)
	}
	return fmt.Sprintf("%-10s %d entries, root %s: agrees", s.name, s.size, s.root)
}

// readSigned makes the trees that the node signed last roots to compare with.
func (a *audit) readSigned(data string) error {
	for _, name := range [...]string{"signed", "cosigned"} {
		path := filepath.Join(data, name)
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		size, root, err := parseSignedFile(b)
		if err != nil {
			return fmt.Errorf("%w: %s: %w", errDifference, path, err)
		}
		a.signed = append(a.signed, signedTree{name, size, root})
		a.tree.heads = append(a.tree.heads, treeHead{size: size, root: root})
	}
	slices.SortStableFunc(a.tree.heads, func(x, y treeHead) int { return cmp.Compare(x.size, y.size) })
	return nil
}

// parseSignedFile returns the newer of the two records of a file signed or
// cosigned (raft_signed.go): slots of 4,096 bytes that begin with the magic,
// number, size, root, key, index and a CRC32C of these 96 bytes.
func parseSignedFile(b []byte) (size uint64, root hash, err error) {
	const slot, record = 4096, 100
	if len(b) != 2*slot {
		return 0, root, fmt.Errorf("%d bytes, want %d", len(b), 2*slot)
	}
	newest := uint64(0)
	for at := 0; at < len(b); at += slot {
		r := b[at:][:record]
		if string(r[:8]) != "SCRSIGN1" || crc32.Checksum(r[:96], castagnoli) != binary.BigEndian.Uint32(r[96:]) {
			return 0, root, fmt.Errorf("offset %d: damaged record", at)
		}
		if number := binary.BigEndian.Uint64(r[8:]); number >= newest {
			newest, size, root = number, binary.BigEndian.Uint64(r[16:]), hash(r[24:56])
		}
	}
	return size, root, nil
}

// withLedger audits all sources, and compares ledger.db with them if it can be
// read. It returns lines for the report.
func (a *audit) withLedger(ctx context.Context, path string) ([]string, error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return []string{"not compared: there is no ledger.db"}, a.segments(ctx)
	}
	ledger, err := openLedgerFile(path, a.soundPages)
	if errors.Is(err, bolterrors.ErrTimeout) {
		a.locked = true
		return []string{"not compared: manifest and tiles, for a running node holds the lock of ledger.db"}, a.segments(ctx)
	}
	if err != nil {
		return nil, err
	}
	defer ledger.db.Close()
	infos, size, err := ledger.manifest()
	if err != nil {
		return nil, err
	}
	if err := a.useManifest(infos, ledger); err != nil {
		return nil, err
	}
	a.tree.tiles = newTileCheck(size, ledger.tile)
	err = a.segments(ctx)
	count, differ := a.tree.tiles.wait()
	if err == nil {
		err = differ
	}
	return []string{fmt.Sprintf("manifest   %d segments agree, and %d tiles of %d entries", len(infos), count, size)}, err
}

// useManifest gives each source what the manifest says of it.
func (a *audit) useManifest(infos []segmentInfo, ledger *ledgerAudit) error {
	var next uint64
	at := make(map[uint64]*auditSource)
	for i := range a.sources {
		at[a.firstOf(i)] = &a.sources[i]
	}
	for i := range infos {
		if infos[i].first != next {
			return fmt.Errorf("%w: manifest: segment %s begins at entry %d, want %d", errDifference, infos[i].id(), infos[i].first, next)
		}
		next = infos[i].end()
		source := at[infos[i].first]
		if source == nil && ledger.isCold(infos[i].first) {
			return fmt.Errorf("%s%s is not here but in the bucket, as ledger.db says: audit the bucket or the node (--url), or bring it back (POST /cluster/prefetch)", infos[i].id(), segmentSuffix)
		}
		if source == nil {
			return fmt.Errorf("%w: %s%s: the file of entries %d to %d is missing", errDifference, infos[i].id(), segmentSuffix, infos[i].first, next-1)
		}
		source.info = &infos[i]
	}
	return nil
}

// ledgerAudit reads ledger.db.
type ledgerAudit struct {
	path string
	db   *bbolt.DB
}

// openLedgerFile opens ledger.db unless a node has it open. Once no node can
// write to it, sound looks at its pages.
func openLedgerFile(path string, sound func(path string) error) (l *ledgerAudit, err error) {
	l = &ledgerAudit{path: path}
	err = l.guard(func() error {
		if l.db, err = bbolt.Open(path, 0, &bbolt.Options{ReadOnly: true, Timeout: 50 * time.Millisecond}); err != nil {
			return err
		}
		if err = sound(path); err != nil {
			l.db.Close()
		}
		return err
	})
	return l, err
}

// view runs f in a transaction.
func (l *ledgerAudit) view(f func(*bbolt.Tx) error) error {
	return l.guard(func() error { return l.db.View(f) })
}

// guard runs f. bbolt checks no pages: on a damaged one it reads beyond the
// file or panics, which is then a difference.
func (l *ledgerAudit) guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %s: damaged page: %v", errDifference, l.path, p)
		}
	}()
	if err := f(); err != nil {
		return fmt.Errorf("%w: %s: %w", errDifference, l.path, err)
	}
	return nil
}

// manifest returns the list of segments, and of how many entries the tiles are there.
func (l *ledgerAudit) manifest() (infos []segmentInfo, tiles uint64, err error) {
	err = l.view(func(tx *bbolt.Tx) error {
		if meta := tx.Bucket([]byte("meta")); meta != nil && meta.Get([]byte("tree")) != nil {
			b, err := checkedValue([]byte("tree"), meta.Get([]byte("tree")))
			if err != nil || len(b) != 8 {
				return errors.Join(err, fmt.Errorf("tree has %d bytes", len(b)))
			}
			tiles = binary.BigEndian.Uint64(b)
		}
		segments := tx.Bucket([]byte("segments"))
		if segments == nil {
			return nil
		}
		return segments.ForEach(func(k, v []byte) error {
			b, err := checkedValue(k, v)
			if err != nil {
				return err
			}
			info, rest, err := parseSegmentInfo(b)
			if err != nil || len(rest) > 0 || binary.BigEndian.Uint64(k) != info.first {
				return errors.Join(err, fmt.Errorf("segment %x is damaged", k))
			}
			infos = append(infos, info)
			return nil
		})
	})
	return infos, tiles, err
}

// isCold tells whether ledger.db says of a segment that only the bucket has it.
func (l *ledgerAudit) isCold(first uint64) (cold bool) {
	err := l.view(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte("cold"))
		cold = b != nil && b.Get(binary.BigEndian.AppendUint64(nil, first)) != nil
		return nil
	})
	return err == nil && cold
}

// checkedValue returns a value of ledger.db without the CRC32C that it ends in.
func checkedValue(key, v []byte) ([]byte, error) {
	n := len(v) - 4
	if n < 0 || crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, v[:n]) != binary.BigEndian.Uint32(v[n:]) {
		return nil, fmt.Errorf("value of %q has a wrong CRC", key)
	}
	return slices.Clone(v[:n]), nil
}

// tile reads a tile: bucket tiles has them in blocks of 16, each of up to 8,192
// bytes and a CRC32C.
func (l *ledgerAudit) tile(id tileID, buf []byte) (hashes []byte, err error) {
	const perBlock, stored = 16, tileSize + 4
	err = l.view(func(tx *bbolt.Tx) error {
		key := binary.BigEndian.AppendUint64([]byte{byte(id.level)}, id.index/perBlock)
		var v []byte
		if b := tx.Bucket([]byte("tiles")); b != nil {
			v = b.Get(key)
		}
		at := int(id.index%perBlock) * stored
		if len(v) < at+len(hash{})*id.width {
			return fmt.Errorf("tile %s is missing", id.path())
		}
		hashes = append(buf[:0], v[at:][:len(hash{})*id.width]...)
		return nil
	})
	return hashes, err
}
