package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// runText runs a command line and returns its exit code and what it printed.
func runText(t *testing.T, stdin string, env []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var out, errs bytes.Buffer
	code = runCommand(ctx, args, strings.NewReader(stdin), &out, &errs, env)
	return code, out.String(), errs.String()
}

func TestRunArguments(t *testing.T) {
	folder := t.TempDir()
	for _, test := range []struct {
		args []string
		code int
		text string // on stdout for code 0, else all of stderr
	}{
		{[]string{"help"}, 0, "  history KEY\n"},
		{[]string{"--help"}, 0, "import FILE.ndjson|-"},
		{[]string{"get", "--help"}, 0, "-version Nth"},
		{[]string{"serve", "-h"}, 0, "-bootstrap"},
		{[]string{"version"}, 0, "scribe-ledger "},
		{[]string{"--version"}, 0, "scribe-ledger "},
		{[]string{"no-such-command"}, 2, "scribe-ledger: unknown command \"no-such-command\"; scribe-ledger help lists them\n"},
		{[]string{"--no-such-flag"}, 2, "scribe-ledger: serve: flag provided but not defined: -no-such-flag\n"},
		{[]string{"serve", "now"}, 2, "scribe-ledger: serve: unexpected argument \"now\"; usage: scribe-ledger serve [--config FILE] [--node-id N] [--bootstrap] [--log-level LEVEL]\n"},
		{[]string{"--config", "/nonexistent.toml"}, 2, "scribe-ledger: /nonexistent.toml: reading the configuration: no such file or directory\n"},
		{[]string{"--log-level", "loud"}, 2, "scribe-ledger: --log-level: log.level: want trace or debug or info or warn or error, got \"loud\"\n"},
		{[]string{"--node-id=0"}, 2, "scribe-ledger: --node-id: node.id: want a whole number from 1 to 9007199254740991, got \"0\"\n"},
		{[]string{"get"}, 2, "scribe-ledger: get: argument missing; usage: scribe-ledger get KEY [--version N] [--seq N] [--at SEQ|TIME] [-o FILE]\n"},
		{[]string{"rm", "a", "b"}, 2, "scribe-ledger: rm: unexpected argument \"b\"; usage: scribe-ledger rm KEY\n"},
		{[]string{"get", "--url", "ftp://x", "a"}, 2, "scribe-ledger: url \"ftp://x\": want http://host:port\n"},
		{[]string{"put", "a", folder}, 2, "scribe-ledger: " + folder + " is a directory\n"},
		{[]string{"import", folder + "/none"}, 2, "scribe-ledger: open " + folder + "/none: no such file or directory\n"},
		{[]string{"export", "--from", "x"}, 2, "scribe-ledger: export: invalid value \"x\" for flag -from: parse error\n"},
		{[]string{"bench", "--op", "sing"}, 2, "scribe-ledger: bench: op \"sing\": want put, get or mixed\n"},
		{[]string{"bench", "--connections", "0"}, 2, "scribe-ledger: bench: connections 0: want 1 to 10000\n"},
		{[]string{"bench", "--batch", "3", "--op", "get"}, 2, "scribe-ledger: bench: batch goes with op put only\n"},
		{[]string{"bench", "--url", "https://x:1"}, 2, "scribe-ledger: bench: url \"https://x:1\": want http://host:port\n"},
		{[]string{"bench", "--key-size", "3"}, 2, "scribe-ledger: bench: key-size 3: want 16 to 1024\n"},
		{[]string{"get", "--url", "http://127.0.0.1:1", "a"}, 1, "scribe-ledger: Get \"http://127.0.0.1:1/kv/a\": dial tcp 127.0.0.1:1: connect: connection refused\n"},
	} {
		code, stdout, stderr := runText(t, "", nil, test.args...)
		if code != test.code {
			t.Errorf("%q: exit code %d, want %d: %s", test.args, code, test.code, stderr)
		}
		if test.code == 0 && (!strings.Contains(stdout, test.text) || stderr != "") {
			t.Errorf("%q: printed %q and %q, want %q", test.args, stdout, stderr, test.text)
		}
		if test.code != 0 && (stderr != test.text || stdout != "") {
			t.Errorf("%q: printed %q and %q, want %q", test.args, stdout, stderr, test.text)
		}
	}
}

