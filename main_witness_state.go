package main

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// What a witness keeps. Its directory has
//
//	LOCK                        one process at a time
//	witness.key                 mode 0600, one line, made at the first start:
//	                            PRIVATE+KEY+<name>+<hex8 key id>+<base64(0x04 ‖ 32-byte Ed25519 seed)>
//	<id>.checkpoint             the newest checkpoint that was cosigned for a log: a signed
//	                            note with the signatures of the log that were checked and
//	                            the cosignature of this witness. <id> is the hex SHA-256
//	                            of the log's origin line
//	<id>.fork, <id>.fork-base   evidence, two signed notes: a tree that the log signed, and
//	                            the tree of the same size and another root that it had
//	                            signed before
//
// Files are written whole: a temporary file, fsync, rename, fsync of the
// directory. A crash leaves the old file or the new one, and a *.tmp that the
// next start removes. The cosignature in a .checkpoint file is its checksum: a
// file whose cosignature does not verify is damaged, and the witness does not
// start with it. Key and state share the directory on purpose: who loses the
// state loses the name it spoke for. A backup of it must not be restored, for
// the witness has cosigned trees since then that it would not remember.

const (
	witnessKeyName    = "witness.key"
	witnessKeyPrefix  = "PRIVATE+KEY+"
	witnessedSuffix   = ".checkpoint"
	witnessForkSuffix = ".fork"
	witnessBaseSuffix = ".fork-base"
)

// cosignedHead is a checkpoint that a witness cosigned.
type cosignedHead struct {
	treeHead
	note string // with the signatures of the log and the cosignature
}

// witnessedLog is one ledger that is watched.
type witnessedLog struct {
	// immutable
	origin string
	id     string // hex SHA-256 of origin
	keys   []noteVerifier
	path   string // of the files, without suffix
	limit  *logLimit

	mu   sync.Mutex                   // held from the check of a checkpoint until it is on disk: no other check sees the state between
	last atomic.Pointer[cosignedHead] // replaced under mu; nil = none yet
}

// openWitness reads or makes the state in dir, which the caller has locked.
func openWitness(dir, name string, keys []noteVerifier) (noteSigner, []*witnessedLog, error) {
	left, _ := filepath.Glob(filepath.Join(dir, "*"+tmpSuffix))
	for _, path := range left {
		os.Remove(path)
	}
	signer, err := loadWitnessKey(filepath.Join(dir, witnessKeyName), name)
	if err != nil {
		return noteSigner{}, nil, err
	}
	var logs []*witnessedLog
	byOrigin := make(map[string]*witnessedLog)
	for _, k := range keys {
		l := byOrigin[k.name]
		if l == nil {
			l = newWitnessedLog(dir, k.name)
			byOrigin[k.name], logs = l, append(logs, l)
		}
		l.keys = append(l.keys, k)
	}
	for _, l := range logs {
		if err := l.load(signer.noteVerifier); err != nil {
			return noteSigner{}, nil, err
		}
	}
	return signer, logs, nil
}

// newWitnessedLog returns the log of the given origin, without keys and state.
func newWitnessedLog(dir, origin string) *witnessedLog {
	sum := sha256.Sum256([]byte(origin))
	id := hex.EncodeToString(sum[:])
	return &witnessedLog{origin: origin, id: id, path: filepath.Join(dir, id)}
}

// load reads what was cosigned last.
func (l *witnessedLog) load(own noteVerifier) error {
	path := l.path + witnessedSuffix
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	head, err := parseCosigned(string(b), l.origin, own)
	if err != nil {
		return fmt.Errorf("%s: %w: %w", path, errCorrupt, err)
	}
	l.last.Store(&head)
	return nil
}

// parseCosigned reads a checkpoint of the given log that the own key cosigned.
func parseCosigned(text, origin string, own noteVerifier) (cosignedHead, error) {
	n, err := parseNote(text)
	if err != nil {
		return cosignedHead{}, err
	}
	if signed, _, err := n.check(own); err != nil || !signed {
		return cosignedHead{}, errors.Join(fmt.Errorf("not cosigned by %s", own), err)
	}
	head, err := parseTreeHead(n.body)
	if err != nil {
		return cosignedHead{}, err
	}
	if head.origin != origin {
		return cosignedHead{}, fmt.Errorf("checkpoint of %q, want %q", head.origin, origin)
	}
	return cosignedHead{head, text}, nil
}

