package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"
)

// cliServer speaks the rows of API.md that the client commands need.
type cliServer struct {
	t      *testing.T
	mu     sync.Mutex
	list   []cliEntry
	page   int // entries of a page or stream; 0 = no limit
	cut    int // streams of entries that break off after two lines and a half
	hits   []string
	behind int // entries that /cluster/status does not count yet
}

type cliEntry struct {
	key, value, op, contentType string
	version                     int
}

// newFake starts a fake ledger and returns the environment that points to it.
func newCLIServer(t *testing.T) (*cliServer, []string) {
	f := &cliServer{t: t}
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	return f, []string{"SCRIBE_URL=" + s.URL + "/"}
}

// fail answers with an error.
func (f *cliServer) fail(w http.ResponseWriter, status int, code, message string) {
	if status != http.StatusOK {
		w.WriteHeader(status)
	}
	fmt.Fprintf(w, `{"error":{"code":%q,"message":%q}}`, code, message)
}

// newest returns the newest entry of a key, or -1.
func (f *cliServer) newest(key string) int {
	for seq := len(f.list) - 1; seq >= 0; seq-- {
		if f.list[seq].key == key {
			return seq
		}
	}
	return -1
}

// add appends an entry and returns it as JSON.
func (f *cliServer) add(op, key, value, contentType string) string {
	version := 1
	if seq := f.newest(key); seq >= 0 {
		version = f.list[seq].version + 1
	}
	f.list = append(f.list, cliEntry{key, value, op, contentType, version})
	return f.json(len(f.list)-1, false)
}

// name returns a field that holds s, in base64 if need be.
func name(field, s string) string {
	if utf8.ValidString(s) {
		text, _ := json.Marshal(s)
		return fmt.Sprintf("%q:%s", field, text)
	}
	return fmt.Sprintf("%q:%q", field+"_base64", base64.StdEncoding.EncodeToString([]byte(s)))
}

// json returns an entry as JSON.
func (f *cliServer) json(seq int, values bool) string {
	e := f.list[seq]
	text := fmt.Sprintf(`{"seq":%d,%s,"op":%q,"version":%d,"prev":null,"time":"2026-11-22T15:00:00.123Z","size":%d,"sha256":"%x","content_type":%q,"author":"","region":"","leaf_hash":"00"`,
		seq, name("key", e.key), e.op, e.version, len(e.value), sha256.Sum256([]byte(e.value)), e.contentType)
	if values && e.op == "put" {
		text += "," + name("value", e.value)
	}
	return text + "}"
}

func (f *cliServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hits = append(f.hits, r.Method+" "+r.RequestURI)
	path, query := r.URL.EscapedPath(), r.URL.Query()
	switch {
	case strings.HasPrefix(path, "/kv/"):
		key, _ := url.PathUnescape(strings.TrimPrefix(path, "/kv/"))
		f.serveKey(w, r, key)
	case strings.HasPrefix(path, "/history/"):
		key, _ := url.PathUnescape(strings.TrimPrefix(path, "/history/"))
		f.serveHistory(w, key, query)
	case path == "/keys":
		f.serveKeys(w, query)
	case path == "/batch":
		f.serveBatch(w, r)
	case path == "/ledger/entries":
		w.Header().Set("Scribe-Ledger-Size", strconv.Itoa(len(f.list)))
		f.serveEntries(w, query)
	case path == "/cluster/status":
		fmt.Fprintf(w, `{"cluster_id":"00ff","name":"scribe","node_id":2,"term":7,"leader":{"id":1,"http":"http://127.0.0.1:8001","raft":"127.0.0.1:9001"},"ledger_size":%d,"manifest_version":4,
			"members":[{"id":1,"http":"http://127.0.0.1:8001","raft":"127.0.0.1:9001","region":"","version":"(devel)","role":"leader","state":"alive","applied":%d,"lag":0}]}`, len(f.list)-f.behind, len(f.list))
	default:
		f.fail(w, 404, "not_found", path)
	}
}

