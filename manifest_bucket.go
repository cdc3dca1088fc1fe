package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// What lies where in a bucket, or in a folder that is as good: below
// <prefix>/<cluster id, 32 hex digits>/
//
//	segments/<packedName>   packed segments (segment_gzip.go); the manifest in Raft
//	                        has these names, without what is in front: the bucket
//	                        may be copied, and the copy found under another prefix
//	manifests/<entries, 20 digits>-<SHA-256 of the object>
//	                        bucket manifests
//	live                    JSON {"cluster_id","node_id","http","time"}: who led the
//	                        cluster at that time, Unix ms; rewritten while it leads
//
// Nothing but live is ever replaced.
//
// A bucket manifest is all that is needed to rebuild the ledger up to an entry,
// beside the segments that it names. It begins with a checkpoint (merkle_head.go),
// signed with the ledger key as any other is, with five lines more; then come an
// empty line and the list, a line each, which the last of the five has the hash of:
//
//	scribe/5b0c6e0f8a4d4a53b6f1d9b4c2a7e310
//	1042
//	XcnaeacGWamtVZy3Ad7ZoqudgjqtL0lgz+Nw7/RgQyg=
//	scribe-ledger bucket manifest v1
//	cluster 5b0c6e0f8a4d4a53b6f1d9b4c2a7e310 scribe
//	time 1763859785123
//	key scribe/5b0c6e0f8a4d4a53b6f1d9b4c2a7e310+c3a1ab0d+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop
//	list 2b4c5f…
//
//	— scribe/5b0c6e0f8a4d4a53b6f1d9b4c2a7e310 w6GrDU…
//
//	former c2NyaWJl…
//	segment 0 1042 5000 1763859700000 9fd1… 03ac… 00000000000000000000-77e0….seg.gz
//
// with the cluster's name, the time in Unix ms, the key in force, SHA-256 of the
// list in hex; for each former key the note that hands over from it (fsm_key.go) in
// base64, oldest first; and of each segment first, count, size, time, root, SHA-256 of
// the file and name of the object, or "-" if the signer did not know it, as of a
// ledger without a bucket. The segments have no gap from entry 0 on, and the
// checkpoint is over just these entries. Numbers are decimal, hashes hex.

const (
	segmentsFolder  = "segments/"
	manifestsFolder = "manifests/"
	liveName        = "live"

	unnamedObject = "-"

	bucketManifestTitle = "scribe-ledger bucket manifest v1"
)

// errBucketManifest is wrapped by every error about bytes that are no bucket manifest.
var errBucketManifest = errors.New("bucket manifest is damaged")

// bucketFolder returns how the keys of a cluster begin; prefix is "" or has a slash
// at its end.
func bucketFolder(prefix string, cluster clusterID) string { return prefix + cluster.String() + "/" }

// segmentKey returns the key of the packed segment of that name.
func segmentKey(folder, name string) string { return folder + segmentsFolder + name }

// bucketManifestKey returns the key of a bucket manifest over that many entries
// whose bytes have that SHA-256.
func bucketManifestKey(folder string, entries uint64, sum hash) string {
	return fmt.Sprintf("%s%s%020d-%s", folder, manifestsFolder, entries, sum)
}

// parseBucketManifestKey is the inverse of bucketManifestKey.
func parseBucketManifestKey(folder, key string) (entries uint64, sum hash, ok bool) {
	number, digits, _ := strings.Cut(strings.TrimPrefix(key, folder+manifestsFolder), "-")
	entries, err := strconv.ParseUint(number, 10, 64)
	sum, hashErr := parseHash(digits)
	ok = err == nil && hashErr == nil && bucketManifestKey(folder, entries, sum) == key
	return entries, sum, ok
}

// bucketManifest is what a bucket manifest says.
type bucketManifest struct {
	origin   string
	root     hash // over the entries of segments
	cluster  clusterID
	name     string // of the cluster
	time     int64  // Unix ms
	key      noteVerifier
	former   []string      // notes that hand over from former keys, oldest first
	segments []segmentInfo // with their objects, without gap from entry 0 on
}

// size returns over how many entries it is.
func (m *bucketManifest) size() uint64 {
	if len(m.segments) == 0 {
		return 0
	}
	return m.segments[len(m.segments)-1].end()
}

// list returns what follows the note.
func (m *bucketManifest) list() string {
	var b strings.Builder
	for _, note := range m.former {
		fmt.Fprintf(&b, "former %s\n", base64.StdEncoding.EncodeToString([]byte(note)))
	}
	for _, i := range m.segments {
		fmt.Fprintf(&b, "segment %d %d %d %d %s %s %s\n", i.first, i.count, i.size, i.time, i.root, i.sum, cmp.Or(i.object, unnamedObject))
	}
	return b.String()
}

