package main

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// goldenPreamble is a hello that every version 1 node must be able to read.
var goldenPreamble = preamble{
	kind:   kindRaft,
	secret: true,
	nonce:  [32]byte{0: 0xa0, 31: 0xaf},
	identity: identity{
		cluster:     [16]byte{0: 0xc0, 15: 0xcf},
		name:        "prod",
		node:        7,
		incarnation: 0x0123456789abcdef,
	},
}

const goldenPreambleHex = "53435242" + "0001" + "0055" + "01" + "00" + "0001" +
	"c00000000000000000000000000000cf" + "0000000000000007" + "0123456789abcdef" +
	"a0000000000000000000000000000000000000000000000000000000000000af" +
	"04" + "70726f64" + "59a7c24a"

func TestPreambleGolden(t *testing.T) {
	got := appendPreamble(nil, &goldenPreamble)
	if hex.EncodeToString(got) != goldenPreambleHex {
		t.Errorf("appendPreamble = %x\nwant %s", got, goldenPreambleHex)
	}
	want, _ := hex.DecodeString(goldenPreambleHex)
	p, err := parsePreamble(want)
	if err != nil || p != goldenPreamble {
		t.Errorf("parsePreamble = %+v, %v", p, err)
	}
}

func TestPreambleDamaged(t *testing.T) {
	b := appendPreamble(nil, &goldenPreamble)
	for n := range b {
		if _, err := parsePreamble(b[:n]); !errors.Is(err, errCorrupt) {
			t.Errorf("cut at %d: error is %v, want errCorrupt", n, err)
		}
		if _, _, err := readPreamble(bytes.NewReader(b[:n])); err == nil {
			t.Errorf("cut at %d: read without an error", n)
		}
		for bit := range 8 {
			bad := bytes.Clone(b)
			bad[n] ^= 1 << bit
			if p, err := parsePreamble(bad); err == nil {
				t.Errorf("bit %d of byte %d flipped: parsed as %+v", bit, n, p)
			}
		}
	}
	if _, err := parsePreamble(append(b, 0)); !errors.Is(err, errCorrupt) {
		t.Errorf("a byte too many: error is %v, want errCorrupt", err)
	}
}

// sum puts the right checksum at the end of a preamble that a test changed.
func sum(b []byte) []byte {
	return binary.BigEndian.AppendUint32(b[:len(b)-4], crc32.Checksum(b[:len(b)-4], castagnoli))
}

func TestPreambleRejectsFields(t *testing.T) {
	for _, c := range []struct {
		field string
		at    int
		value byte
		want  error
	}{
		{"magic", 0, 'G', errCorrupt},
		{"version", 5, 2, errOtherVersion},
		{"kind", 8, 4, errCorrupt},
		{"status", 9, 8, errCorrupt},
		{"flags", 11, 2, errCorrupt},
		{"length of the name", 76, 3, errCorrupt},
		{"name", 77, 0xff, errCorrupt},
	} {
		b := appendPreamble(nil, &goldenPreamble)
		b[c.at] = c.value
		if _, err := parsePreamble(sum(b)); !errors.Is(err, c.want) {
			t.Errorf("%s: error is %v, want %v", c.field, err, c.want)
		}
	}
}

func FuzzPreamble(f *testing.F) {
	f.Add(appendPreamble(nil, &goldenPreamble))
	f.Add(appendPreamble(nil, &preamble{kind: kindHTTP, status: statusNotProved}))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		raw, p, err := readPreamble(r)
		if err != nil {
			return
		}
		if again := appendPreamble(nil, &p); !bytes.Equal(again, raw) || !bytes.Equal(raw, b[:len(b)-r.Len()]) {
			t.Errorf("%x was read as %x and written as %x", b, raw, again)
		}
	})
}

// Two nodes of one cluster, and some who are not.
var (
	prodID     = [16]byte([]byte("the prod cluster"))
	nodeA      = identity{cluster: prodID, name: "prod", node: 1, incarnation: 0xa}
	nodeB      = identity{cluster: prodID, name: "prod", node: 2, incarnation: 0xb}
	nodeNew    = identity{name: "prod", node: 3, incarnation: 0xc}
	nodeDev    = identity{cluster: prodID, name: "dev", node: 4, incarnation: 0xd}
	nodeForked = identity{cluster: [16]byte{2}, name: "prod", node: 5, incarnation: 0xe}
)

