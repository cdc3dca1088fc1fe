package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"
)

// This file owns the announcements that nodes send to each other over UDP so
// that they find each other. One datagram is one announcement. All integers are
// big-endian.
//
// # Announcement (version 1)
//
//	offset  size  field
//	     0     4  magic: 53 43 52 44 ("SCRD")
//	     4     2  version: 1
//	     6     2  length of the datagram, HMAC included; at most 1024.
//	              Magic, version and length stay as they are in every version
//	     8    16  cluster id; zero while the sender's cluster is not formed
//	    24     8  node id, not zero
//	    32     8  incarnation
//	    40     8  sequence: grows with every datagram of this node and incarnation,
//	              over restarts too: it begins with the Unix time in µs
//	    48     8  Unix time in ms at which it was sent
//	    56     1  length of the cluster's name (1 to 255), then the name, UTF-8
//	     .     2  length of the internal address, then it: host:port
//	     .     2  length of the client URL, then it: http:// or https://
//	     .    32  HMAC-SHA256(secret, "scribe discovery" ‖ everything before)
//
// Nothing stands between the URL and the HMAC, and nothing after it. Who knows
// the secret can make up any announcement, so all that one can do is to suggest
// where to ask; who can guess the secret can find it from a single datagram, so
// it should be drawn at random.

// announcement is what one datagram says.
type announcement struct {
	cluster     [16]byte // zero: not formed
	node        uint64
	incarnation uint64
	sequence    uint64
	time        int64  // Unix ms
	name        string // of the cluster
	raft        string // host:port of the internal port
	http        string // URL of the client port
}

// Part of the format; never change, add a version.
const (
	announceMagic   = "SCRD"
	announceVersion = 1
	announceHead    = 8    // bytes that are the same in every version
	announceFixed   = 57   // bytes before the name
	announceMax     = 1024 // bytes, of any version
	announceProof   = "scribe discovery"
)

var (
	// errAnnouncement is wrapped by every error about bytes that are no announcement.
	errAnnouncement = errors.New("not an announcement")
	// errAnnouncementVersion is wrapped by errors about announcements of another version.
	errAnnouncementVersion = errors.New("announcement of another version")
)

// formed reports whether the sender belongs to a cluster already.
func (a *announcement) formed() bool { return a.cluster != [16]byte{} }

// appendAnnouncement appends the datagram of a, which must be valid.
func appendAnnouncement(b []byte, a *announcement, secret string) []byte {
	start := len(b)
	b = append(b, announceMagic...)
	b = binary.BigEndian.AppendUint16(b, announceVersion)
	b = binary.BigEndian.AppendUint16(b, uint16(announceFixed+len(a.name)+2+len(a.raft)+2+len(a.http)+sha256.Size))
	b = append(b, a.cluster[:]...)
	b = binary.BigEndian.AppendUint64(b, a.node)
	b = binary.BigEndian.AppendUint64(b, a.incarnation)
	b = binary.BigEndian.AppendUint64(b, a.sequence)
	b = binary.BigEndian.AppendUint64(b, uint64(a.time))
	b = append(b, byte(len(a.name)))
	b = append(b, a.name...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(a.raft)))
	b = append(b, a.raft...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(a.http)))
	b = append(b, a.http...)
	return append(b, announcementProof(b[start:], secret)...)
}

// announcementProof returns the HMAC over what precedes it.
func announcementProof(b []byte, secret string) []byte {
	h := hmac.New(sha256.New, []byte(secret))
	h.Write([]byte(announceProof))
	h.Write(b)
	return h.Sum(nil)
}

// authentic tells whether the datagram b, which parses, was made by one who
// knows the secret.
func authentic(b []byte, secret string) bool {
	body, proof := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	return hmac.Equal(proof, announcementProof(body, secret))
}

// parseAnnouncement reads a whole datagram. It says nothing about who made it:
// that is authentic.
func parseAnnouncement(b []byte) (*announcement, error) {
	if len(b) < announceHead || string(b[:4]) != announceMagic {
		return nil, fmt.Errorf("%w: %d bytes beginning with % x", errAnnouncement, len(b), b[:min(len(b), 4)])
	}
	if v := binary.BigEndian.Uint16(b[4:]); v != announceVersion {
		return nil, fmt.Errorf("%w: version is %d, this program reads %d", errAnnouncementVersion, v, announceVersion)
	}
	if size := int(binary.BigEndian.Uint16(b[6:])); size != len(b) || size > announceMax || size < announceFixed+sha256.Size {
		return nil, fmt.Errorf("%w: length is %d, the datagram has %d bytes", errAnnouncement, size, len(b))
	}
	a := &announcement{
		cluster:     [16]byte(b[8:]),
		node:        binary.BigEndian.Uint64(b[24:]),
		incarnation: binary.BigEndian.Uint64(b[32:]),
		sequence:    binary.BigEndian.Uint64(b[40:]),
		time:        int64(binary.BigEndian.Uint64(b[48:])),
	}
	r := announcementReader{rest: b[announceFixed-1 : len(b)-sha256.Size]}
	a.name, a.raft, a.http = r.text(1), r.text(2), r.text(2)
	if r.short || len(r.rest) > 0 {
		return nil, fmt.Errorf("%w: its texts do not fill %d bytes", errAnnouncement, len(b))
	}
	return a, a.validate()
}

// announcementReader takes texts off the front of rest.
type announcementReader struct {
	rest  []byte
	short bool // one did not fit
}

// text returns the next text, whose length takes so many bytes.
func (r *announcementReader) text(width int) string {
	size := 0
	for i := 0; i < width && i < len(r.rest); i++ {
		size = size<<8 | int(r.rest[i])
	}
	if len(r.rest) < width+size {
		r.short = true
		return ""
	}
	s := string(r.rest[width : width+size])
	r.rest = r.rest[width+size:]
	return s
}

// validate reports the first field that no announcement can have.
func (a *announcement) validate() error {
	u, err := url.Parse(a.http)
	switch {
	case a.node == 0:
		return fmt.Errorf("%w: node id is 0", errAnnouncement)
	case a.name == "" || len(a.name) > 255 || !utf8.ValidString(a.name):
		return fmt.Errorf("%w: cluster name is %.40q", errAnnouncement, a.name)
	case !reachable(a.raft):
		return fmt.Errorf("%w: internal address is %.80q, want host:port", errAnnouncement, a.raft)
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		return fmt.Errorf("%w: client URL is %.80q", errAnnouncement, a.http)
	}
	return nil
}

// reachable tells whether addr is host:port that one could connect to.
func reachable(addr string) bool {
	host, text, err := net.SplitHostPort(addr)
	if err != nil || host == "" || !utf8.ValidString(host) || strings.ContainsAny(host, " \t\r\n/@") {
		return false
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		return false
	}
	port, err := strconv.ParseUint(text, 10, 16)
	return err == nil && port > 0
}
