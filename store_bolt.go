package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
)

// bbolt checks nothing but its meta pages and reads through a map of the file:
// on a damaged page it ends the process with a signal, runs in a circle, or
// later writes over a page in use. So checkBolt looks at every page before
// bbolt does. What passes is a sound tree; its values have checksums of their
// own (store_ledger.go). The layout, from bbolt's internal/common, integers in
// the machine's byte order:
//
//	page       uint64 id, uint16 flags, uint16 count, uint32 overflow: further
//	           pages that belong to it; then count elements and their data
//	meta       page 0 and 1: uint32 magic, version, page size, flags; uint64
//	           root page, sequence, free list page, pages in use, transaction,
//	           FNV-1a of the 56 bytes before; the higher transaction counts
//	branch     flags 1, elements: uint32 pos, key size; uint64 child page
//	leaf       flags 2, elements: uint32 flags, pos, key size, value size
//	free list  flags 16, elements: uint64 page; count 65535 = the first says
//
// pos counts from the start of its element. A value whose element has flags 1
// is a bucket: uint64 root page, sequence; root 0 = a leaf page follows inline.

const (
	boltPageHeader = 16
	boltElement    = 16
	boltMetaSize   = 64
	boltMagic      = 0xed0cdaed
	boltVersion    = 2
	boltBranch     = 1
	boltLeaf       = 2
	boltFree       = 16
	boltBucket     = 1 // of an element
	boltNoFreelist = ^uint64(0)
)

// boltPages reads the pages of a bbolt file.
type boltPages struct {
	src  io.ReaderAt
	meta boltMeta
	seen []uint64 // a bit for each page that belongs to something
}

// boltPage is a page with its overflow, or the inline page of a bucket. Only
// the first page is in memory: of the values behind it, which may be most of
// the file, nothing is read but what leads further.
type boltPage struct {
	src  io.ReaderAt
	at   int64  // in src
	size uint64 // with overflow
	head []byte
}

// bytes returns size bytes of the page from offset at on.
func (p *boltPage) bytes(at, size uint64) ([]byte, error) {
	if at+size <= uint64(len(p.head)) {
		return p.head[at : at+size], nil
	}
	if at+size > p.size {
		return nil, fmt.Errorf("%d bytes at %d of %d", size, at, p.size)
	}
	b := make([]byte, size)
	_, err := p.src.ReadAt(b, p.at+int64(at))
	return b, err
}

// boltMeta is what matters of a meta page.
type boltMeta struct {
	pageSize uint64
	root     uint64 // page of the root bucket
	freelist uint64 // page of the free list, or boltNoFreelist
	pages    uint64 // in use; the file must have them all
	tx       uint64 // transaction that wrote it
}

// checkBolt returns an error that wraps errCorrupt if the bbolt file at path is
// damaged. No file, or an empty one as of a crash when it was made, is sound.
func checkBolt(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || st.Size() == 0 {
		return err
	}
	b := &boltPages{src: f}
	err = b.readMeta(st.Size())
	if err == nil {
		err = b.checkPage(b.meta.root, &boltOrder{})
	}
	if err == nil && b.meta.freelist != boltNoFreelist {
		err = b.checkFreelist()
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %w", path, errCorrupt, err)
	}
	return nil
}

// readMeta takes the newer meta page. Both must be sound: each lies within one
// sector, which no crash tears, and the older one leads to an older state.
func (b *boltPages) readMeta(size int64) error {
	first, err := parseBoltMeta(b.src, 0, size)
	if err != nil {
		return fmt.Errorf("meta page 0: %w", err)
	}
	second, err := parseBoltMeta(b.src, int64(first.pageSize), size)
	if err != nil {
		return fmt.Errorf("meta page 1: %w", err)
	}
	b.meta = first
	if second.tx > first.tx {
		b.meta = second
	}
	b.seen = make([]uint64, b.meta.pages/64+1)
	return nil
}

// parseBoltMeta reads the meta page at offset at of a bbolt file of size bytes.
func parseBoltMeta(src io.ReaderAt, at, size int64) (boltMeta, error) {
	var m [boltMetaSize]byte
	if _, err := src.ReadAt(m[:], at+boltPageHeader); err != nil {
		return boltMeta{}, fmt.Errorf("file has only %d bytes: %w", size, err)
	}
	u32, u64 := binary.NativeEndian.Uint32, binary.NativeEndian.Uint64
	if u32(m[:]) != boltMagic || u32(m[4:]) != boltVersion {
		return boltMeta{}, fmt.Errorf("magic and version are %x, want %08x and %d", m[:8], uint32(boltMagic), boltVersion)
	}
	h := fnv.New64a()
	h.Write(m[:56])
	if got, want := h.Sum64(), u64(m[56:]); got != want {
		return boltMeta{}, fmt.Errorf("checksum is %016x, says %016x", got, want)
	}
	meta := boltMeta{uint64(u32(m[8:])), u64(m[16:]), u64(m[32:]), u64(m[40:]), u64(m[48:])}
	switch {
	case meta.pageSize < 1024 || meta.root < 2 || meta.root >= meta.pages:
		return meta, fmt.Errorf("root page is %d of %d, of %d bytes", meta.root, meta.pages, meta.pageSize)
	case meta.pages > uint64(size)/meta.pageSize:
		return meta, fmt.Errorf("file has %d bytes, want %d pages of %d", size, meta.pages, meta.pageSize)
	}
	return meta, nil
}