// save makes head the newest cosigned checkpoint, on disk first. l.mu must be held.
func (l *witnessedLog) save(head cosignedHead) error {
	// After a crash here, or an error, the disk may have the new head and nobody
	// its cosignature. Both states are safe: the new one extends the old one.
	if err := writeText(l.path+witnessedSuffix, head.note); err != nil {
		return err
	}
	l.last.Store(&head)
	return nil
}

// saveFork keeps the first fork of the log: refused and the head it contradicts.
// l.mu must be held.
func (l *witnessedLog) saveFork(refused note, base *cosignedHead) error {
	if _, err := os.Lstat(l.path + witnessForkSuffix); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// A crash between the two leaves a base without a fork; the next fork writes both anew.
	if err := writeText(l.path+witnessBaseSuffix, base.note); err != nil {
		return err
	}
	return writeText(l.path+witnessForkSuffix, refused.String())
}

// writeText writes a whole file durably.
func writeText(path, text string) error {
	return writeDurably(path, func(w io.Writer) error {
		_, err := io.WriteString(w, text)
		return err
	})
}

// loadWitnessKey reads the key in the file, or makes it.
func loadWitnessKey(path, name string) (noteSigner, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return newWitnessKey(path, name)
	}
	if err != nil {
		return noteSigner{}, err
	}
	signer, err := parseWitnessKey(string(b))
	if err != nil {
		return noteSigner{}, fmt.Errorf("%s: %w: %w", path, errCorrupt, err)
	}
	if signer.name != name {
		return noteSigner{}, fmt.Errorf("%s: the key is of witness %q, this is %q: a key has one name for ever", path, signer.name, name)
	}
	return signer, nil
}

// newWitnessKey makes the key of a new directory.
func newWitnessKey(path, name string) (noteSigner, error) {
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "*"+witnessedSuffix)); len(left) > 0 {
		return noteSigner{}, fmt.Errorf("%s is missing but %s is there: this is not a new directory", path, left[0])
	}
	seed := make([]byte, 32)
	rand.Read(seed)
	signer, err := newNoteSigner(name, sigCosignature, seed)
	if err != nil {
		return noteSigner{}, err
	}
	return signer, writeText(path, formatWitnessKey(signer, seed)) // os.CreateTemp gives mode 0600
}

// formatWitnessKey returns the text of witness.key.
func formatWitnessKey(s noteSigner, seed []byte) string {
	secret := base64.StdEncoding.EncodeToString(append([]byte{sigCosignature}, seed...))
	return fmt.Sprintf("%s%s+%08x+%s\n", witnessKeyPrefix, s.name, s.id, secret)
}

// parseWitnessKey reads the text of witness.key. The key id is its checksum.
func parseWitnessKey(text string) (noteSigner, error) {
	fields := strings.SplitN(strings.TrimPrefix(text, witnessKeyPrefix), "+", 3)
	if len(fields) != 3 || !strings.HasPrefix(text, witnessKeyPrefix) || !strings.HasSuffix(text, "\n") {
		return noteSigner{}, errors.New("witness key: want PRIVATE+KEY+name+id+secret")
	}
	secret, err := base64.StdEncoding.Strict().DecodeString(strings.TrimSuffix(fields[2], "\n"))
	if err != nil || len(secret) != 33 || secret[0] != sigCosignature {
		return noteSigner{}, fmt.Errorf("witness key: the secret is not %#02x and 32 bytes", sigCosignature)
	}
	s, err := newNoteSigner(fields[0], sigCosignature, secret[1:])
	if err != nil {
		return noteSigner{}, fmt.Errorf("witness key: %w", err)
	}
	if formatWitnessKey(s, secret[1:]) != text {
		return noteSigner{}, fmt.Errorf("witness key: id is %s, want %08x", fields[1], s.id)
	}
	return s, nil
}

const witnessWarnEvery = time.Minute // between two lines about one log's bad checkpoints
