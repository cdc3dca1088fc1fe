package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// newFolder returns an empty folder store.
func newFolder(t *testing.T) *folderStore {
	t.Helper()
	s, err := makeFolder(filepath.Join(t.TempDir(), "a", "backup"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.close() })
	return s
}

// putText puts text under key.
func putText(t *testing.T, s *folderStore, key, text string) error {
	t.Helper()
	return s.put(t.Context(), key, strings.NewReader(text), int64(len(text)), sha256.Sum256([]byte(text)))
}

// textOf returns the object key.
func textOf(t *testing.T, s *folderStore, key string) string {
	t.Helper()
	size, err := s.size(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.read(t.Context(), key, 0, size)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// keysOf returns the keys that begin with prefix.
func keysOf(t *testing.T, s *folderStore, prefix string) []string {
	t.Helper()
	var keys []string
	err := s.list(t.Context(), prefix, func(key string, size int64) error {
		if size != int64(len(textOf(t, s, key))) {
			t.Errorf("%s is listed with %d bytes", key, size)
		}
		keys = append(keys, key)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// TestFolderStore holds a folder to what a bucket does.
func TestFolderStore(t *testing.T) {
	t.Parallel()
	s := newFolder(t)
	keys := []string{"a", "p-q/x", "p/b/c", "p/b-c", "p/b.c", "p/z", "q"}
	for _, key := range keys {
		if err := putText(t, s, key, "object "+key); err != nil {
			t.Fatal(err)
		}
	}
	wantError(t, putText(t, s, "p/b-c", "others"), fs.ErrExist, "p/b-c")
	slices.Sort(keys)
	for prefix, want := range map[string][]string{
		"": keys, "p": keys[1:6], "p/": keys[2:6], "p/b": keys[2:5], "p/b/": keys[4:5], "p-": keys[1:2], "none/": nil, "a/": nil, "/": nil, "../": nil,
	} {
		if got := keysOf(t, s, prefix); !slices.Equal(got, want) {
			t.Errorf("below %q there is %q, want %q", prefix, got, want)
		}
	}
	if b, err := s.read(t.Context(), "p/z", 2, 3); err != nil || string(b) != "jec" {
		t.Errorf("read %q, %v", b, err)
	}
	for _, part := range [][2]int64{{8, 3}, {11, 1}, {-1, 2}, {0, -1}, {1, 1<<63 - 1}} {
		_, err := s.read(t.Context(), "p/z", part[0], part[1])
		wantError(t, err, io.ErrUnexpectedEOF, "p/z has 10 bytes")
	}
	for _, key := range []string{"p/y", "p", "a/b", "none/x"} {
		_, err := s.size(t.Context(), key)
		wantError(t, err, fs.ErrNotExist, key)
		_, err = s.read(t.Context(), key, 0, 1)
		wantError(t, err, fs.ErrNotExist, key)
		if err := s.remove(t.Context(), key); err != nil {
			t.Errorf("removing %s: %v", key, err)
		}
	}
	for _, text := range []string{"first", "second"} {
		if err := s.replace(t.Context(), "p/live", []byte(text)); err != nil || textOf(t, s, "p/live") != text {
			t.Errorf("replaced by %s: %v", text, err)
		}
	}
	if err := s.remove(t.Context(), "p/live"); err != nil || len(keysOf(t, s, "p/live")) != 0 {
		t.Errorf("removed: %v", err)
	}
	if can, err := s.probe(t.Context(), "p/"); err != nil || !strings.Contains(can, "put-if-absent") || len(keysOf(t, s, "")) != len(keys) {
		t.Errorf("probe says %q, %v", can, err)
	}
	stop := errors.New("stop")
	wantError(t, s.list(t.Context(), "", func(string, int64) error { return stop }), stop)
}

// TestFolderWrongBytes: what is not the bytes that were told leaves nothing.
func TestFolderWrongBytes(t *testing.T) {
	t.Parallel()
	s := newFolder(t)
	sum := hash(sha256.Sum256([]byte("text")))
	for body, size := range map[string]int64{"tixt": 4, "tex": 4, "": 4, "text": 5} {
		err := s.put(t.Context(), "k", strings.NewReader(body), size, sum)
		wantError(t, err, errCorrupt, "k: write", fmt.Sprintf("want %d with %s", size, sum))
	}
	if files, _ := os.ReadDir(s.dir); len(files) > 0 {
		t.Errorf("left is %v", files)
	}
}

// TestFolderKeys: no key leads out of the folder, by name or by link.
func TestFolderKeys(t *testing.T) {
	t.Parallel()
	s := newFolder(t)
	outside := filepath.Dir(s.dir)
	if err := errors.Join(os.Symlink(outside, filepath.Join(s.dir, "way")), os.WriteFile(filepath.Join(outside, "secret"), nil, 0o600),
		os.Symlink("../secret", filepath.Join(s.dir, "link"))); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"", ".", "..", "../x", "/x", "a/../../x", "a//b", "a/", "a\\b", "a\x00b", "\xff", "a.tmp", "way/x", "way/secret", "link"} {
		if err := putText(t, s, key, "x"); err == nil {
			t.Errorf("put %q", key)
		}
		if err := s.replace(t.Context(), key, nil); key != "link" && err == nil { // a link is replaced, not followed
			t.Errorf("replaced %q", key)
		}
		if b, err := s.read(t.Context(), key, 0, 0); key != "link" && err == nil {
			t.Errorf("%q has %q", key, b)
		}
	}
	if got := keysOf(t, s, ""); !slices.Equal(got, []string{"link"}) {
		t.Errorf("below the folder is %q", got)
	}
	if files, _ := os.ReadDir(outside); len(files) != 2 {
		t.Errorf("outside is %v", files)
	}
}

// TestFolderAtOnce: of many who put one name one succeeds.
func TestFolderAtOnce(t *testing.T) {
	t.Parallel()
	s := newFolder(t)
	var done atomic.Int32
	var group sync.WaitGroup
	for i := range 16 {
		group.Go(func() {
			switch err := putText(t, s, "p/k", fmt.Sprint("text ", i)); {
			case err == nil:
				done.Add(1)
			case !errors.Is(err, fs.ErrExist):
				t.Error(err)
			}
		})
	}
	group.Wait()
	if done.Load() != 1 || len(textOf(t, s, "p/k")) < 6 {
		t.Errorf("%d were told that they put it", done.Load())
	}
	if files, _ := os.ReadDir(filepath.Join(s.dir, "p")); len(files) != 1 {
		t.Errorf("left is %v", files)
	}
}

// TestFolderCrash looks at the folder as a crash at each step leaves it: the
// object is whole or not there, what was half-made goes, and it can be put again.
func TestFolderCrash(t *testing.T) {
	t.Parallel()
	const key, old, text = "p/c/segments/k", "old", "the text of the object"
	for name, act := range map[string]func(*folderStore) error{
		"put":     func(s *folderStore) error { return putText(t, s, key, text) },
		"replace": func(s *folderStore) error { return s.replace(t.Context(), key, []byte(text)) },
		"remove":  func(s *folderStore) error { return s.remove(t.Context(), key) },
	} {
		s := newFolder(t)
		want := []string{"", text}
		if name != "put" {
			if want = []string{old, text}; name == "remove" {
				want = []string{old, ""}
			}
			if err := putText(t, s, key, old); err != nil {
				t.Fatal(err)
			}
		}
		var steps []string
		var left []string
		s.fault = func(step string) error {
			steps, left = append(steps, step), append(left, t.TempDir())
			return os.CopyFS(left[len(left)-1], os.DirFS(s.dir))
		}
		if err := act(s); err != nil {
			t.Fatal(err)
		}
		for i, dir := range left {
			after, err := makeFolder(dir)
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			if keys := keysOf(t, after, ""); len(keys) > 0 {
				got = textOf(t, after, keys[0])
			}
			if !slices.Contains(want, got) {
				t.Errorf("%s, crash %s: the object is %q", name, steps[i], got)
			}
			if err := act(after); err != nil && !errors.Is(err, fs.ErrExist) {
				t.Errorf("%s again after a crash %s: %v", name, steps[i], err)
			}
			if got, want := keysOf(t, after, ""), keysOf(t, s, ""); !slices.Equal(got, want) || len(want) > 0 && textOf(t, after, key) != text {
				t.Errorf("%s again after a crash %s: it has %q", name, steps[i], got)
			}
			if tmp, _ := filepath.Glob(filepath.Join(dir, filepath.Dir(key), "*"+tmpSuffix)); len(tmp) > 0 {
				t.Errorf("%s, crash %s: left is %q", name, steps[i], tmp)
			}
			after.close()
		}
		if len(steps) < 4 {
			t.Errorf("%s has steps %q", name, steps)
		}
	}
}

// TestFolderFault fails each step: the caller is told, and nothing half-made has the name.
func TestFolderFault(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"make folder", "write", "sync", "link", "sync folder"} {
		for _, when := range []string{"before ", "after "} {
			s := newFolder(t)
			s.fault = failAt(when+step, 1, syscall.EIO)
			wantError(t, putText(t, s, "p/k", "text"), syscall.EIO, step)
			s.fault = nil
			if err := putText(t, s, "p/k", "text"); err != nil && !errors.Is(err, fs.ErrExist) {
				t.Errorf("after a fault %s%s: %v", when, step, err)
			}
			if got := keysOf(t, s, ""); !slices.Equal(got, []string{"p/k"}) || textOf(t, s, "p/k") != "text" {
				t.Errorf("after a fault %s%s there is %q", when, step, got)
			}
			if tmp, _ := filepath.Glob(filepath.Join(s.dir, "p", "*"+tmpSuffix)); len(tmp) > 0 {
				t.Errorf("after a fault %s%s left is %q", when, step, tmp)
			}
		}
	}
}

// TestFolderCanceled: a put that is cut off by its context leaves nothing.
func TestFolderCanceled(t *testing.T) {
	t.Parallel()
	s := newFolder(t)
	ctx, cancel := context.WithCancel(t.Context())
	b := bytes.Repeat([]byte("x"), 1<<20)
	s.fault = func(step string) error {
		if step == "before write" {
			cancel()
		}
		return nil
	}
	if err := s.put(ctx, "k", bytes.NewReader(b), int64(len(b)), sha256.Sum256(b)); !errors.Is(err, ctx.Err()) {
		t.Errorf("put: %v", err)
	}
	if files, _ := os.ReadDir(s.dir); len(files) > 0 {
		t.Errorf("left is %v", files)
	}
}