// TestRunConfigFaults: one line for each fault, and no data directory.
func TestRunConfigFaults(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	path := writeConfig(t, "[node]\nid = 0\ncolour = 1\n")
	code, _, stderr := runText(t, "", []string{"SCRIBE_NODE_DATA_DIR=" + data, "SCRIBE_TLS_CERT=x"}, "--config", path)
	want := "scribe-ledger: " + path + ":2: node.id: want a whole number from 1 to 9007199254740991, got 0\n" +
		"scribe-ledger: " + path + ":3: unknown key node.colour\n" +
		"scribe-ledger: SCRIBE_TLS_CERT: tls.cert: section [tls] is not served by this version; leave it out or empty\n"
	if code != 2 || stderr != want {
		t.Errorf("exit code %d, printed\n%swant 2 and\n%s", code, stderr, want)
	}
	if _, err := os.Stat(data); err == nil {
		t.Error("the data directory was made")
	}
}

// recordWriter hands on what is written to it line by line.
type recordWriter struct {
	mu    sync.Mutex
	buf   bytes.Buffer
	lines chan string
}

func (w *recordWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf.Write(p)
	for {
		i := bytes.IndexByte(w.buf.Bytes(), '\n')
		if i < 0 {
			return len(p), nil
		}
		w.lines <- string(w.buf.Next(i + 1))
	}
}

// freePort returns a TCP port of loopback that nobody listens on.
func freePort(t *testing.T) int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}