func (f *cliServer) serveKey(w http.ResponseWriter, r *http.Request, key string) {
	seq := f.newest(key)
	live := seq >= 0 && f.list[seq].op == "put"
	switch r.Method {
	case "PUT":
		body, _ := io.ReadAll(r.Body)
		match := r.Header.Get("If-Match")
		switch {
		case r.Header.Get("If-None-Match") == "*" && live, match != "" && match != fmt.Sprintf(`"%d"`, seq):
			f.fail(w, 412, "precondition_failed", fmt.Sprintf("the newest entry of the key is %d", seq))
		case len(body) > 2<<20:
			f.fail(w, 413, "value_too_large", "the value has more than 2097152 bytes")
		default:
			fmt.Fprintln(w, f.add("put", key, string(body), r.Header.Get("Content-Type")))
		}
	case "DELETE":
		if !live {
			f.fail(w, 404, "not_found", "no such key")
			return
		}
		fmt.Fprintln(w, f.add("delete", key, "", ""))
	case "GET":
		if text := r.URL.Query().Get("seq"); text != "" {
			seq, _ = strconv.Atoi(text)
			live = true
		}
		if !live {
			f.fail(w, 404, "not_found", "no such key")
			return
		}
		sum := sha256.Sum256([]byte(f.list[seq].value))
		if key == "damaged" {
			sum[0]++
		}
		w.Header().Set("Repr-Digest", "sha-256=:"+base64.StdEncoding.EncodeToString(sum[:])+":")
		io.WriteString(w, f.list[seq].value)
	}
}

func (f *cliServer) serveHistory(w http.ResponseWriter, key string, query url.Values) {
	before := len(f.list)
	if text := query.Get("before"); text != "" {
		before, _ = strconv.Atoi(text)
	}
	var versions []string
	next := "null"
	for seq := before - 1; seq >= 0; seq-- {
		if f.list[seq].key == key {
			if f.page > 0 && len(versions) == f.page {
				next = strconv.Itoa(seq + 1)
				break
			}
			versions = append(versions, f.json(seq, false))
		}
	}
	fmt.Fprintf(w, `{%s,"versions":[%s],"next":%s}`, name("key", key), strings.Join(versions, ","), next)
}

func (f *cliServer) serveKeys(w http.ResponseWriter, query url.Values) {
	after := query.Get("after")
	if text := query.Get("after_base64"); text != "" {
		raw, _ := base64.StdEncoding.DecodeString(text)
		after = string(raw)
	}
	var live []string
	for seq, e := range f.list {
		if f.newest(e.key) == seq && e.op == "put" && strings.HasPrefix(e.key, query.Get("prefix")) && e.key > after {
			live = append(live, e.key)
		}
	}
	slices.Sort(live)
	next := `"next":null`
	if f.page > 0 && len(live) > f.page {
		live = live[:f.page]
		next = name("next", live[f.page-1])
	}
	for i, key := range live {
		live[i] = fmt.Sprintf(`{%s,"seq":%d,"version":1,"size":1,"time":"2026-11-22T15:00:00.123Z"}`, name("key", key), f.newest(key))
	}
	fmt.Fprintf(w, `{"keys":[%s],%s}`, strings.Join(live, ","), next)
}

// serveBatch answers each line at once, while the request still comes in.
func (f *cliServer) serveBatch(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Content-Type") != "application/x-ndjson" {
		f.fail(w, 400, "bad_request", "content type")
		return
	}
	http.NewResponseController(w).EnableFullDuplex()
	lines := bufio.NewScanner(r.Body)
	for lines.Scan() {
		var op struct {
			Op, Key, Value, ContentType string
			KeyBase64                   []byte `json:"key_base64"`
			ValueBase64                 []byte `json:"value_base64"`
			IfAbsent                    bool   `json:"if_absent"`
		}
		decoder := json.NewDecoder(strings.NewReader(strings.ReplaceAll(lines.Text(), "content_type", "ContentType")))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&op); err != nil {
			f.fail(w, 200, "bad_request", err.Error())
			fmt.Fprintln(w)
		} else if op.Key == "stop" {
			panic(http.ErrAbortHandler)
		} else if key := op.Key + string(op.KeyBase64); op.IfAbsent && f.newest(key) >= 0 {
			fmt.Fprintf(w, `{"error":{"code":"precondition_failed","message":"%s exists"}}`+"\n", key)
		} else {
			fmt.Fprintln(w, f.add(op.Op, key, op.Value+string(op.ValueBase64), op.ContentType))
		}
		http.NewResponseController(w).Flush()
	}
}