// exchange runs both halves against each other and returns what each said.
// change sees, and may alter, what goes over the wire.
func exchange(t *testing.T, dialer, acceptor identity, kind connKind, dialerSecret, acceptorSecret string, wait time.Duration, change func(fromDialer bool, b []byte)) (greeted, admitted error) {
	t.Helper()
	d, a := net.Pipe()
	d.SetDeadline(time.Now().Add(wait))
	a.SetDeadline(time.Now().Add(wait))
	done := make(chan error)
	go func() {
		hello, err := admit(&changedConn{a, false, change}, acceptor, acceptorSecret)
		if err == nil && (hello.identity != dialer || hello.kind != kind) {
			t.Errorf("admitted %v of kind %d, want %v of kind %d", hello.identity, hello.kind, dialer, kind)
		}
		a.Close()
		done <- err
	}()
	peer, greeted := greet(&changedConn{d, true, change}, dialer, kind, dialerSecret)
	if greeted == nil && peer != acceptor {
		t.Errorf("greeted %v, want %v", peer, acceptor)
	}
	d.Close()
	return greeted, <-done
}

// changedConn lets a test alter what is written.
type changedConn struct {
	io.ReadWriter
	fromDialer bool
	change     func(fromDialer bool, b []byte)
}

func (c *changedConn) Write(b []byte) (int, error) {
	b = bytes.Clone(b)
	if c.change != nil {
		c.change(c.fromDialer, b)
	}
	return c.ReadWriter.Write(b)
}

func TestExchange(t *testing.T) {
	const authFailed = "refused: authentication failed"
	for _, c := range []struct {
		name             string
		dialer, acceptor identity
		kind             connKind
		secretD, secretA string
		want             string // in both errors; "" = welcome
	}{
		{"same cluster, raft", nodeA, nodeB, kindRaft, "", "", ""},
		{"same cluster, http", nodeA, nodeB, kindHTTP, "", "", ""},
		{"same secret", nodeA, nodeB, kindRaft, "s", "s", ""},
		{"dialer not formed, http", nodeNew, nodeB, kindHTTP, "", "", ""},
		{"acceptor not formed, http", nodeB, nodeNew, kindHTTP, "s", "s", ""},
		{"dialer not formed, raft", nodeNew, nodeB, kindRaft, "", "", "this needs a formed cluster"},
		{"acceptor not formed, raft", nodeB, nodeNew, kindRaft, "", "", "this needs a formed cluster"},
		{"neither formed, raft", nodeNew, nodeNew, kindRaft, "", "", "this needs a formed cluster"},
		{"other name", nodeDev, nodeB, kindHTTP, "", "", "the cluster names differ"},
		{"other name, same secret", nodeDev, nodeB, kindHTTP, "s", "s", "the cluster names differ"},
		{"other cluster", nodeForked, nodeB, kindHTTP, "", "", "the clusters differ"},
		{"other cluster, raft, same secret", nodeForked, nodeB, kindRaft, "s", "s", "the clusters differ"},
		{"other secret", nodeA, nodeB, kindRaft, "s", "S", authFailed},
		{"secret at the dialer only", nodeA, nodeB, kindRaft, "s", "", authFailed},
		{"secret at the acceptor only", nodeA, nodeB, kindRaft, "", "s", authFailed},
		{"other secret and name", nodeDev, nodeB, kindRaft, "s", "S", authFailed},
	} {
		greeted, admitted := exchange(t, c.dialer, c.acceptor, c.kind, c.secretD, c.secretA, 10*time.Second, nil)
		for _, err := range []error{greeted, admitted} {
			switch {
			case c.want == "" && err != nil:
				t.Errorf("%s: %v", c.name, err)
			case c.want == authFailed && (err == nil || err.Error() != authFailed):
				t.Errorf("%s: error is %v, want only %q", c.name, err, authFailed)
			case c.want != "" && (!errors.Is(err, errRefused) || !strings.Contains(err.Error(), c.want)):
				t.Errorf("%s: error is %v, want %q", c.name, err, c.want)
			}
		}
	}
}