// TestServe: a node starts, says where it is, answers, and ends with 0.
func TestServe(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	env := []string{"SCRIBE_NETWORK_LISTEN_ADDR=127.0.0.1:0", fmt.Sprintf("SCRIBE_NETWORK_RAFT_PORT=%d", freePort(t)),
		"SCRIBE_NODE_DATA_DIR=" + filepath.Join(t.TempDir(), "data"), "SCRIBE_STORAGE_S3_BUCKET=b",
		fmt.Sprintf("SCRIBE_STORAGE_S3_ENDPOINT=http://127.0.0.1:%d", freePort(t))} // nobody answers there
	stderr := &recordWriter{lines: make(chan string, 1000)}
	ended := make(chan int, 1)
	go func() { ended <- runCommand(ctx, nil, strings.NewReader(""), io.Discard, stderr, env) }()

	var url string
	for url == "" {
		select {
		case line := <-stderr.lines:
			var record struct{ Msg, HTTP, Key string }
			if err := json.Unmarshal([]byte(line), &record); err != nil {
				t.Fatalf("not a JSON record: %s", line)
			}
			url = record.HTTP
		case code := <-ended:
			t.Fatalf("ended with %d", code)
		}
	}
	for ready := false; !ready; {
		resp, err := http.Get(url + "/health")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		ready = resp.StatusCode == http.StatusOK
		select {
		case <-ctx.Done():
			t.Fatal("the node does not get ready")
		case <-stderr.lines: // it tells what it does
		case <-time.After(5 * time.Millisecond):
		}
	}

	// A second node on the same port ends with one line.

	code, _, text := runText(t, "", env[1:3:3], "--config", writeConfig(t, "network.listen_addr = '"+strings.TrimPrefix(url, "http://")+"'"))
	if code != 2 || strings.Count(text, "\n") != 1 || !strings.Contains(text, "address already in use") {
		t.Errorf("second node: exit code %d, printed %s", code, text)
	}

	cancel()
	if code := <-ended; code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

// TestServeForever: a node that asks for it is opened again on the same port,
// a stop is orderly, and any other failure ends all at once.
func TestServeForever(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	logger := slog.New(slog.DiscardHandler)
	fatal := errors.New("raft log: fsync: input/output error")
	var addrs []string
	stops := 0
	next := []error{errRestart, fmt.Errorf("transfer hangs: %w", errRestart), fatal}
	start := func(ln net.Listener) (*service, error) {
		addrs = append(addrs, ln.Addr().String())
		failed := make(chan error, 1)
		failed <- next[len(addrs)-1]
		return &service{failed: failed, stop: func() error { stops++; return nil }}, nil
	}
	if err := serveForever(ctx, "127.0.0.1:0", logger, start); err != fatal {
		t.Errorf("ended with %v, want %v", err, fatal)
	}
	if len(addrs) != 3 || addrs[0] != addrs[1] || addrs[1] != addrs[2] || stops != 2 {
		t.Errorf("opened at %q, stopped %d times; want three times the same and 2", addrs, stops)
	}

	stopped, stopNow := context.WithCancel(ctx)
	err := serveForever(stopped, "127.0.0.1:0", logger, func(net.Listener) (*service, error) {
		stopNow()
		return &service{stop: func() error { stops++; return nil }}, nil
	})
	if err != nil || stops != 3 {
		t.Errorf("after a signal: %v, stopped %d times", err, stops)
	}

	broken := errors.New("segment 3: corrupt")
	if err := serveForever(ctx, "127.0.0.1:0", logger, func(net.Listener) (*service, error) { return nil, broken }); err != broken {
		t.Errorf("ended with %v, want %v", err, broken)
	}
	ended := make(chan error, 1)
	ended <- http.ErrHandlerTimeout
	err = serveForever(ctx, "127.0.0.1:0", logger, func(net.Listener) (*service, error) { return &service{ended: ended}, nil })
	if !errors.Is(err, http.ErrHandlerTimeout) {
		t.Errorf("ended with %v", err)
	}
}

func TestParseFlagsAnywhere(t *testing.T) {
	for _, test := range []struct{ args, others, from string }{
		{"a b", "a b", "0"},
		{"--from 3 a b", "a b", "3"},
		{"a --from 3 b", "a b", "3"},
		{"a b --from=3", "a b", "3"},
		{"a - --from 3", "a -", "3"},
		{"--from 3 -- -a --from", "-a --from", "3"},
		{"a -- --from", "a --from", "0"},
	} {
		p := &program{}
		flags, _ := p.clientFlags("get")
		from := flags.String("from", "0", "")
		others, err := p.parse(flags, strings.Fields(test.args), 2, 2)
		if err != nil || strings.Join(others, " ") != test.others || *from != test.from {
			t.Errorf("%s: got %q, %s, %v; want %q, %s", test.args, others, *from, err, test.others, test.from)
		}
	}
}

// apiRoutes are the rows of API.md that README may use.
var apiRoutes = regexp.MustCompile(`^(GET|PUT|HEAD|DELETE) /(kv/)?[^/?]+(/[^?]*)?$|` +
	`^POST /(batch|cluster/(join|leave|transfer|seal|archive|prefetch|rotate-key))$`)

// reservedRoutes are paths that begin with a reserved word, and how they may be used.
var reservedRoutes = regexp.MustCompile(`^GET /(history/.+|keys|verify/.+|ledger/.+|health(/live)?|metrics|cluster/(status|members|leader)|kv/.+)$|` +
	`^(PUT|DELETE|HEAD) /kv/.+$|^POST /(batch|cluster/[\w-]+)$`)

// TestReadmeCommands: every curl line of README.md uses a route that exists,
// and every scribe-ledger or go run line a command that exists.
func TestReadmeCommands(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	curls, calls := 0, 0
	reserved := regexp.MustCompile(`^/(health|metrics|cluster|verify|history|keys|batch|kv|ledger|region|ui)(/|$)`)
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "curl ") {
			curls++
			route := curlRoute(t, line)
			_, path, _ := strings.Cut(route, " ")
			if !apiRoutes.MatchString(route) || reserved.MatchString(path) && !reservedRoutes.MatchString(route) {
				t.Errorf("no such route %q: %s", route, line)
			}
		}
		if rest, ok := strings.CutPrefix(line, "./scribe-ledger "); ok {
			calls++
			name := strings.Fields(rest)[0]
			if usageOf(name) == name && name != "help" {
				t.Errorf("no such command: %s", line)
			}
		}
	}
	if curls < 15 || calls < 5 {
		t.Errorf("found %d curl lines and %d commands", curls, calls)
	}
}

// curlRoute returns the method and path of a curl command line.
func curlRoute(t *testing.T, line string) string {
	t.Helper()
	url := regexp.MustCompile(`(?:localhost|127\.0\.0\.1):\d+(/[^\s'"?]*)`).FindStringSubmatch(line)
	if url == nil {
		t.Fatalf("no URL in %s", line)
	}
	method := "GET"
	if m := regexp.MustCompile(`-X (\w+)`).FindStringSubmatch(line); m != nil {
		method = m[1]
	} else if regexp.MustCompile(` (-T|--upload-file) `).MatchString(line) {
		method = "PUT"
	} else if regexp.MustCompile(` (-d|--data-binary) `).MatchString(line) {
		method = "POST"
	} else if regexp.MustCompile(` (-I|--head) `).MatchString(line) {
		method = "HEAD"
	}
	return method + " " + url[1]
}
