package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"
)

// stillLedger answers at once and remembers nothing: what is left is the cost
// of the server.
type stillLedger struct {
	*fakeLedger
	res result
	e   entry
}

func (l *stillLedger) submit(context.Context, *request) (result, error) { return l.res, nil }
func (l *stillLedger) submitAsync(_ *request, done func(result, error)) error {
	done(l.res, nil)
	return nil
}
func (l *stillLedger) confirmRead(context.Context) error   { return nil }
func (l *stillLedger) get([]byte, selector) (entry, error) { return l.e, nil }
func (l *stillLedger) size() uint64                        { return 12345 }

func newStillServer(b *testing.B) *server {
	f := newFakeLedger(b)
	res, err := f.apply(&request{ops: []operation{{kind: opPut, key: []byte(strings.Repeat("k", 32)), ifSeq: noSeq, value: make([]byte, 100)}}})
	if err != nil {
		b.Fatal(err)
	}
	l := &stillLedger{f, res, f.entries[0]}
	return newServerFor(l, l, serverOptions{maxValueSize: 32 << 20, readTimeout: 10 * time.Second, writeTimeout: 30 * time.Second,
		consistency: "linearizable", logger: slog.New(slog.DiscardHandler)})
}

// nullWriter is the least a ResponseWriter can be.
type nullWriter struct{ h http.Header }

func (w *nullWriter) Header() http.Header         { return w.h }
func (w *nullWriter) Write(p []byte) (int, error) { return len(p), nil }
func (w *nullWriter) WriteHeader(int)             {}

func benchHandler(b *testing.B, h http.Handler, method string, body int) {
	conn := &clientConn{}
	r := httptest.NewRequest(method, "/"+strings.Repeat("k", 32), nil)
	r = r.WithContext(context.WithValue(r.Context(), connKey{}, conn))
	w := &nullWriter{http.Header{}}
	value := strings.NewReader(strings.Repeat("v", body))
	b.ReportAllocs()
	for b.Loop() {
		clear(w.h)
		value.Seek(0, io.SeekStart)
		r.Body, r.ContentLength = io.NopCloser(value), int64(body)
		h.ServeHTTP(w, r)
	}
}

func BenchmarkPutHandler(b *testing.B) { benchHandler(b, newStillServer(b), "PUT", 100) }
func BenchmarkGetHandler(b *testing.B) { benchHandler(b, newStillServer(b), "GET", 0) }

// reportCPU makes b report the CPU time of the whole process per operation:
// unlike the wall clock it does not mind what else the machine does.
func reportCPU(b *testing.B) func() {
	start := cpuTime(b)
	return func() { b.ReportMetric(float64(cpuTime(b)-start)/float64(b.N), "cpu-ns/op") }
}

func cpuTime(b *testing.B) int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// benchServer has 8 keep-alive connections send the same request.
func benchServer(b *testing.B, serve func(net.Listener) error, request string) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	go serve(ln)
	b.Cleanup(func() { ln.Close() })
	b.SetParallelism(8)
	b.ReportAllocs()
	defer reportCPU(b)()
	b.RunParallel(func(pb *testing.PB) {
		conn, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			b.Error(err)
			return
		}
		defer conn.Close()
		r := bufio.NewReader(conn)
		for pb.Next() {
			if _, err := io.WriteString(conn, request); err != nil {
				b.Error(err)
				return
			}
			length := 0
			for {
				line, err := r.ReadSlice('\n')
				if err != nil {
					b.Error(err)
					return
				}
				if len(line) == 2 {
					break
				}
				if v, ok := headerValue(line, "content-length"); ok {
					n, _ := parseNumber(v)
					length = int(n)
				}
			}
			r.Discard(length)
		}
	})
}

var (
	benchGet = "GET /" + strings.Repeat("k", 32) + " HTTP/1.1\r\nHost: x\r\nUser-Agent: bench\r\n\r\n"
	benchPut = "PUT /" + strings.Repeat("k", 32) + " HTTP/1.1\r\nHost: x\r\nUser-Agent: bench\r\nContent-Length: 100\r\n\r\n" + strings.Repeat("v", 100)
)

func bareServer() *http.Server {
	return &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.WriteHeader(204)
	})}
}

func BenchmarkPutBare(b *testing.B)   { benchServer(b, bareServer().Serve, benchPut) }
func BenchmarkPutServer(b *testing.B) { benchServer(b, newStillServer(b).serve, benchPut) }
func BenchmarkGetBare(b *testing.B)   { benchServer(b, bareServer().Serve, benchGet) }
func BenchmarkGetServer(b *testing.B) { benchServer(b, newStillServer(b).serve, benchGet) }

func BenchmarkScanOp(b *testing.B) {
	text := []byte(fmt.Sprintf(`{"op":"put","key":%q,"value":%q}`, strings.Repeat("k", 32), strings.Repeat("v", 100)))
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		var o operation
		s := opScanner{b: text}
		if err := s.op(&o); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkStream reports the time per line of POST /batch.
func BenchmarkStream(b *testing.B) {
	s := newStillServer(b)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	go s.serve(ln)
	defer ln.Close()
	line := fmt.Sprintf("{\"op\":\"put\",\"key\":%q,\"value\":%q}\n", strings.Repeat("k", 32), strings.Repeat("v", 100))
	b.ReportAllocs()
	b.ResetTimer()
	defer reportCPU(b)()
	body := io.LimitReader(&repeater{strings.Repeat(line, 1000), 0}, int64(b.N)*int64(len(line)))
	res, err := http.Post("http://"+ln.Addr().String()+"/batch", "application/x-ndjson", body)
	if err != nil {
		b.Fatal(err)
	}
	defer res.Body.Close()
	lines := 0
	buf := make([]byte, 64<<10)
	for {
		n, err := res.Body.Read(buf)
		lines += strings.Count(string(buf[:n]), "\n")
		if err != nil {
			break
		}
	}
	if lines != b.N {
		b.Fatalf("%d lines, want %d", lines, b.N)
	}
}

// repeater reads the same text for ever.
type repeater struct {
	text string
	at   int
}

func (r *repeater) Read(p []byte) (int, error) {
	n := copy(p, r.text[r.at:])
	r.at = (r.at + n) % len(r.text)
	return n, nil
}
