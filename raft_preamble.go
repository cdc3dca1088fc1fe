package main

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"unicode/utf8"
)

// This file owns the first bytes of every connection between two nodes: who
// calls, who answers, and whether both belong together. All integers are
// big-endian.
//
// # Preamble (version 1), the same for both directions
//
//	offset  size  field
//	     0     4  magic: 53 43 52 42 ("SCRB")
//	     4     2  version: 1
//	     6     2  length of the preamble, checksum included; at most 1024.
//	              Magic, version and length stay as they are in every version
//	     8     1  kind: 1 Raft stream, 2 internal HTTP; an answer repeats it
//	     9     1  status: 0 hello (the dialer), the rest below (the acceptor)
//	    10     2  flags: bit 0 = the sender has a secret; the rest are 0
//	    12    16  cluster id; zero while the sender's cluster is not formed
//	    28     8  node id
//	    36     8  incarnation
//	    44    32  nonce, random
//	    76     1  length of the cluster's name (0 to 255), then the name, UTF-8
//	     .     4  CRC32C of everything before
//
// # Exchange
//
//	dialer    hello
//	acceptor  answer: status welcome, or why not; a refused connection is closed
//
// When both have a secret, three more steps stand between the two:
//
//	dialer    hello
//	acceptor  challenge: status prove, a nonce, no identity
//	dialer    32 bytes: HMAC-SHA256(secret, "scribe dialer" ‖ hello ‖ challenge)
//	acceptor  answer, then HMAC-SHA256(secret, "scribe acceptor" ‖ hello ‖ challenge ‖ answer)
//
// The proofs cover whole preambles, so they bind kind, names, clusters, node
// ids and both nonces. One side with a secret and one without, or a wrong
// proof, end in status 7 without an identity. After welcome the bytes belong
// to Raft's stream layer or to HTTP. The secret keeps strangers out; it does
// not hide what is said, nor stop one who can alter packets later: that is TLS.

// connKind says what a connection carries. Part of the format.
type connKind uint8

const (
	kindRaft connKind = 1
	kindHTTP connKind = 2
)

// connStatus is the acceptor's word on a connection. Part of the format.
type connStatus uint8

const (
	statusHello        connStatus = 0 // from the dialer
	statusWelcome      connStatus = 1
	statusProve        connStatus = 2 // the dialer must show that it knows the secret
	statusOtherVersion connStatus = 3
	statusOtherName    connStatus = 4
	statusOtherCluster connStatus = 5
	statusNotFormed    connStatus = 6 // Raft is spoken only inside a formed cluster
	statusNotProved    connStatus = 7
)

// Part of the format; never change, add a version.
const (
	preambleMagic   = "SCRB"
	preambleVersion = 1
	preambleHead    = 8    // bytes that are the same in every version
	preambleFixed   = 77   // bytes before the name
	preambleMax     = 1024 // bytes, of any version
	flagSecret      = 1
	dialerProof     = "scribe dialer"
	acceptorProof   = "scribe acceptor"
)

var (
	// errRefused is wrapped by every error that says two nodes do not belong together.
	errRefused = errors.New("refused")
	// errNotProved is all that either side says about a missing or wrong secret.
	errNotProved = fmt.Errorf("%w: authentication failed", errRefused)
	// errOtherVersion is wrapped by errors about a peer of another program version.
	errOtherVersion = fmt.Errorf("%w: other protocol version", errRefused)
)

// identity is who a node is to its peers.
type identity struct {
	cluster     [16]byte // zero until the cluster is formed
	name        string   // [cluster] name
	node        uint64
	incarnation uint64 // random, made together with the data directory
}

// formed reports whether the node belongs to a cluster already.
func (i identity) formed() bool { return i.cluster != [16]byte{} }

func (i identity) String() string {
	cluster := "not formed"
	if i.formed() {
		cluster = hex.EncodeToString(i.cluster[:])
	}
	return fmt.Sprintf("node %d of %q (cluster %s)", i.node, i.name, cluster)
}

// preamble is one message of the exchange.
type preamble struct {
	kind   connKind
	status connStatus
	secret bool // the sender has one
	nonce  [32]byte
	identity
}

// validate reports the first field that no preamble can have.
func (p *preamble) validate() error {
	switch {
	case p.kind != kindRaft && p.kind != kindHTTP:
		return fmt.Errorf("preamble: kind is %d, want 1 or 2", p.kind)
	case p.status > statusNotProved:
		return fmt.Errorf("preamble: status is %d, want 0 to %d", p.status, statusNotProved)
	case len(p.name) > maxLabelSize || !utf8.ValidString(p.name):
		return fmt.Errorf("preamble: name %.40q is not UTF-8 of at most %d bytes", p.name, maxLabelSize)
	}
	return nil
}