func (f *cliServer) serveEntries(w http.ResponseWriter, query url.Values) {
	from, _ := strconv.Atoi(query.Get("from"))
	lines := 0
	for seq := from; seq < len(f.list); seq++ {
		if !strings.HasPrefix(f.list[seq].key, query.Get("prefix")) {
			continue
		}
		line := f.json(seq, query.Get("values") == "true")
		if lines++; f.cut > 0 && lines == 3 {
			f.cut--
			io.WriteString(w, line[:len(line)/2])
			http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
		if f.page > 0 && lines > f.page {
			return
		}
		fmt.Fprintln(w, line)
	}
}

// expect runs a command line and compares exit code and output.
func expect(t *testing.T, env []string, stdin string, code int, stdout, stderr string, args ...string) {
	t.Helper()
	gotCode, gotOut, gotErr := runText(t, stdin, env, args...)
	if gotCode != code || gotOut != stdout || gotErr != stderr {
		t.Errorf("%q: got %d\nstdout %q\nstderr %q\nwant %d\nstdout %q\nstderr %q", args, gotCode, gotOut, gotErr, code, stdout, stderr)
	}
}

// shaOf returns the SHA-256 of s in hex.
func shaOf(s string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(s))) }

func TestClientPutGetRemove(t *testing.T) {
	f, env := newCLIServer(t)
	folder := t.TempDir()
	file := filepath.Join(folder, "value")
	if err := os.WriteFile(file, []byte("from a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	expect(t, env, "piped", 0, "seq 0, version 1, sha256 "+shaOf("piped")+"\n", "", "put", "a/b", "--content-type", "text/plain")
	if f.list[0] != (cliEntry{"a/b", "piped", "put", "text/plain", 1}) {
		t.Errorf("entry is %+v", f.list[0])
	}
	expect(t, env, "", 0, "seq 1, version 2, sha256 "+shaOf("from a file")+"\n", "", "put", "a/b", file)
	expect(t, env, "", 0, "from a file", "", "get", "a/b")
	expect(t, env, "", 0, "piped", "", "get", "a/b", "--seq", "0")
	expect(t, env, "", 0, "", "", "get", "a/b", "-o", file+".copy")
	if got, err := os.ReadFile(file + ".copy"); err != nil || string(got) != "from a file" {
		t.Errorf("-o wrote %q, %v", got, err)
	}

	const failed = "scribe-ledger: precondition_failed: the newest entry of the key is 1\n"
	expect(t, env, "x", 1, "", failed, "put", "--if-absent", "a/b", "-")
	expect(t, env, "x", 1, "", failed, "put", "--if-match", "0", "a/b", "-")
	expect(t, env, "x", 0, "seq 2, version 3, sha256 "+shaOf("x")+"\n", "", "put", "--if-match", "1", "a/b", "-")
	expect(t, env, "", 0, "seq 3, version 4, sha256 "+shaOf("")+"\n", "", "put", "a/b")
	expect(t, env, "", 0, "seq 4, version 5, sha256 "+shaOf("")+"\n", "", "rm", "a/b")
	expect(t, env, "", 1, "", "scribe-ledger: not_found: no such key\n", "rm", "a/b")
	expect(t, env, "", 1, "", "scribe-ledger: not_found: no such key\n", "get", "a/b")

	if err := os.WriteFile(file, make([]byte, 3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	expect(t, env, "", 1, "", "scribe-ledger: value_too_large: the value has more than 2097152 bytes\n", "put", "big", file)
}

// TestClientKeys: a key reaches the server byte by byte.
func TestClientKeys(t *testing.T) {
	f, env := newCLIServer(t)
	keys := []string{"a//b", "a/../b", "a/", ".", "..", "%00", "ключ", "a b?c#d", "\xff\x00\n", "health", "x=1&y=%2F", "+", "-"}
	for i, key := range keys {
		expect(t, env, "v", 0, fmt.Sprintf("seq %d, version 1, sha256 %s\n", i, shaOf("v")), "", "put", "--", key)
		if f.list[i].key != key {
			t.Errorf("put %q: server got %q", key, f.list[i].key)
		}
		expect(t, env, "", 0, "v", "", "get", "--", key)
		if code, out, _ := runText(t, "", env, "history", "--", key); code != 0 || !strings.Contains(out, shaOf("v")) {
			t.Errorf("history %q: %d, %s", key, code, out)
		}
	}
	slices.Sort(keys)
	var want strings.Builder
	for _, key := range keys {
		want.WriteString(printable(key) + "\n")
	}
	expect(t, env, "", 0, want.String(), "", "keys")
	f.page = 2
	expect(t, env, "", 0, want.String(), "", "keys")
	expect(t, env, "", 0, "a b?c#d\na/\na/../b\na//b\n", "", "keys", "a")
	if code, out, _ := runText(t, "", env, "keys", "--json", "a b"); code != 0 || !json.Valid([]byte(out)) {
		t.Errorf("keys --json: %d, %s", code, out)
	}
}

func TestClientHistoryAndStatus(t *testing.T) {
	f, env := newCLIServer(t)
	for i := range 5 {
		f.add("put", "k", strconv.Itoa(i), "text/plain")
	}
	f.page = 2
	_, out, _ := runText(t, "", env, "history", "k", "--json")
	var seqs []uint64
	for line := range strings.Lines(out) {
		var e clientEntry
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		seqs = append(seqs, e.Seq)
	}
	if !slices.Equal(seqs, []uint64{4, 3, 2, 1, 0}) {
		t.Errorf("history gives %v", seqs)
	}
	_, out, _ = runText(t, "", env, "history", "k")
	lines := strings.Split(out, "\n")
	want := []string{"5", "4", "put", "2026-11-22T15:00:00.123Z", "1", shaOf("4"), "text/plain"}
	if got := strings.Fields(lines[1]); len(lines) != 7 || !slices.Equal(got, want) {
		t.Errorf("history prints %q", lines)
	}

	_, out, _ = runText(t, "", env, "status")
	if out != "cluster  scribe 00ff\nanswer   of node 2, term 7\nleader   node 1, http://127.0.0.1:8001\nledger   5 entries, manifest version 4\n\n"+
		"NODE  ROLE    STATE  APPLIED  LAG  HTTP                   RAFT            REGION  VERSION\n"+
		"1     leader  alive  5        0    http://127.0.0.1:8001  127.0.0.1:9001          (devel)\n" {
		t.Errorf("status prints\n%s", out)
	}
	if _, out, _ = runText(t, "", env, "status", "--json"); !json.Valid([]byte(out)) {
		t.Errorf("status --json prints %s", out)
	}
}

func TestClientDamagedAnswers(t *testing.T) {
	f, env := newCLIServer(t)
	f.add("put", "damaged", "value", "")
	path := filepath.Join(t.TempDir(), "out")
	code, _, stderr := runText(t, "", env, "get", "damaged", "-o", path)
	if code != 1 || !strings.Contains(stderr, "value is damaged: its digest is sha-256=:") {
		t.Errorf("damaged value: %d, %s", code, stderr)
	}
	if left, _ := filepath.Glob(path + "*"); len(left) > 0 {
		t.Errorf("damaged value left %q", left)
	}

	// Another kind of server: no error object, no JSON, a value cut off.
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/kv/gone":
			w.WriteHeader(http.StatusBadGateway)
		case "/kv/moved":
			http.Redirect(w, r, "/kv/gone", http.StatusFound)
		case "/kv/cut":
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, "half")
		default:
			io.WriteString(w, "<html>")
		}
	}))
	defer other.Close()
	for _, test := range []struct{ command, key, want string }{
		{"get", "gone", "scribe-ledger: http_502: Bad Gateway\n"},
		{"get", "moved", "scribe-ledger: http_302: Found\n"},
		{"get", "cut", "scribe-ledger: reading the value: unexpected EOF\n"},
		{"history", "k", "scribe-ledger: reading the answer to /history/k?limit=1000: invalid character '<' looking for beginning of value\n"},
		{"rm", "k", "scribe-ledger: reading the answer: invalid character '<' looking for beginning of value\n"},
	} {
		code, _, stderr := runText(t, "", nil, test.command, "--url", other.URL, test.key)
		if code != 1 || stderr != test.want {
			t.Errorf("%s %s: %d, %q, want %q", test.command, test.key, code, stderr, test.want)
		}
	}
}