func TestExchangeNamesBothSides(t *testing.T) {
	greeted, admitted := exchange(t, nodeDev, nodeB, kindRaft, "", "", 10*time.Second, nil)
	for _, err := range []error{greeted, admitted} {
		for _, want := range []string{`node 4 of "dev"`, `node 2 of "prod" (cluster 7468652070726f6420636c7573746572)`} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("error is %v, want it to name %s", err, want)
			}
		}
	}
}

// A peer of another version must learn why it is not heard, whichever side it is on.
func TestExchangeOtherVersion(t *testing.T) {
	for _, secret := range []string{"", "s"} {
		for _, newer := range []bool{true, false} {
			first := true
			greeted, admitted := exchange(t, nodeA, nodeB, kindHTTP, secret, secret, 10*time.Second, func(fromDialer bool, b []byte) {
				if fromDialer == newer && first {
					first = false
					binary.BigEndian.PutUint16(b[4:], 2)
				}
			})
			if newer && !(errors.Is(greeted, errOtherVersion) && errors.Is(admitted, errOtherVersion)) {
				t.Errorf("dialer of version 2, secret %q: errors are %v and %v", secret, greeted, admitted)
			}
			if !newer && !errors.Is(greeted, errOtherVersion) {
				t.Errorf("acceptor of version 2, secret %q: error is %v", secret, greeted)
			}
		}
	}
}

// Whoever has no secret must not learn whom it has reached.
func TestExchangeHidesIdentityFromStrangers(t *testing.T) {
	var sent []byte
	exchange(t, nodeA, nodeB, kindHTTP, "wrong", "right", 10*time.Second, func(fromDialer bool, b []byte) {
		if !fromDialer {
			sent = append(sent, b...)
		}
	})
	if bytes.Contains(sent, []byte(nodeB.name)) || bytes.Contains(sent, nodeB.cluster[:8]) {
		t.Errorf("the acceptor told a stranger %x", sent)
	}
}

// With a secret, one changed byte anywhere, even under a right checksum, must
// leave no side believing that all is well with what that side received.
func TestExchangeTampered(t *testing.T) {
	t.Parallel()
	sizes := map[bool]int{}
	exchange(t, nodeA, nodeB, kindHTTP, "s", "s", 10*time.Second, func(fromDialer bool, b []byte) { sizes[fromDialer] += len(b) })
	for _, fromDialer := range []bool{true, false} {
		for at := range sizes[fromDialer] {
			offset := 0
			greeted, admitted := exchange(t, nodeA, nodeB, kindHTTP, "s", "s", 100*time.Millisecond, func(from bool, b []byte) {
				if from != fromDialer {
					return
				}
				if i := at - offset; i >= 0 && i < len(b) {
					b[i] ^= 1
					if n, err := preambleSize(b); err == nil && n <= len(b) && i < n-4 {
						copy(b, sum(b[:n:n]))
					}
				}
				offset += len(b)
			})
			if fromDialer && admitted == nil || !fromDialer && greeted == nil {
				t.Errorf("byte %d changed (from dialer: %v): errors are %v and %v", at, fromDialer, greeted, admitted)
			}
		}
	}
}

// A recorded dialer is worth nothing against the next nonce.
func TestExchangeReplayed(t *testing.T) {
	var recorded [][]byte
	exchange(t, nodeA, nodeB, kindHTTP, "s", "s", 10*time.Second, func(fromDialer bool, b []byte) {
		if fromDialer {
			recorded = append(recorded, bytes.Clone(b))
		}
	})
	_, admitted := exchange(t, nodeA, nodeB, kindHTTP, "s", "s", 10*time.Second, func(fromDialer bool, b []byte) {
		if fromDialer {
			copy(b, recorded[0])
			recorded = recorded[1:]
		}
	})
	if !errors.Is(admitted, errNotProved) {
		t.Errorf("replayed: error is %v, want errNotProved", admitted)
	}
}