// appendPreamble appends the bytes of p, which must be valid.
func appendPreamble(b []byte, p *preamble) []byte {
	start := len(b)
	b = append(b, preambleMagic...)
	b = binary.BigEndian.AppendUint16(b, preambleVersion)
	b = binary.BigEndian.AppendUint16(b, uint16(preambleFixed+len(p.name)+4))
	b = append(b, byte(p.kind), byte(p.status))
	var flags uint16
	if p.secret {
		flags |= flagSecret
	}
	b = binary.BigEndian.AppendUint16(b, flags)
	b = append(b, p.cluster[:]...)
	b = binary.BigEndian.AppendUint64(b, p.node)
	b = binary.BigEndian.AppendUint64(b, p.incarnation)
	b = append(b, p.nonce[:]...)
	b = append(b, byte(len(p.name)))
	b = append(b, p.name...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// parsePreamble reads the bytes of exactly one preamble.
func parsePreamble(b []byte) (preamble, error) {
	var p preamble
	n, err := preambleSize(b)
	if err != nil {
		return p, err
	}
	if v := binary.BigEndian.Uint16(b[4:]); v != preambleVersion {
		return p, fmt.Errorf("%w: the peer speaks version %d, this node %d", errOtherVersion, v, preambleVersion)
	}
	if n != len(b) || n < preambleFixed+4 {
		return p, fmt.Errorf("%w: preamble has %d bytes, says %d", errCorrupt, len(b), n)
	}
	want := binary.BigEndian.Uint32(b[n-4:])
	if got := crc32.Checksum(b[:n-4], castagnoli); got != want {
		return p, fmt.Errorf("%w: preamble has CRC %08x, says %08x", errCorrupt, got, want)
	}
	flags := binary.BigEndian.Uint16(b[10:])
	if flags&^flagSecret != 0 || int(b[preambleFixed-1]) != n-preambleFixed-4 {
		return p, fmt.Errorf("%w: preamble has flags %04x and a name of %d in %d bytes", errCorrupt, flags, b[preambleFixed-1], n)
	}
	p.kind, p.status, p.secret = connKind(b[8]), connStatus(b[9]), flags&flagSecret != 0
	copy(p.cluster[:], b[12:])
	p.node = binary.BigEndian.Uint64(b[28:])
	p.incarnation = binary.BigEndian.Uint64(b[36:])
	copy(p.nonce[:], b[44:])
	p.name = string(b[preambleFixed : n-4])
	if err := p.validate(); err != nil {
		return preamble{}, fmt.Errorf("%w: %w", errCorrupt, err)
	}
	return p, nil
}

// preambleSize returns how long the preamble that starts with b is.
func preambleSize(b []byte) (int, error) {
	if len(b) < preambleHead {
		return 0, fmt.Errorf("%w: preamble has %d bytes, want at least %d", errCorrupt, len(b), preambleHead)
	}
	if string(b[:4]) != preambleMagic {
		return 0, fmt.Errorf("%w: connection starts with %x, not with a preamble", errCorrupt, b[:4])
	}
	n := int(binary.BigEndian.Uint16(b[6:]))
	if n < preambleHead || n > preambleMax {
		return 0, fmt.Errorf("%w: preamble says it has %d bytes, want at most %d", errCorrupt, n, preambleMax)
	}
	return n, nil
}

// readPreamble takes one preamble, and not a byte more, from r. It takes the
// whole of another version's too, so that an answer can follow.
func readPreamble(r io.Reader) ([]byte, preamble, error) {
	b := make([]byte, preambleHead, preambleMax)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, preamble{}, fmt.Errorf("reading preamble: %w", err)
	}
	n, err := preambleSize(b)
	if err != nil {
		return nil, preamble{}, err
	}
	b = b[:n]
	if _, err := io.ReadFull(r, b[preambleHead:]); err != nil {
		return nil, preamble{}, fmt.Errorf("reading preamble: %w", err)
	}
	p, err := parsePreamble(b)
	return b, p, err
}

// newNonce returns 32 random bytes that no other exchange has.
func newNonce() (n [32]byte) {
	rand.Read(n[:]) // never fails: crypto/rand ends the program instead
	return n
}

// proof shows to one who knows the secret that its sender knows it too and
// means these preambles.
func proof(secret, label string, preambles ...[]byte) []byte {
	mac := hmac.New(sha256.New, []byte(secret))
	io.WriteString(mac, label)
	for _, p := range preambles {
		mac.Write(p) // each carries its length: no two lists give the same bytes
	}
	return mac.Sum(nil)
}

// greet is the dialer's half of the exchange; it returns who answered.
func greet(c io.ReadWriter, us identity, kind connKind, secret string) (identity, error) {
	hello := appendPreamble(nil, &preamble{kind: kind, secret: secret != "", nonce: newNonce(), identity: us})
	if _, err := c.Write(hello); err != nil {
		return identity{}, fmt.Errorf("sending preamble: %w", err)
	}
	raw, answer, err := readPreamble(c)
	if err != nil {
		return identity{}, err
	}
	// Without a proof nothing but its version is believed of one that should know the secret.
	if answer.status == statusNotProved || (answer.status == statusProve) != (secret != "") && answer.status != statusOtherVersion {
		return identity{}, errNotProved
	}
	if answer.status == statusProve {
		answer, err = proveAndCheck(c, secret, hello, raw)
		if err != nil {
			return identity{}, err
		}
	}
	return answer.identity, refusal(answer.status, us, answer.identity)
}

// proveAndCheck answers the acceptor's challenge and returns its proved answer.
func proveAndCheck(c io.ReadWriter, secret string, hello, challenge []byte) (preamble, error) {
	if _, err := c.Write(proof(secret, dialerProof, hello, challenge)); err != nil {
		return preamble{}, fmt.Errorf("sending proof: %w", err)
	}
	raw, answer, err := readPreamble(c)
	if err != nil {
		return preamble{}, err
	}
	if answer.status == statusNotProved {
		return preamble{}, errNotProved
	}
	if !checkProof(c, proof(secret, acceptorProof, hello, challenge, raw)) {
		return preamble{}, errNotProved
	}
	return answer, nil
}

// checkProof reports whether the next bytes of r are the wanted proof.
func checkProof(r io.Reader, want []byte) bool {
	got := make([]byte, len(want))
	_, err := io.ReadFull(r, got)
	return err == nil && hmac.Equal(got, want)
}

// admit is the acceptor's half of the exchange; it returns the dialer's hello.
func admit(c io.ReadWriter, us identity, secret string) (preamble, error) {
	raw, hello, err := readPreamble(c)
	if errors.Is(err, errOtherVersion) {
		c.Write(appendPreamble(nil, &preamble{kind: kindHTTP, status: statusOtherVersion}))
	}
	if err == nil && hello.status != statusHello {
		err = fmt.Errorf("%w: a connection starts with status %d, want %d", errCorrupt, hello.status, statusHello)
	}
	if err != nil {
		return hello, err
	}
	answer := &preamble{kind: hello.kind, secret: secret != "", nonce: newNonce()}
	var challenge []byte
	if secret != "" || hello.secret {
		answer.status = statusProve
		challenge = appendPreamble(nil, answer)
		if hello.secret != answer.secret || !challengeDialer(c, secret, raw, challenge) {
			answer.status = statusNotProved
			c.Write(appendPreamble(nil, answer))
			return hello, errNotProved
		}
	}
	answer.status, answer.identity = judge(us, &hello), us
	b := appendPreamble(nil, answer)
	if secret != "" {
		b = append(b, proof(secret, acceptorProof, raw, challenge, b)...)
	}
	if _, err := c.Write(b); err != nil {
		return hello, fmt.Errorf("answering preamble: %w", err)
	}
	return hello, refusal(answer.status, us, hello.identity)
}

// challengeDialer reports whether the dialer that said hello knows the secret.
func challengeDialer(c io.ReadWriter, secret string, hello, challenge []byte) bool {
	_, err := c.Write(challenge)
	return err == nil && checkProof(c, proof(secret, dialerProof, hello, challenge))
}

// judge says whether the sender of hello and this node may talk.
func judge(us identity, hello *preamble) connStatus {
	switch {
	case hello.name != us.name:
		return statusOtherName
	case hello.formed() && us.formed() && hello.cluster != us.cluster:
		return statusOtherCluster
	case hello.kind == kindRaft && !(hello.formed() && us.formed()):
		return statusNotFormed
	}
	return statusWelcome
}

// refusal turns a status into an error that names both sides; nil for welcome.
func refusal(s connStatus, us, them identity) error {
	switch s {
	case statusWelcome:
		return nil
	case statusOtherVersion: // whoever answers so in our own version also speaks another
		return errOtherVersion
	case statusOtherName:
		return fmt.Errorf("%w: the peer is %v, this is %v: the cluster names differ", errRefused, them, us)
	case statusOtherCluster:
		return fmt.Errorf("%w: the peer is %v, this is %v: the clusters differ", errRefused, them, us)
	case statusNotFormed:
		return fmt.Errorf("%w: the peer is %v, this is %v: Raft needs a formed cluster on both sides", errRefused, them, us)
	}
	return fmt.Errorf("%w: the peer answered with status %d", errCorrupt, s)
}