func TestImport(t *testing.T) {
	f, env := newCLIServer(t)
	in := `{"op":"put","key":"a","value":"1"}
` + "\n  \n" + `{"seq":9,"key":"b","op":"put","version":3,"prev":null,"time":"2026-11-22T15:00:00Z","sha256":"00","content_type":"text/plain","value_base64":"/w==","author":"x"}
{"op":"put","key":"a","value":"2","if_absent":true}
not json
{"op":"delete","key_base64":"YQ=="}`
	code, stdout, stderr := runText(t, in, env, "import", "-")
	if code != 1 || stdout != "" {
		t.Errorf("exit code %d, stdout %q", code, stdout)
	}
	for _, want := range []string{"line 5: precondition_failed: a exists\n", "line 6: bad_request: ", "imported 3 entries in ",
		"scribe-ledger: 2 of 5 lines failed: bad_request:1 precondition_failed:1\n"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("stderr lacks %q:\n%s", want, stderr)
		}
	}
	want := []cliEntry{{"a", "1", "put", "", 1}, {"b", "\xff", "put", "text/plain", 1}, {"a", "", "delete", "", 2}}
	if !slices.Equal(f.list, want) {
		t.Errorf("ledger is %+v, want %+v", f.list, want)
	}
	expect(t, env, "", 2, "", "scribe-ledger: import: argument missing; usage: scribe-ledger import FILE.ndjson|-\n", "import")

	// Ten errors are shown, all are counted.
	_, _, stderr = runText(t, strings.Repeat("{x\n", 25), env, "import", "-")
	if got := strings.Count(stderr, "line "); got != 10 || !strings.Contains(stderr, "25 of 25 lines failed: bad_request:25") {
		t.Errorf("showed %d errors:\n%s", got, stderr)
	}

	// A connection that breaks off is told with the last line that was answered.
	_, _, stderr = runText(t, "{\"op\":\"put\",\"key\":\"x\"}\n\n{\"op\":\"put\",\"key\":\"stop\"}\n", env, "import", "-")
	if !strings.Contains(stderr, "reply broke off after line 1, later lines may or may not be applied: ") {
		t.Errorf("stderr is %s", stderr)
	}
}

