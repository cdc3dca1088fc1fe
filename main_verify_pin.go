package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// What a user has seen of ledgers, in <configuration folder>/scribe-ledger, or
// in $SCRIBE_CONFIG_DIR:
//
//	LOCK                     flock: one visit at a time decides
//	urls/<SHA-256 of URL>        "scribe-ledger url v1", the URL, the origin of the ledger seen there
//	ledgers/<SHA-256 of origin>  "scribe-ledger pin v1", the vkey trusted, then the largest
//	                         signed checkpoint seen, as it was served
//	evidence/<time>-*.txt    what a server showed that contradicts a pin; for people
//
// Files of the first two kinds are lines of UTF-8 and end in a line "sha256 "
// and 64 hex digits over all that stands before it. They are written under
// another name, fsynced and renamed, and their folder fsynced, so that a crash
// leaves the old or the new one.

// errPin is wrapped by errors about the folder of pins.
var errPin = errors.New("the folder of pinned keys and checkpoints is unusable")

const (
	urlMagic = "scribe-ledger url v1"
	pinMagic = "scribe-ledger pin v1"
)

// pins is the folder.
type pins struct {
	folder string
	lock   *os.File
}

// openPins makes the folder if need be and locks it until close.
func openPins(folder string) (*pins, error) {
	if folder == "" {
		return nil, fmt.Errorf("%w: neither SCRIBE_CONFIG_DIR nor a home directory is set", errPin)
	}
	for _, sub := range [...]string{"urls", "ledgers", "evidence"} {
		if err := os.MkdirAll(filepath.Join(folder, sub), 0o700); err != nil {
			return nil, fmt.Errorf("%w: %w", errPin, err)
		}
	}
	f, err := os.OpenFile(filepath.Join(folder, "LOCK"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errPin, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("%w: locking %s: %w", errPin, f.Name(), err)
	}
	return &pins{folder, f}, nil
}

// close lets the next visit in.
func (p *pins) close() { p.lock.Close() }

// path returns the file of name, which is a URL or an origin.
func (p *pins) path(sub, name string) string {
	return filepath.Join(p.folder, sub, hash(sha256.Sum256([]byte(name))).String())
}

// pin is what is known of one ledger.
type pin struct {
	key  noteVerifier
	seen note // the largest checkpoint
	head treeHead
}

// origin returns the origin seen at url, "" if none was.
func (p *pins) origin(url string) (string, error) {
	path := p.path("urls", url)
	text, err := readSealed(path)
	if err != nil || text == "" {
		return "", err
	}
	lines := strings.Split(text, "\n")
	if len(lines) != 4 || lines[0] != urlMagic || lines[1] != url {
		return "", fmt.Errorf("%w: %s is not about %s", errPin, path, url)
	}
	return lines[2], nil
}

// ledger returns what is known of the ledger with that origin, nil for nothing.
func (p *pins) ledger(origin string) (*pin, error) {
	path := p.path("ledgers", origin)
	text, err := readSealed(path)
	if err != nil || text == "" {
		return nil, err
	}
	magic, rest, _ := strings.Cut(text, "\n")
	vkey, checkpoint, _ := strings.Cut(rest, "\n")
	var known pin
	if magic != pinMagic {
		err = fmt.Errorf("begins with %.40q", magic)
	}
	if err == nil {
		known.key, err = parseVerifier(vkey)
	}
	if err == nil {
		known.seen, err = parseNote(checkpoint)
	}
	if err == nil {
		known.head, err = parseTreeHead(known.seen.body)
	}
	if err == nil && (known.key.name != origin || known.head.origin != origin) {
		err = fmt.Errorf("is of %q, want %q", known.key.name, origin)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", errPin, path, err)
	}
	return &known, nil
}

// save keeps known, as the ledger seen at url.
func (p *pins) save(url string, known *pin) error {
	text := pinMagic + "\n" + known.key.String() + "\n" + known.seen.String()
	if err := writeSealed(p.path("ledgers", known.key.name), text); err != nil {
		return err
	}
	return writeSealed(p.path("urls", url), urlMagic+"\n"+url+"\n"+known.key.name+"\n")
}

// evidence keeps text in a file of its own and returns its path.
func (p *pins) evidence(now time.Time, text string) (string, error) {
	pattern := now.UTC().Format("20060102T150405Z") + "-*.txt"
	f, err := os.CreateTemp(filepath.Join(p.folder, "evidence"), pattern)
	if err != nil {
		return "", fmt.Errorf("%w: %w", errPin, err)
	}
	_, err = f.WriteString(text)
	if err := errors.Join(err, f.Sync(), f.Close(), syncFolder(filepath.Dir(f.Name()))); err != nil {
		return "", fmt.Errorf("%w: %w", errPin, err)
	}
	return f.Name(), nil
}

// sealLine returns the last line of a file that begins with text.
func sealLine(text string) string {
	return "sha256 " + hash(sha256.Sum256([]byte(text))).String() + "\n"
}

// readSealed returns the text before the last line of a file after checking
// it; no file gives no text.
func readSealed(path string) (string, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("%w: %w", errPin, err)
	}
	at := len(b) - len(sealLine(""))
	if at < 1 || sealLine(string(b[:at])) != string(b[at:]) {
		return "", fmt.Errorf("%w: %s is damaged; restore it, or remove it to begin anew and compare the key by other means", errPin, path)
	}
	return string(b[:at]), nil
}

// writeSealed puts text and its last line at path in one step.
func writeSealed(path, text string) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return fmt.Errorf("%w: %w", errPin, err)
	}
	_, err = f.WriteString(text + sealLine(text))
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err == nil {
		err = syncFolder(filepath.Dir(path))
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("%w: %w", errPin, err)
	}
	return nil
}

// syncFolder makes the names in a folder durable.
func syncFolder(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
