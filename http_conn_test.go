package main

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
)

// FuzzHeadWatch: the watch sees a stream of requests as net/http does, in
// whatever pieces it arrives.
func FuzzHeadWatch(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"PUT / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\n\r\n",
		"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x=1\r\nabc\r\n0\r\nT: x\r\n\r\nGET / HTTP/1.1\r\n\r\n",
		"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
		"GET / HTTP/1.1\nA: b\n\n", "GET / HTTP/1.1\r\nA: b\r\n c: d\r\n\r\n",
	} {
		f.Add(s, uint8(1))
		f.Add(s, uint8(200))
	}
	f.Fuzz(func(t *testing.T, stream string, step uint8) {
		whole, pieces := &headWatch{}, &headWatch{}
		whole.feed([]byte(stream))
		for rest := stream; rest != ""; {
			n := min(int(step)+1, len(rest))
			pieces.feed([]byte(rest[:n]))
			rest = rest[n:]
		}
		if whole.seen != pieces.seen || whole.fault != pieces.fault {
			t.Fatalf("whole: %d heads, %q; in pieces of %d: %d heads, %q", whole.seen, whole.fault, int(step)+1, pieces.seen, pieces.fault)
		}
		// What net/http reads without the watch objecting, both frame alike.
		r := bufio.NewReader(strings.NewReader(stream))
		for n := uint64(1); ; n++ {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			if whole.seen < n {
				t.Fatalf("net/http reads request %d, the watch saw %d heads", n, whole.seen)
			}
			if whole.fault != "" && whole.seen == n {
				return
			}
			if _, err := io.Copy(io.Discard, req.Body); err != nil {
				return
			}
		}
	})
}

func TestHeadWatchFaults(t *testing.T) {
	for head, want := range map[string]string{
		"PUT / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n":    "Content-Length together",
		"PUT / HTTP/1.1\r\nTRANSFER-ENCODING:x\r\ncontent-length:\t3 \r\n\r\n":         "Content-Length together",
		"PUT / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n":             "more than one",
		"PUT / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n":                         "HTTP/1.0",
		"PUT / HTTP/1.1\r\nA: b\r\n\tc\r\n\r\n":                                        "second line",
		"PUT / HTTP/1.1\r\nA: b\n\r\n":                                                 "LF without CR",
		"PUT / HTTP/1.1\n\r\n":                                                         "LF without CR",
		"PUT / HTTP/1.1\r\nA: b\r\n\n":                                                 "LF without CR",
		"PUT / HTTP/1.1\r\nContent-Length: 3\r\nContent-Lengthy: 3\r\n\r\n":            "",
		"PUT / HTTP/1.1\r\nX: Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n": "",
	} {
		h := &headWatch{}
		h.feed([]byte("PUT / HTTP/1.1\r\nContent-Length: 2\r\n\r\n\n\n" + head))
		if h.seen != 2 || !strings.Contains(h.fault, want) || (want == "") != (h.fault == "") {
			t.Errorf("%q: %d heads, fault %q, want %q", head, h.seen, h.fault, want)
		}
	}
}

// TestWatchedLineBound: the watch does not keep what never becomes a line.
func TestWatchedLineBound(t *testing.T) {
	h := &headWatch{}
	for range 100 {
		h.feed(bytes.Repeat([]byte{'x'}, 4096))
	}
	if !h.stopped || len(h.partial) > maxWatchedLine+4096 {
		t.Errorf("stopped %v with %d bytes kept", h.stopped, len(h.partial))
	}
}

// TestSplice: a reply that goes past net/http is framed as its own would be.
func TestSplice(t *testing.T) {
	s := newTestServer(t, nil)
	for _, size := range []int{0, 1, maxSpliced - 1, maxSpliced, maxSpliced + 1} {
		s.do("PUT", "/a", strings.Repeat("v", size))
		for request, want := range map[string]struct {
			proto  string
			closes bool
		}{
			"GET /a HTTP/1.1\r\nHost: x\r\n\r\n":                           {"HTTP/1.1", false},
			"GET /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc":   {"HTTP/1.1", false},
			"GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n":      {"HTTP/1.1", true},
			"GET /a HTTP/1.0\r\nHost: x\r\n\r\n":                           {"HTTP/1.0", true},
			"GET /a HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\n\r\n": {"HTTP/1.0", false},
		} {
			conn := s.dial()
			r := bufio.NewReader(conn)
			for range 2 {
				io.WriteString(conn, request)
				res, err := http.ReadResponse(r, nil)
				if err != nil {
					t.Fatalf("%d bytes, %q: %v", size, request, err)
				}
				body, err := io.ReadAll(res.Body)
				if err != nil || len(body) != size || res.Proto != want.proto || res.Close != want.closes || res.Header.Get("Date") == "" {
					t.Errorf("%d bytes, %q: %s with %d bytes, closes %v, %v", size, request, res.Proto, len(body), res.Close, err)
				}
				for name, lines := range res.Header {
					if len(lines) != 1 {
						t.Errorf("%d bytes, %q: %s is %q", size, request, name, lines)
					}
				}
				if want.closes {
					if _, err := r.ReadByte(); err != io.EOF {
						t.Errorf("%d bytes, %q: %v, want the end", size, request, err)
					}
					break
				}
			}
			conn.Close()
		}
	}
}

// TestSpliceLines: what is stored cannot add a header to a reply.
func TestSpliceLines(t *testing.T) {
	s := newTestServer(t, nil)
	s.f.apply(&request{ops: []operation{{kind: opPut, key: []byte("a"), contentType: "a\r\nSet-Cookie: x\r\n\r\nb", ifSeq: noSeq}}})
	if a := s.do("GET", "/a", ""); a.Get("Set-Cookie") != "" || a.body != "" || a.Get("Content-Type") != "a  Set-Cookie: x    b" {
		t.Errorf("%v %q", a.Header, a.body)
	}
}

// TestSpliceUnknownForm: rather no reply than a wrong one.
func TestSpliceUnknownForm(t *testing.T) {
	for _, p := range []string{"", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 01\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nbody", "body"} {
		c := &clientConn{}
		c.splice(&call{}, reply{status: 200, body: []byte("x")})
		if _, err := c.Write([]byte(p)); err != errSplice {
			t.Errorf("%q: %v, want errSplice", p, err)
		}
	}
}