// TestImportStreams: lines are applied while the producer still thinks.
func TestImportStreams(t *testing.T) {
	_, env := newCLIServer(t)
	in, feed := io.Pipe()
	var stderr bytes.Buffer
	ended := make(chan int, 1)
	go func() { ended <- runCommand(t.Context(), []string{"import", "-"}, in, io.Discard, &stderr, env) }()
	io.WriteString(feed, "{\"op\":\"put\",\"key\":\"a\",\"value\":\"1\"}\n")
	// The reply comes with the first line; only then is the rest written.
	io.WriteString(feed, "{\"op\":\"put\",\"key\":\"b\",\"value\":\"2\"}\n")
	feed.Close()
	select {
	case code := <-ended:
		if code != 0 || !strings.HasPrefix(stderr.String(), "imported 2 entries") {
			t.Errorf("exit code %d, %s", code, stderr.String())
		}
	case <-time.After(10 * time.Second):
		t.Fatal("import hangs")
	}
}

func TestExport(t *testing.T) {
	f, env := newCLIServer(t)
	for i := range 20 {
		f.add("put", fmt.Sprintf("k%d/%d", i%2, i), strings.Repeat("v", i), "text/plain")
	}
	f.add("put", "\xff", "\xfe", "")
	f.add("delete", "k0/0", "", "")
	var all string
	for seq := range f.list {
		all += f.json(seq, true) + "\n"
	}
	check := func(want string, args ...string) {
		t.Helper()
		code, stdout, stderr := runText(t, "", env, append([]string{"export"}, args...)...)
		if code != 0 || stdout != want || !strings.HasPrefix(stderr, fmt.Sprintf("exported %d entries in ", strings.Count(want, "\n"))) {
			t.Errorf("%q: exit code %d, %d lines, want %d; stderr %s", args, code, strings.Count(stdout, "\n"), strings.Count(want, "\n"), stderr)
		}
	}
	check(all)
	f.behind = len(f.list) // a node that has just started and has applied nothing yet
	check(all)
	f.behind = 0
	f.page = 6 // a server that ends each stream early
	check(all)
	f.page = 0
	check(f.json(20, true)+"\n"+f.json(21, true)+"\n", "--from", "20")
	check("", "--from", "22")
	check(f.json(1, true)+"\n"+f.json(11, true)+"\n"+f.json(13, true)+"\n"+f.json(15, true)+"\n"+f.json(17, true)+"\n"+f.json(19, true)+"\n", "--prefix", "k1/1")

	file := filepath.Join(t.TempDir(), "out.ndjson")
	check("", "--prefix", "none")
	if code, _, stderr := runText(t, "", env, "export", "-o", file); code != 0 {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != all {
		t.Errorf("-o wrote %d bytes, want %d: %v", len(got), len(all), err)
	}
	if left, _ := filepath.Glob(file + ".*"); len(left) > 0 {
		t.Errorf("-o left %q", left)
	}

	// What was exported can be imported, and comes out the same.
	g, other := newCLIServer(t)
	if code, _, stderr := runText(t, "", other, "import", file); code != 0 {
		t.Errorf("import: %d, %s", code, stderr)
	}
	if !slices.Equal(f.list, g.list) {
		t.Errorf("imported %+v, want %+v", g.list, f.list)
	}
}

// TestExportResumes: streams that break off in the middle of a line are taken
// up again; nothing is lost or doubled. The pause between is not waited for.
func TestExportResumes(t *testing.T) {
	f, env := newCLIServer(t)
	var want string
	for i := range 20 {
		f.add("put", strconv.Itoa(i), "v", "")
		want += f.json(i, true) + "\n"
	}
	base := strings.TrimSuffix(strings.TrimPrefix(env[0], "SCRIBE_URL="), "/")
	c, err := newClient(base)
	if err != nil {
		t.Fatal(err)
	}
	export := func(end uint64) (string, error) {
		var out, bar bytes.Buffer
		p := &program{stderr: &bar, now: time.Now}
		buffered := bufio.NewWriter(&out)
		job := &exporter{client: c, end: end, out: buffered, bar: p.newProgress("exported")}
		err := job.run(t.Context())
		return out.String(), err
	}
	f.cut = 7
	if got, err := export(20); err != nil || got != want || f.cut != 0 {
		t.Errorf("got %d lines, %v, %d cuts left", strings.Count(got, "\n"), err, f.cut)
	}
	if got, err := export(25); err == nil || got != want || err.Error() != "the server has no entry 20, its ledger had 25 entries" {
		t.Errorf("short ledger: %d lines, %v", strings.Count(got, "\n"), err)
	}
	c.base += "/elsewhere"
	hits := len(f.hits)
	if _, err := export(20); err == nil || !strings.HasPrefix(err.Error(), "not_found: ") || len(f.hits) != hits+1 {
		t.Errorf("wrong place: %v after %d requests", err, len(f.hits)-hits)
	}
	c.base = "http://127.0.0.1:1"
	if _, err := export(20); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("no server: %v", err)
	}
}

