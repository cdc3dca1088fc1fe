package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// goldenBucketManifest is the manifest in testdata/bucket-manifest-1.txt, and the
// key that signed it.
func goldenBucketManifest(t testing.TB) (*bucketManifest, noteSigner) {
	t.Helper()
	fill := func(b byte) hash { return hash(bytes.Repeat([]byte{b}, 32)) }
	signer, err := newNoteSigner(goldenOrigin, sigEd25519, bytes.Repeat([]byte{0x22}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return &bucketManifest{
		origin: signer.name, root: fill(0x40), cluster: clusterID([]byte("\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f")),
		name: "test", time: 1_700_000_000_002, key: signer.noteVerifier, former: []string{"first\n", "second note\n"},
		segments: []segmentInfo{
			{first: 0, count: 1000, size: 4096, time: 1_700_000_000_000, root: fill(0x10), sum: fill(0x20), object: packedName(0, fill(0x30))},
			{first: 1000, count: 42, size: 77, time: 1_700_000_000_001, root: fill(0x11), sum: fill(0x21), object: packedName(1000, fill(0x31))},
		},
	}, signer
}

func TestBucketManifestGolden(t *testing.T) {
	m, signer := goldenBucketManifest(t)
	b := golden(t, "bucket-manifest-1.txt")
	wantGolden(t, m.sign(signer), "bucket-manifest-1.txt")
	got, err := parseBucketManifest(b)
	if err != nil || !reflect.DeepEqual(got, m) {
		t.Errorf("parsed %+v, %v", got, err)
	}
	checkpoint, _, _ := strings.Cut(string(b), "\n\nformer ")
	if head, err := openTreeHead(mustNote(t, checkpoint+"\n"), signer.noteVerifier); err != nil || head.size != 1042 {
		t.Errorf("it is no checkpoint: %+v, %v", head, err)
	}
}

func TestBucketManifestCutAndFlipped(t *testing.T) {
	b := golden(t, "bucket-manifest-1.txt")
	refused := func(b []byte) {
		if _, err := parseBucketManifest(b); err == nil {
			t.Fatalf("accepted %q", b)
		} else {
			wantError(t, err, errBucketManifest)
		}
	}
	eachCut(b, refused)
	eachFlip(b, func(flipped []byte, at int) { refused(flipped) })
	refused(append(bytes.Clone(b), '\n'))
}

// TestBucketManifestUnnamed: a signer may not know how an object is named.
func TestBucketManifestUnnamed(t *testing.T) {
	m, signer := goldenBucketManifest(t)
	m.segments[1].object = ""
	b := m.sign(signer)
	if got, err := parseBucketManifest(b); err != nil || !reflect.DeepEqual(got, m) || !bytes.HasSuffix(b, []byte(" -\n")) {
		t.Errorf("parsed %+v, %v", got, err)
	}
}

// TestBucketManifestRefuses signs what does not hang together.
func TestBucketManifestRefuses(t *testing.T) {
	for want, change := range map[string]func(*bucketManifest){
		"segment from entry 1000, want 1001": func(m *bucketManifest) { m.segments[0].count++ },
		"no segment":                         func(m *bucketManifest) { m.segments[1].object = m.segments[0].object },
		"malformed number":                   func(m *bucketManifest) { m.time = -1 },
		"malformed signature line":           func(m *bucketManifest) { m.name = "a\n\nb" },
		"lines behind the root":              func(m *bucketManifest) { m.name = "a\nb" },
	} {
		m, signer := goldenBucketManifest(t)
		change(m)
		_, err := parseBucketManifest(m.sign(signer))
		wantError(t, err, errBucketManifest)
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v, want %q", err, want)
		}
	}
}

// TestBucketManifestForged signs with a key that is not the one named.
func TestBucketManifestForged(t *testing.T) {
	m, signer := goldenBucketManifest(t)
	thief, err := newNoteSigner(goldenOrigin, sigEd25519, make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	forged := bytes.Replace(m.sign(thief), []byte(thief.noteVerifier.String()), []byte(signer.noteVerifier.String()), 1)
	_, err = parseBucketManifest(forged)
	wantError(t, err, errSignature)
}

func TestBucketKeys(t *testing.T) {
	var cluster clusterID
	folder := bucketFolder("a/b/", cluster)
	if want := "a/b/" + strings.Repeat("0", 32) + "/"; folder != want {
		t.Errorf("folder is %s, want %s", folder, want)
	}
	sum := hash(sha256.Sum256(nil))
	key := bucketManifestKey(folder, 1042, sum)
	if want := fmt.Sprintf("%smanifests/00000000000000001042-%s", folder, sum); key != want {
		t.Errorf("key is %s, want %s", key, want)
	}
	if n, got, ok := parseBucketManifestKey(folder, key); !ok || n != 1042 || got != sum {
		t.Errorf("parsed %d, %s, %v", n, got, ok)
	}
	for _, bad := range []string{"", folder, key + "x", strings.ToUpper(key), key[1:], folder + "manifests/1042-" + sum.String()} {
		if _, _, ok := parseBucketManifestKey(folder, bad); ok {
			t.Errorf("%s is taken for a manifest", bad)
		}
	}
}

func FuzzBucketManifest(f *testing.F) {
	f.Add(golden(f, "bucket-manifest-1.txt"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseBucketManifest(b)
		if err == nil && m.body()+"\n" != string(b)[:len(m.body())+1] {
			t.Fatalf("parsed %q as %+v", b, m)
		}
	})
}