// use notes that page id belongs to something and tells whether it is the first.
func (b *boltPages) use(id uint64) bool {
	word, bit := &b.seen[id/64], uint64(1)<<(id%64)
	first := *word&bit == 0
	*word |= bit
	return first
}

// page returns a page with its overflow; nothing else may use the same pages.
func (b *boltPages) page(id uint64) (*boltPage, error) {
	if id < 2 || id >= b.meta.pages {
		return nil, fmt.Errorf("page %d is none of %d", id, b.meta.pages)
	}
	p := &boltPage{src: b.src, at: int64(id * b.meta.pageSize), head: make([]byte, b.meta.pageSize)}
	if _, err := b.src.ReadAt(p.head, p.at); err != nil {
		return nil, fmt.Errorf("page %d: %w", id, err)
	}
	own, n := binary.NativeEndian.Uint64(p.head), uint64(binary.NativeEndian.Uint32(p.head[12:]))+1
	if own != id || n > b.meta.pages-id {
		return nil, fmt.Errorf("page %d says it is page %d to %d of %d", id, own, own+n-1, b.meta.pages)
	}
	for i := id; i < id+n; i++ {
		if !b.use(i) {
			return nil, fmt.Errorf("page %d has two uses", i)
		}
	}
	p.size = n * b.meta.pageSize
	return p, nil
}

// boltOrder follows the keys of a bucket, which ascend.
type boltOrder struct {
	last   []byte
	branch bool // last is from a branch: the first key below may equal it
}

// next takes the next key.
func (o *boltOrder) next(key []byte, branch bool) bool {
	c := bytes.Compare(o.last, key)
	ok := o.last == nil || c < 0 || c == 0 && o.branch
	o.last, o.branch = key, branch
	return ok
}

// checkPage checks a page of a tree and all below it.
func (b *boltPages) checkPage(id uint64, order *boltOrder) error {
	p, err := b.page(id)
	if err != nil {
		return err
	}
	if err := b.checkElements(p, order); err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

// checkElements checks the elements of a branch or leaf page and what they lead to.
func (b *boltPages) checkElements(p *boltPage, order *boltOrder) error {
	if p.size < boltPageHeader {
		return fmt.Errorf("inline page has %d bytes", p.size)
	}
	flags, count := binary.NativeEndian.Uint16(p.head[8:]), uint64(binary.NativeEndian.Uint16(p.head[10:]))
	if flags != boltLeaf && (flags != boltBranch || count == 0) || boltPageHeader+count*boltElement > p.size {
		return fmt.Errorf("flags %d with %d elements", flags, count)
	}
	for i := range count {
		if err := b.checkElement(p, boltPageHeader+i*boltElement, flags == boltBranch, order); err != nil {
			return fmt.Errorf("element %d: %w", i, err)
		}
	}
	return nil
}

// checkElement checks the element at offset start of a page.
func (b *boltPages) checkElement(p *boltPage, start uint64, branch bool, order *boltOrder) error {
	u32, u64 := binary.NativeEndian.Uint32, binary.NativeEndian.Uint64
	e, err := p.bytes(start, boltElement)
	if err != nil {
		return err
	}
	flags, at, size, value := uint32(0), uint64(u32(e)), uint64(u32(e[4:])), uint64(0)
	if !branch {
		flags, at, size, value = u32(e), uint64(u32(e[4:])), uint64(u32(e[8:])), uint64(u32(e[12:]))
	}
	if flags > 1 || at < boltElement || start+at+size+value > p.size {
		return fmt.Errorf("flags %d, key and value of %d and %d bytes at %d", flags, size, value, at)
	}
	key, err := p.bytes(start+at, size)
	if err != nil {
		return err
	}
	switch {
	case !order.next(key, branch):
		return errors.New("key is out of order")
	case branch:
		return b.checkPage(u64(e[8:]), order)
	case flags == 0:
		return nil
	}
	v, err := p.bytes(start+at+size, value)
	if err != nil {
		return err
	}
	return b.checkBucket(v)
}

// checkBucket checks the bucket whose value is v.
func (b *boltPages) checkBucket(v []byte) error {
	switch {
	case len(v) < 16:
		return fmt.Errorf("bucket of %d bytes", len(v))
	case binary.NativeEndian.Uint64(v) == 0:
		return b.checkElements(&boltPage{size: uint64(len(v) - 16), head: v[16:]}, &boltOrder{})
	default:
		return b.checkPage(binary.NativeEndian.Uint64(v), &boltOrder{})
	}
}

// checkFreelist checks that no page in use is called free.
func (b *boltPages) checkFreelist() error {
	p, err := b.page(b.meta.freelist)
	if err != nil {
		return err
	}
	count, flags := uint64(binary.NativeEndian.Uint16(p.head[10:])), binary.NativeEndian.Uint16(p.head[8:])
	ids, err := p.bytes(boltPageHeader, p.size-boltPageHeader)
	if err != nil {
		return err
	}
	if count == 0xffff {
		count, ids = binary.NativeEndian.Uint64(ids), ids[8:]
	}
	if flags != boltFree || count > uint64(len(ids)/8) {
		return fmt.Errorf("free list in a page with flags %d has %d elements", flags, count)
	}
	for i := range count {
		id := binary.NativeEndian.Uint64(ids[8*i:])
		if id < 2 || id >= b.meta.pages || !b.use(id) {
			return fmt.Errorf("page %d is called free and is not", id)
		}
	}
	return nil
}
