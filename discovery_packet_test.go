package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
)

// anAnnouncement is one of a formed cluster.
func anAnnouncement() *announcement {
	return &announcement{
		cluster: [16]byte{0x5b, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
		node:    2, incarnation: 0x8f3a5c0b12d4e677, sequence: 0x0006_0a24_181e_4000, time: 1_700_000_000_000,
		name: "scribe", raft: "127.0.0.1:9002", http: "http://127.0.0.1:8002",
	}
}

// goldenAnnouncement is anAnnouncement under the secret "s3cret". The HMAC was
// computed with Python's hmac module.
const goldenAnnouncement = "53435244" + "0001" + "0086" +
	"5b0102030405060708090a0b0c0d0e0f" + "0000000000000002" + "8f3a5c0b12d4e677" +
	"00060a24181e4000" + "0000018bcfe56800" +
	"06" + "736372696265" +
	"000e" + "3132372e302e302e313a39303032" +
	"0015" + "687474703a2f2f3132372e302e302e313a38303032" +
	"4e9a9a369190682eab70562350863fe5dfcbfb5907b8c9c08c5b00a0f844774c"

func TestAnnouncementGolden(t *testing.T) {
	want, err := hex.DecodeString(goldenAnnouncement)
	if err != nil {
		t.Fatal(err)
	}
	got := appendAnnouncement([]byte("before"), anAnnouncement(), "s3cret")
	if !bytes.Equal(got, append([]byte("before"), want...)) {
		t.Fatalf("announcement is\n%x, want\n%x", got[6:], want)
	}
	a, err := parseAnnouncement(want)
	if err != nil || *a != *anAnnouncement() || !authentic(want, "s3cret") || authentic(want, "") {
		t.Errorf("parsed %+v, error %v", a, err)
	}
}

// TestAnnouncementCutAndFlipped: no datagram with a bit changed, cut anywhere or
// with something behind it, passes for one that the secret made.
func TestAnnouncementCutAndFlipped(t *testing.T) {
	whole := appendAnnouncement(nil, anAnnouncement(), "s3cret")
	for size := range whole {
		if _, err := parseAnnouncement(whole[:size]); !errors.Is(err, errAnnouncement) {
			t.Errorf("cut to %d bytes: %v", size, err)
		}
	}
	if _, err := parseAnnouncement(append(bytes.Clone(whole), 0)); !errors.Is(err, errAnnouncement) {
		t.Errorf("with a byte behind it: %v", err)
	}
	for bit := range 8 * len(whole) {
		b := bytes.Clone(whole)
		b[bit/8] ^= 1 << (bit % 8)
		_, err := parseAnnouncement(b)
		if err == nil && authentic(b, "s3cret") {
			t.Errorf("bit %d flipped: still authentic", bit)
		}
		if err != nil && !errors.Is(err, errAnnouncement) && !errors.Is(err, errAnnouncementVersion) {
			t.Errorf("bit %d flipped: %v", bit, err)
		}
	}
}

// TestAnnouncementCutTexts cuts and lengthens the texts inside, with lengths
// and HMAC made right again.
func TestAnnouncementCutTexts(t *testing.T) {
	whole := appendAnnouncement(nil, anAnnouncement(), "")
	body := whole[:len(whole)-sha256.Size]
	seal := func(b []byte) []byte {
		binary.BigEndian.PutUint16(b[6:], uint16(len(b)+sha256.Size))
		return append(b, announcementProof(b, "")...)
	}
	for size := announceHead; size < len(body); size++ {
		if _, err := parseAnnouncement(seal(bytes.Clone(body[:size]))); !errors.Is(err, errAnnouncement) {
			t.Errorf("body cut to %d bytes: %v", size, err)
		}
	}
	if _, err := parseAnnouncement(seal(append(bytes.Clone(body), 'x'))); !errors.Is(err, errAnnouncement) {
		t.Errorf("a byte behind the URL: %v", err)
	}
}

func TestAnnouncementRefusesFields(t *testing.T) {
	for name, change := range map[string]func(*announcement){
		"node 0":               func(a *announcement) { a.node = 0 },
		"no name":              func(a *announcement) { a.name = "" },
		"name is not UTF-8":    func(a *announcement) { a.name = "\xff" },
		"no address":           func(a *announcement) { a.raft = "" },
		"no port":              func(a *announcement) { a.raft = "10.0.0.1" },
		"port 0":               func(a *announcement) { a.raft = "10.0.0.1:0" },
		"port too large":       func(a *announcement) { a.raft = "10.0.0.1:65536" },
		"no host":              func(a *announcement) { a.raft = ":9001" },
		"every interface":      func(a *announcement) { a.raft = "0.0.0.0:9001" },
		"every interface, v6":  func(a *announcement) { a.raft = "[::]:9001" },
		"space in the address": func(a *announcement) { a.raft = "a b:9001" },
		"no URL":               func(a *announcement) { a.http = "" },
		"other scheme":         func(a *announcement) { a.http = "file:///etc/passwd" },
		"URL without host":     func(a *announcement) { a.http = "http://" },
		"larger than allowed":  func(a *announcement) { a.http = "http://" + strings.Repeat("x", announceMax) },
	} {
		a := anAnnouncement()
		change(a)
		if _, err := parseAnnouncement(appendAnnouncement(nil, a, "")); !errors.Is(err, errAnnouncement) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzAnnouncement(f *testing.F) {
	f.Add(appendAnnouncement(nil, anAnnouncement(), "s3cret"))
	f.Add(appendAnnouncement(nil, anAnnouncement(), ""))
	f.Add([]byte(announceMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parseAnnouncement(b)
		if err != nil {
			return
		}
		again := appendAnnouncement(nil, a, "")
		if !bytes.Equal(again[:len(again)-sha256.Size], b[:len(b)-sha256.Size]) {
			t.Errorf("%x reads as %+v, which is written as %x", b, a, again)
		}
		if authentic(b, "") != bytes.Equal(again, b) {
			t.Errorf("%x: authentic is %v", b, authentic(b, ""))
		}
	})
}