// body returns the text of the note.
func (m *bucketManifest) body() string {
	return treeHead{origin: m.origin, size: m.size(), root: m.root, extensions: []string{
		bucketManifestTitle,
		"cluster " + m.cluster.String() + " " + m.name,
		"time " + strconv.FormatInt(m.time, 10),
		"key " + m.key.String(),
		"list " + hash(sha256.Sum256([]byte(m.list()))).String(),
	}}.body()
}

// sign returns the bytes of the manifest; its origin and key become those of signer.
func (m *bucketManifest) sign(signer noteSigner) []byte {
	m.origin, m.key = signer.name, signer.noteVerifier
	body := m.body()
	return []byte(note{body, []noteSignature{signer.sign(body, 0)}}.String() + "\n" + m.list())
}

// parseBucketManifest reads a manifest that sign made, and nothing else: it is
// signed with the key it names, and it hangs together. Whether that key is the
// ledger's is for the caller to know.
func parseBucketManifest(b []byte) (*bucketManifest, error) {
	body, rest, _ := strings.Cut(string(b), "\n\n")
	signatures, list, ok := strings.Cut(rest, "\n\n")
	if !ok {
		return nil, fmt.Errorf("%w: %d bytes, and no empty lines behind checkpoint and signatures", errBucketManifest, len(b))
	}
	m := &bucketManifest{}
	err := m.parseNote(body + "\n\n" + signatures + "\n")
	if err == nil {
		err = m.parseList(list)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errBucketManifest, err)
	}
	if got := m.body(); got != body+"\n" || m.list() != list {
		return nil, fmt.Errorf("%w: its checkpoint is %q, the list gives %q", errBucketManifest, body+"\n", got)
	}
	return m, nil
}

// parseNote reads the checkpoint and checks its signature.
func (m *bucketManifest) parseNote(text string) error {
	n, err := parseNote(text)
	if err != nil {
		return err
	}
	head, err := parseTreeHead(n.body)
	if err != nil {
		return err
	}
	if len(head.extensions) != 5 || head.extensions[0] != bucketManifestTitle {
		return fmt.Errorf("%w: lines behind the root are %.200q, want five from %q on", errNote, head.extensions, bucketManifestTitle)
	}
	m.origin, m.root = head.origin, head.root
	cluster, name, _ := strings.Cut(strings.TrimPrefix(head.extensions[1], "cluster "), " ")
	if m.cluster, err = parseClusterID(cluster); err != nil {
		return err
	}
	m.name = name
	if m.time, err = parseMillis(strings.TrimPrefix(head.extensions[2], "time ")); err != nil {
		return err
	}
	if m.key, err = parseVerifier(strings.TrimPrefix(head.extensions[3], "key ")); err != nil {
		return err
	}
	_, err = openTreeHead(n, m.key)
	return err
}

// parseList reads what follows the note. That it has the right hash, and each
// number its only form, is seen when the note is made from it again.
func (m *bucketManifest) parseList(list string) error {
	for line := range strings.Lines(list) {
		kind, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		switch kind {
		case "former":
			handOver, err := exactBase64(rest)
			if err != nil {
				return err
			}
			m.former = append(m.former, string(handOver))
		case "segment":
			i, err := parseSegmentLine(rest)
			if err != nil {
				return fmt.Errorf("line %.300q: %w", line, err)
			}
			if i.first != m.size() {
				return fmt.Errorf("%w: segment from entry %d, want %d", errNote, i.first, m.size())
			}
			m.segments = append(m.segments, i)
		default:
			return fmt.Errorf("%w line %.100q", errNote, line)
		}
	}
	return nil
}

// parseSegmentLine reads what follows "segment ".
func parseSegmentLine(s string) (i segmentInfo, err error) {
	fields := strings.Split(s, " ")
	if len(fields) != 7 {
		return i, fmt.Errorf("%w: %d fields, want 7", errNote, len(fields))
	}
	for k, to := range []*uint64{&i.first, &i.count, &i.size} {
		if *to, err = parseDecimal(fields[k]); err != nil {
			return i, err
		}
	}
	if i.time, err = parseMillis(fields[3]); err != nil {
		return i, err
	}
	if i.root, err = parseHash(fields[4]); err != nil {
		return i, err
	}
	if i.sum, err = parseHash(fields[5]); err != nil {
		return i, err
	}
	first, ok := i.first, true
	if fields[6] != unnamedObject {
		i.object = fields[6]
		first, _, ok = parsePackedName(i.object)
	}
	if !ok || first != i.first || i.count == 0 || i.first+i.count < i.first || i.size == 0 || i.size > math.MaxInt64 {
		return i, fmt.Errorf("%w: no segment", errNote)
	}
	return i, nil
}

// parseMillis reads a time in Unix ms.
func parseMillis(s string) (int64, error) {
	ms, err := parseDecimal(s)
	if err == nil && ms > math.MaxInt64 {
		err = fmt.Errorf("%w time %s", errNote, s)
	}
	return int64(ms), err
}
