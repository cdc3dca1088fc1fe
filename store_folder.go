package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
)

// folderStore is a folder in the place of a bucket, as a backup is: an object is
// the file whose path below the folder is its key. Under its name a file is
// whole and durable; one that is being written has a name that ends in .tmp,
// which is no key. All methods may be called at the same time, and by several
// processes.
//
// No key leads out of the folder: os.Root follows no symbolic link that does.
type folderStore struct {
	dir  string
	root *os.Root

	// fault is asked before and after each step that changes the disk, as
	// storeOptions.fault is. For tests of crashes.
	fault func(step string) error
}

var _ objectStore = (*folderStore)(nil)

// errKey says that a key is not the path of a file below a folder.
var errKey = errors.New("no name for a file of a folder")

// openFolder opens a folder that is there.
func openFolder(dir string) (*folderStore, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &folderStore{dir: dir, root: root}, nil
}

// makeFolder opens a folder, made if it is not there, and removes what a crash
// left half-written in it; nobody else may be writing to it.
func makeFolder(dir string) (*folderStore, error) {
	if err := makeDir(dir); err != nil {
		return nil, err
	}
	s, err := openFolder(dir)
	if err != nil {
		return nil, err
	}
	if err := s.walk(".", func(name string, info fs.FileInfo) error {
		if strings.HasSuffix(name, tmpSuffix) {
			return s.root.Remove(name)
		}
		return nil
	}); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// close lets go of the folder.
func (s *folderStore) close() error { return s.root.Close() }

func (s *folderStore) String() string { return s.dir }

// put makes the object key of the size bytes of body, whose SHA-256 is sum,
// unless it is there already: fs.ErrExist. A crash leaves a .tmp file, which
// nobody reads, or, once it is linked, the whole object; then or now, who is told
// that it is there may rely on it.
func (s *folderStore) put(ctx context.Context, key string, body io.ReaderAt, size int64, sum hash) error {
	if _, err := s.size(ctx, key); err == nil {
		return s.exists(key)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	tmp, err := s.write(ctx, key, io.NewSectionReader(body, 0, size), size, sum)
	if err != nil {
		return err
	}
	err = s.step("link", func() error { return s.link(tmp, key) })
	s.root.Remove(tmp) // if this is not to be, makeFolder does it
	if errors.Is(err, fs.ErrExist) {
		return s.exists(key)
	}
	if err != nil {
		return fmt.Errorf("%s: %s: %w", s, key, err)
	}
	return s.syncName(key)
}

// replace makes the object key of body, in the place of what it was.
func (s *folderStore) replace(ctx context.Context, key string, body []byte) error {
	tmp, err := s.write(ctx, key, bytes.NewReader(body), int64(len(body)), sha256.Sum256(body))
	if err != nil {
		return err
	}
	if err := s.step("rename", func() error { return s.root.Rename(tmp, key) }); err != nil {
		s.root.Remove(tmp)
		return fmt.Errorf("%s: %s: %w", s, key, err)
	}
	return s.syncName(key)
}

// exists makes the name of an object durable, for whoever put it may have been
// killed before that, and returns the error of a name that is taken.
func (s *folderStore) exists(key string) error {
	if err := s.syncName(key); err != nil {
		return err
	}
	return fmt.Errorf("%s: object %s: %w", s, key, fs.ErrExist)
}

// write makes a durable file of body, with a name that is no key and in the
// folder of key, and returns its name.
func (s *folderStore) write(ctx context.Context, key string, body io.Reader, size int64, sum hash) (tmp string, err error) {
	if err := checkFolderKey(key); err != nil {
		return "", fmt.Errorf("%s: %w", s, err)
	}
	err = s.step("make folder", func() error { return s.root.MkdirAll(path.Dir(key), 0o700) })
	if err != nil {
		return "", fmt.Errorf("%s: %s: %w", s, key, err)
	}
	var f *os.File
	for i := 0; ; i++ {
		tmp = fmt.Sprintf("%s.%d%s", key, i, tmpSuffix)
		f, err = s.root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if !errors.Is(err, fs.ErrExist) {
			break
		}
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", s, err)
	}
	err = s.step("write", func() error { return fill(ctx, f, body, size, sum) })
	if err == nil {
		err = s.step("sync", f.Sync)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		s.root.Remove(tmp)
		return "", fmt.Errorf("%s: %s: %w", s, key, err)
	}
	return tmp, nil
}

// fill copies body to w if it is size bytes with that SHA-256.
func fill(ctx context.Context, w io.Writer, body io.Reader, size int64, sum hash) error {
	digest := sha256.New()
	n, err := io.Copy(io.MultiWriter(w, digest), readerFunc(func(p []byte) (int, error) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		return body.Read(p)
	}))
	if err != nil {
		return err
	}
	if got := hash(digest.Sum(nil)); n != size || got != sum {
		return fmt.Errorf("%w: %d bytes with SHA-256 %s, want %d with %s", errCorrupt, n, got, size, sum)
	}
	return nil
}

// readerFunc is a function as an io.Reader.
type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// link gives the file tmp the name key as well, if nothing has it. Where a file
// system has no links, as on many a memory stick, it is renamed: two that put
// the same name at the same time both succeed then.
func (s *folderStore) link(tmp, key string) error {
	err := s.root.Link(tmp, key)
	for _, lacking := range []error{syscall.EPERM, syscall.ENOSYS, syscall.EOPNOTSUPP, syscall.EMLINK} {
		if errors.Is(err, lacking) {
			return s.root.Rename(tmp, key)
		}
	}
	return err
}

// syncName makes the name of an object durable, with those of the folders that
// lead to it: whoever made them may have been killed before they were.
func (s *folderStore) syncName(key string) error {
	return s.step("sync folder", func() error {
		for dir := path.Dir(key); ; dir = path.Dir(dir) {
			if err := s.syncFolder(dir); err != nil {
				return fmt.Errorf("%s: %w", s, err)
			}
			if dir == "." {
				return nil
			}
		}
	})
}

// syncFolder makes the names in a folder below this one durable.
func (s *folderStore) syncFolder(dir string) error {
	d, err := s.root.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// step runs one change of the disk and lets the fault hook fail it, before it
// happens or after.
func (s *folderStore) step(name string, do func() error) error {
	return tryStep(s.fault, name, do)
}

// read returns the size bytes of an object from offset from on.
func (s *folderStore) read(ctx context.Context, key string, from, size int64) ([]byte, error) {
	have, err := s.size(ctx, key)
	if err != nil {
		return nil, err
	}
	if from < 0 || size < 0 || from > have || size > have-from {
		return nil, fmt.Errorf("%s: object %s has %d bytes, want %d from byte %d: %w", s, key, have, size, from, io.ErrUnexpectedEOF)
	}
	f, err := s.root.Open(key)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s, err)
	}
	defer f.Close()
	b := make([]byte, size)
	if _, err := io.ReadFull(io.NewSectionReader(f, from, size), b); err != nil {
		return nil, fmt.Errorf("%s: object %s: %d bytes from byte %d: %w", s, key, size, from, err)
	}
	return b, nil
}