func TestExportRefusesWrongStreams(t *testing.T) {
	for _, test := range []struct{ lines, want string }{
		{`{"seq":1}`, "the server's stream is wrong: want entry 0, got"},
		{"{\"seq\":0}\n{\"seq\":0}", "the server's stream is wrong: want entry 1, got"},
		{`{"key":"a"}`, "the server's stream is wrong: want entry 0, got"},
		{"{\"seq\":0}\n{\"error\":{\"code\":\"corrupt\",\"message\":\"segment 3\"}}", "corrupt: segment 3"},
	} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/cluster/status" {
				io.WriteString(w, `{"ledger_size":5}`)
			} else {
				io.WriteString(w, test.lines+"\n")
			}
		}))
		file := filepath.Join(t.TempDir(), "out")
		code, _, stderr := runText(t, "", nil, "export", "--url", s.URL, "-o", file)
		s.Close()
		if _, err := os.Stat(file + ".part"); err != nil || code != 1 || !strings.Contains(stderr, "what came before is in "+file+".part: "+test.want) {
			t.Errorf("%q: %d, %s", test.lines, code, stderr)
		}
	}
}

func TestProgress(t *testing.T) {
	now := time.Unix(0, 0)
	var out strings.Builder
	p := &program{stderr: &out, now: func() time.Time { return now }}
	pr := p.newProgress("imported")
	for range 12 {
		now = now.Add(time.Second)
		pr.update(100*int64(now.Unix()), float64(now.Unix())/20)
	}
	pr.terminal = true
	now = now.Add(5 * time.Second)
	pr.update(1700, -1)
	pr.finish(2000)
	want := "imported 500 entries in 5.0 s, 100/s, 25 %, 15s left\nimported 1000 entries in 10.0 s, 100/s, 50 %, 10s left\n" +
		"\rimported 1700 entries in 17.0 s, 100/s\x1b[K\r\x1b[Kimported 2000 entries in 17.0 s, 118/s\n"
	if out.String() != want {
		t.Errorf("got  %q\nwant %q", out.String(), want)
	}
}