// size returns the size of an object; fs.ErrNotExist if there is none.
func (s *folderStore) size(ctx context.Context, key string) (int64, error) {
	if err := errors.Join(ctx.Err(), checkFolderKey(key)); err != nil {
		return 0, fmt.Errorf("%s: %w", s, err)
	}
	info, err := s.root.Stat(key)
	if errors.Is(err, syscall.ENOTDIR) || err == nil && !info.Mode().IsRegular() {
		err = fs.ErrNotExist // as in a bucket, where nothing is in the way of a key
	}
	if err != nil {
		return 0, fmt.Errorf("%s: object %s: %w", s, key, err)
	}
	return info.Size(), nil
}

// list calls each for every object whose key begins with prefix, in order of
// key, until each returns an error, which it then returns.
func (s *folderStore) list(ctx context.Context, prefix string, each func(key string, size int64) error) error {
	dir := path.Dir(prefix + "x") // the folder that all of them are below
	if !fs.ValidPath(dir) {
		return nil
	}
	return s.walk(dir, func(name string, info fs.FileInfo) error {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
		if !strings.HasPrefix(name, prefix) || !info.Mode().IsRegular() || checkFolderKey(name) != nil {
			return nil
		}
		return each(name, info.Size())
	})
}

// walk calls each for every file below dir, in order of its name from this
// folder on. What goes away meanwhile is left out; no such dir is an empty one.
func (s *folderStore) walk(dir string, each func(name string, info fs.FileInfo) error) error {
	entries, err := fs.ReadDir(s.root.FS(), dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", s, err)
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return cmp.Compare(sortName(a), sortName(b)) })
	for _, e := range entries {
		name := path.Join(dir, e.Name())
		if e.IsDir() {
			err = s.walk(name, each)
		} else if info, ierr := e.Info(); ierr == nil {
			err = each(name, info)
		} else if !errors.Is(ierr, fs.ErrNotExist) {
			err = fmt.Errorf("%s: %w", s, ierr)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// sortName returns what a file or folder is sorted by, so that all keys come in order.
func sortName(e fs.DirEntry) string {
	if e.IsDir() {
		return e.Name() + "/"
	}
	return e.Name()
}

// remove removes an object, durably; one that is not there is no error.
func (s *folderStore) remove(ctx context.Context, key string) error {
	if _, err := s.size(ctx, key); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	err := s.step("remove", func() error { return s.root.Remove(key) })
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", s, err)
	}
	return s.syncName(key)
}

// probe finds out whether objects whose keys begin with prefix can be put.
func (s *folderStore) probe(ctx context.Context, prefix string) (string, error) {
	tmp, err := s.write(ctx, prefix+"probe", bytes.NewReader(nil), 0, sha256.Sum256(nil))
	if err != nil {
		return "", err
	}
	if err := s.root.Remove(tmp); err != nil {
		return "", fmt.Errorf("%s: %w", s, err)
	}
	return "folder " + s.dir + ": can read, write, list, put-if-absent", nil
}

// checkFolderKey reports a key that is no path of a file below a folder, or that a
// file has which is being written.
func checkFolderKey(key string) error {
	if !fs.ValidPath(key) || key == "." || strings.ContainsAny(key, "\\\x00") || strings.HasSuffix(key, tmpSuffix) {
		return fmt.Errorf("key %.200q: %w", key, errKey)
	}
	return nil
}
