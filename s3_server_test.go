package main

import (
	"bytes"
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// s3Server is one bucket of a strict S3, in memory. It checks each signature
// from the bytes of the request, with code of its own; it fails the test when a
// client does what no client should: an unsigned header that matters, a path or
// query not in canonical form, other bytes under a name that was taken. It does
// wrong itself by script: see fault.
type s3Server struct {
	t    *testing.T
	http *httptest.Server

	// What it is like; set before use, or under mu.
	bucket, region string
	versioned      bool
	locked         bool   // has Object Lock
	conditions     string // "" = put-if-absent works, "ignored", "501"
	noSums         bool   // keeps no checksums
	page           int    // keys a page of a listing
	clock          func() time.Time
	mayChange      func(key string) bool // nil = no object may

	mu      sync.Mutex // guards the rest
	keys    map[string]s3ServerKey
	objects map[string][]*s3ServerVersion // oldest first
	serial  int
	faults  []*s3Fault
	seen    []s3Seen
	done    chan struct{}
}

// s3ServerKey is an access key the server knows.
type s3ServerKey struct {
	secret, token string
	expired       bool
	readOnly      bool
}

// s3ServerVersion is one version of an object.
type s3ServerVersion struct {
	id      string
	body    []byte
	sum     string // x-amz-checksum-sha256
	md5     [md5.Size]byte
	deleted bool // a delete marker
	until   time.Time
	at      time.Time
}

// s3Fault is something that goes wrong with requests of an op whose key holds a
// text, so many times; -1 = always.
type s3Fault struct {
	op    s3Op
	key   string
	kind  string
	times int
}

// s3Seen is a request that the server has answered, or not.
type s3Seen struct {
	op         s3Op
	key, part  string // part is its Range
	status     int
	sent       int // bytes of the answer's body
	connection string
}

// newS3Server starts a bucket that one key may read and write.
func newS3Server(t *testing.T) *s3Server {
	s := &s3Server{t: t, bucket: "ledger-test", region: "eu-test-1", page: 1000, clock: time.Now, done: make(chan struct{}),
		keys: map[string]s3ServerKey{"AKIDTEST": {secret: "secret/with+signs"}}, objects: map[string][]*s3ServerVersion{}}
	s.http = httptest.NewServer(s)
	t.Cleanup(func() {
		close(s.done)
		s.http.Close()
	})
	return s
}

// fault scripts what goes wrong with the next requests of op whose key holds a
// text. Before anything is done: "503", "500", "403", "html503", "hang", "drop", "301",
// "html", "error200", "409", "noetag". After it is done: "lost". With the answer to get: "truncate",
// "trickle", "flip", "swap:<other key>", "empty", "whole" (Range ignored), "encoded".
func (s *s3Server) fault(op s3Op, key, kind string, times int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, &s3Fault{op, key, kind, times})
}

// heal ends all faults.
func (s *s3Server) heal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = nil
}

// nextFault returns what is to go wrong now, or "".
func (s *s3Server) nextFault(op s3Op, key string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.faults {
		if f.op == op && strings.Contains(key, f.key) && f.times != 0 {
			f.times--
			return f.kind
		}
	}
	return ""
}

// requests returns what was asked since the last call.
func (s *s3Server) requests() []s3Seen {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := s.seen
	s.seen = nil
	return seen
}

// object returns the bytes of the newest version of an object, nil if there is none.
func (s *s3Server) object(key string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v := s.newest(key, ""); v != nil {
		return v.body
	}
	return nil
}

// set stores an object behind the clients' backs.
func (s *s3Server) set(key string, body []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.store(key, &s3ServerVersion{body: body, sum: sumText(body)})
}

// remove takes an object away behind the clients' backs.
func (s *s3Server) remove(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.objects, key)
}

// newest returns a version of an object, the newest if id is ""; mu is held.
func (s *s3Server) newest(key, id string) *s3ServerVersion {
	all := s.objects[key]
	for i := len(all) - 1; i >= 0; i-- {
		if id == "" || all[i].id == id {
			if all[i].deleted {
				return nil
			}
			return all[i]
		}
	}
	return nil
}

// store adds a version, or replaces the only one; mu is held.
func (s *s3Server) store(key string, v *s3ServerVersion) {
	s.serial++
	v.id, v.at, v.md5 = "v"+strconv.Itoa(s.serial), s.clock(), md5.Sum(v.body)
	if !s.versioned {
		v.id = ""
		s.objects[key] = nil
	}
	s.objects[key] = append(s.objects[key], v)
}

func sumText(b []byte) string {
	sum := sha256.Sum256(b)
	return base64.StdEncoding.EncodeToString(sum[:])
}

// s3Wrong is an error answer.
type s3Wrong struct {
	status     int
	code, more string // more is XML
}

// s3Answer is an answer under way.
type s3Answer struct {
	http.ResponseWriter
	seen s3Seen
}

func (a *s3Answer) Write(b []byte) (int, error) {
	n, err := a.ResponseWriter.Write(b)
	a.seen.sent += n
	return n, err
}

func (a *s3Answer) WriteHeader(status int) {
	a.seen.status = status
	a.ResponseWriter.WriteHeader(status)
}

func (a *s3Answer) wrong(r *http.Request, e *s3Wrong) {
	var message bytes.Buffer
	xml.EscapeText(&message, []byte("strict: "+e.code))
	body := fmt.Sprintf("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>%s</Code><Message>%s</Message>%s<RequestId>REQ1</RequestId></Error>",
		e.code, message.String(), e.more)
	a.Header().Set("Content-Type", "application/xml")
	a.Header().Set("Content-Length", strconv.Itoa(len(body)))
	a.WriteHeader(e.status)
	if r.Method != http.MethodHead {
		io.WriteString(a, body)
	}
}

func (s *s3Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a := &s3Answer{ResponseWriter: w, seen: s3Seen{status: 200, part: r.Header.Get("Range"), connection: r.RemoteAddr}}
	defer func() {
		s.mu.Lock()
		s.seen = append(s.seen, a.seen)
		s.mu.Unlock()
	}()
	w.Header().Set("Date", s.clock().UTC().Format(http.TimeFormat))
	op, key, query := s.target(r)
	a.seen.op, a.seen.key = op, key
	fault := s.nextFault(op, key)
	if s.failEarly(a, r, fault) {
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	if e := s.verify(r, body, op); e != nil {
		a.wrong(r, e)
		return
	}
	if e := s.serve(a, r, op, key, query, body, fault); e != nil {
		a.wrong(r, e)
	}
}

// target returns what a request is about. It takes the raw request target apart
// and fails the test unless that is in canonical form.
func (s *s3Server) target(r *http.Request) (s3Op, string, map[string]string) {
	rawPath, rawQuery, _ := strings.Cut(r.RequestURI, "?")
	path := serverDecode(rawPath)
	if again := serverEncode(path, true); again != rawPath {
		s.t.Errorf("strict S3: path %q, want %q", rawPath, again)
	}
	query := map[string]string{}
	for pair := range strings.SplitSeq(rawQuery, "&") {
		if name, value, ok := strings.Cut(pair, "="); ok {
			query[serverDecode(name)] = serverDecode(value)
		} else if pair != "" {
			s.t.Errorf("strict S3: query %q", rawQuery)
		}
	}
	key := strings.TrimPrefix(path, "/")
	if !strings.HasPrefix(r.Host, s.bucket+".") {
		var bucket string
		bucket, key, _ = strings.Cut(key, "/")
		query["bucket"] = bucket
	}
	op := map[string]s3Op{"GET": s3Get, "PUT": s3Put, "HEAD": s3Head, "DELETE": s3Delete}[r.Method]
	if op == s3Get && query["list-type"] == "2" {
		op = s3List
	}
	return op, key, query
}

func serverDecode(s string) string {
	var b []byte
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			n, _ := strconv.ParseUint(s[i+1:i+3], 16, 8)
			b = append(b, byte(n))
			i += 2
			continue
		}
		b = append(b, s[i])
	}
	return string(b)
}

func serverEncode(s string, slash bool) string {
	const plain = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
	out := ""
	for _, c := range []byte(s) {
		if strings.ContainsRune(plain, rune(c)) || slash && c == '/' {
			out += string(rune(c))
		} else {
			out += fmt.Sprintf("%%%02X", c)
		}
	}
	return out
}

// failEarly answers wrongly in place of doing anything.
func (s *s3Server) failEarly(a *s3Answer, r *http.Request, fault string) bool {
	switch fault {
	case "503":
		a.wrong(r, &s3Wrong{503, "SlowDown", ""})
	case "500":
		a.wrong(r, &s3Wrong{500, "InternalError", ""})
	case "403":
		a.wrong(r, &s3Wrong{403, "AccessDenied", ""})
	case "409":
		a.wrong(r, &s3Wrong{409, "ConditionalRequestConflict", ""})
	case "301":
		a.Header().Set("X-Amz-Bucket-Region", "us-far-9")
		a.Header().Set("Location", "http://"+r.Host+"/stolen")
		a.wrong(r, &s3Wrong{301, "PermanentRedirect", "<Endpoint>ledger-test.s3.us-far-9.example.com</Endpoint>"})
	case "307":
		a.Header().Set("Location", "http://"+r.Host+"/stolen")
		a.WriteHeader(307)
	case "error200":
		io.WriteString(a, "<Error><Code>InternalError</Code><Message>later</Message></Error>")
	case "html":
		a.Header().Set("Content-Type", "text/html; charset=utf-8")
		a.Header().Set("ETag", `"of the proxy"`)
		io.WriteString(a, "<html><body>Please log in</body></html>")
	case "noetag":
		io.WriteString(a, "ok")
	case "html503":
		a.Header().Set("Content-Type", "text/html")
		a.WriteHeader(503)
		io.WriteString(a, "<html><body>Bad\ngateway \x1b[31m</body></html>")
	case "drop":
		panic(http.ErrAbortHandler)
	case "hang":
		io.Copy(io.Discard, r.Body)
		select {
		case <-r.Context().Done():
		case <-s.done:
		}
		panic(http.ErrAbortHandler)
	default:
		return false
	}
	return true
}

// verify checks the signature as a server does, from the request as it came.
func (s *s3Server) verify(r *http.Request, body []byte, op s3Op) *s3Wrong {
	s.mu.Lock()
	defer s.mu.Unlock()
	fields := map[string]string{}
	auth, ok := strings.CutPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 ")
	for part := range strings.SplitSeq(auth, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		fields[name] = value
	}
	scope := strings.Split(fields["Credential"], "/")
	if !ok || len(scope) != 5 || scope[3] != "s3" || scope[4] != "aws4_request" {
		return &s3Wrong{400, "AuthorizationHeaderMalformed", ""}
	}
	if scope[2] != s.region {
		return &s3Wrong{400, "AuthorizationHeaderMalformed", "<Region>" + s.region + "</Region>"}
	}
	key, known := s.keys[scope[0]]
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	switch now := s.clock(); {
	case !known:
		return &s3Wrong{403, "InvalidAccessKeyId", ""}
	case err != nil || at.Format("20060102") != scope[1]:
		return &s3Wrong{403, "AccessDenied", ""}
	case now.Sub(at).Abs() > 15*time.Minute:
		return &s3Wrong{403, "RequestTimeTooSkewed", "<ServerTime>" + now.UTC().Format(time.RFC3339) + "</ServerTime>"}
	case r.Header.Get("X-Amz-Security-Token") != key.token:
		return &s3Wrong{400, "InvalidToken", ""}
	case key.expired:
		return &s3Wrong{400, "ExpiredToken", ""}
	}
	sum := fmt.Sprintf("%x", sha256.Sum256(body))
	if want := s.sign(r, key.secret, scope, fields["SignedHeaders"], r.Header.Get("X-Amz-Content-Sha256")); want != fields["Signature"] {
		return &s3Wrong{403, "SignatureDoesNotMatch", ""}
	}
	if r.Header.Get("X-Amz-Content-Sha256") != sum {
		return &s3Wrong{400, "XAmzContentSHA256Mismatch", ""}
	}
	if key.readOnly && (op == s3Put || op == s3Delete) {
		return &s3Wrong{403, "AccessDenied", ""}
	}
	return nil
}

// sign returns the signature the request should have.
func (s *s3Server) sign(r *http.Request, secret string, scope []string, signed, bodyHash string) string {
	names := strings.Split(signed, ";")
	if !sort.StringsAreSorted(names) || !slices.Contains(names, "host") {
		s.t.Errorf("strict S3: signed headers are %q", signed)
	}
	for name := range r.Header {
		name = strings.ToLower(name)
		matters := strings.HasPrefix(name, "x-amz-") || slices.Contains([]string{"range", "content-type", "if-match", "if-none-match"}, name)
		if matters && !slices.Contains(names, name) {
			s.t.Errorf("strict S3: header %s is not signed", name)
		}
	}
	rawPath, rawQuery, _ := strings.Cut(r.RequestURI, "?")
	var pairs []string
	for pair := range strings.SplitSeq(rawQuery, "&") {
		if name, value, ok := strings.Cut(pair, "="); ok {
			pairs = append(pairs, serverEncode(serverDecode(name), false)+"\x00"+serverEncode(serverDecode(value), false))
		}
	}
	sort.Strings(pairs)
	text := r.Method + "\n" + serverEncode(serverDecode(rawPath), true) + "\n" + strings.ReplaceAll(strings.Join(pairs, "&"), "\x00", "=") + "\n"
	for _, name := range names {
		value := strings.Join(r.Header.Values(name), ",")
		if name == "host" {
			value = r.Host
		}
		text += name + ":" + strings.TrimSpace(value) + "\n"
	}
	text += "\n" + signed + "\n" + bodyHash
	text = fmt.Sprintf("AWS4-HMAC-SHA256\n%s\n%s\n%x", r.Header.Get("X-Amz-Date"), strings.Join(scope[1:], "/"), sha256.Sum256([]byte(text)))
	mac := "AWS4" + secret
	for _, part := range append(slices.Clone(scope[1:]), text) {
		h := hmac.New(sha256.New, []byte(mac))
		h.Write([]byte(part))
		mac = string(h.Sum(nil))
	}
	return fmt.Sprintf("%x", mac)
}

// serve does what an authentic request asks for.
func (s *s3Server) serve(a *s3Answer, r *http.Request, op s3Op, key string, query map[string]string, body []byte, fault string) *s3Wrong {
	s.mu.Lock()
	defer s.mu.Unlock()
	if bucket, ok := query["bucket"]; ok && bucket != s.bucket {
		return &s3Wrong{404, "NoSuchBucket", ""}
	}
	a.Header().Set("X-Amz-Request-Id", "REQ1")
	switch op {
	case s3Put:
		return s.servePut(a, r, key, body, fault)
	case s3Delete:
		return s.serveDelete(a, key, query["versionId"], fault)
	case s3List:
		return s.serveList(a, query)
	}
	v := s.newest(key, query["versionId"])
	if v == nil {
		return &s3Wrong{404, "NoSuchKey", ""}
	}
	return s.serveGet(a, r, op, v, fault)
}

func (s *s3Server) servePut(a *s3Answer, r *http.Request, key string, body []byte, fault string) *s3Wrong {
	h := r.Header
	old := s.newest(key, "")
	if h.Get("If-None-Match") != "" {
		switch {
		case s.conditions == "501":
			return &s3Wrong{501, "NotImplemented", ""}
		case h.Get("If-None-Match") != "*":
			s.t.Errorf("strict S3: If-None-Match is %q", h.Get("If-None-Match"))
		case s.conditions == "" && old != nil:
			return &s3Wrong{412, "PreconditionFailed", ""}
		}
	}
	v := &s3ServerVersion{body: body, sum: h.Get("X-Amz-Checksum-Sha256")}
	if v.sum != sumText(body) {
		return &s3Wrong{400, "BadDigest", ""}
	}
	if mode := h.Get("X-Amz-Object-Lock-Mode"); mode != "" {
		until, err := time.Parse(time.RFC3339, h.Get("X-Amz-Object-Lock-Retain-Until-Date"))
		if !s.locked || err != nil || mode != "GOVERNANCE" && mode != "COMPLIANCE" || until.Before(s.clock()) {
			return &s3Wrong{400, "InvalidRequest", ""}
		}
		v.until = until
	}
	if old != nil && !bytes.Equal(old.body, body) && (s.mayChange == nil || !s.mayChange(key)) {
		s.t.Errorf("strict S3: %s is replaced by other bytes", key)
	}
	s.store(key, v)
	s.describe(a, v)
	a.Header().Set("Content-Length", "0")
	if fault == "lost" {
		panic(http.ErrAbortHandler)
	}
	a.WriteHeader(200)
	return nil
}

// describe sets the headers that say what an object is.
func (s *s3Server) describe(a *s3Answer, v *s3ServerVersion) {
	a.Header().Set("ETag", fmt.Sprintf("%q", fmt.Sprintf("%x", v.md5)))
	a.Header().Set("Last-Modified", v.at.UTC().Format(http.TimeFormat))
	if v.id != "" {
		a.Header().Set("X-Amz-Version-Id", v.id)
	}
	if !s.noSums {
		a.Header().Set("X-Amz-Checksum-Sha256", v.sum)
	}
}

func (s *s3Server) serveDelete(a *s3Answer, key, id, fault string) *s3Wrong {
	all := s.objects[key]
	switch {
	case id != "":
		i := slices.IndexFunc(all, func(v *s3ServerVersion) bool { return v.id == id })
		if i >= 0 && s.clock().Before(all[i].until) {
			return &s3Wrong{403, "AccessDenied", ""}
		}
		if i >= 0 {
			s.objects[key] = slices.Delete(all, i, i+1)
		}
	case s.versioned:
		s.store(key, &s3ServerVersion{deleted: true})
	default:
		delete(s.objects, key)
	}
	if fault == "lost" {
		panic(http.ErrAbortHandler)
	}
	a.WriteHeader(204)
	return nil
}

func (s *s3Server) serveGet(a *s3Answer, r *http.Request, op s3Op, v *s3ServerVersion, fault string) *s3Wrong {
	s.describe(a, v)
	body, status := v.body, 200
	if m := r.Header.Get("If-Match"); m != "" && m != a.Header().Get("ETag") {
		return &s3Wrong{412, "PreconditionFailed", ""}
	}
	if part := r.Header.Get("Range"); part != "" && fault != "whole" {
		from, to, ok := serverRange(part, len(body))
		if !ok {
			return &s3Wrong{416, "InvalidRange", ""}
		}
		a.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, len(body)))
		body, status = body[from:to], 206
		a.Header().Del("X-Amz-Checksum-Sha256")
	}
	body = bytes.Clone(body)
	if other, ok := strings.CutPrefix(fault, "swap:"); ok {
		body = bytes.Clone(s.objects[other][0].body)
		a.Header().Del("Content-Range")
		status = 200
	}
	switch fault {
	case "flip":
		body[len(body)/2] ^= 1
	case "empty":
		body = nil
	case "encoded":
		a.Header().Set("Content-Encoding", "gzip")
	}
	a.Header().Set("Content-Type", "application/octet-stream")
	a.Header().Set("Content-Length", strconv.Itoa(len(body)))
	a.WriteHeader(status)
	if op != s3Head {
		s.sendBody(a, r, body, fault)
	}
	return nil
}

// sendBody sends the body of an answer, or breaks off in the middle of it.
func (s *s3Server) sendBody(a *s3Answer, r *http.Request, body []byte, fault string) {
	switch fault {
	case "truncate", "stall":
		a.Write(body[:len(body)/2])
		http.NewResponseController(a.ResponseWriter).Flush()
		if fault == "stall" {
			s.mu.Unlock()
			defer s.mu.Lock()
			<-r.Context().Done()
		}
		panic(http.ErrAbortHandler)
	case "trickle":
		s.mu.Unlock()
		defer s.mu.Lock()
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for _, c := range body {
			a.Write([]byte{c})
			http.NewResponseController(a.ResponseWriter).Flush()
			select {
			case <-tick.C:
			case <-r.Context().Done():
				panic(http.ErrAbortHandler)
			}
		}
	default:
		a.Write(body)
	}
}

// serverRange reads "bytes=0-9" or "bytes=5-" as from and to (not included).
func serverRange(part string, size int) (from, to int, ok bool) {
	first, last, _ := strings.Cut(strings.TrimPrefix(part, "bytes="), "-")
	from, err := strconv.Atoi(first)
	to = size
	if last != "" {
		n, lastErr := strconv.Atoi(last)
		if lastErr != nil || n < from {
			return 0, 0, false
		}
		to = min(size, n+1)
	}
	return from, to, err == nil && from < size
}

func (s *s3Server) serveList(a *s3Answer, query map[string]string) *s3Wrong {
	after := query["start-after"]
	if token := query["continuation-token"]; token != "" {
		b, err := base64.StdEncoding.DecodeString(token)
		if err != nil {
			return &s3Wrong{400, "InvalidArgument", ""}
		}
		after = string(b)
	}
	page := s.page
	if most, err := strconv.Atoi(query["max-keys"]); err == nil {
		page = min(page, most)
	}
	var names []string
	for name := range s.objects {
		if strings.HasPrefix(name, query["prefix"]) && name > after && s.newest(name, "") != nil {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	more := ""
	if len(names) > page {
		names = names[:page]
		more = "<NextContinuationToken>" + base64.StdEncoding.EncodeToString([]byte(names[page-1])) + "</NextContinuationToken>"
	}
	body := fmt.Sprintf("<ListBucketResult><EncodingType>url</EncodingType><IsTruncated>%v</IsTruncated>%s", more != "", more)
	for _, name := range names {
		v := s.newest(name, "")
		body += fmt.Sprintf("<Contents><Key>%s</Key><Size>%d</Size><ETag>&quot;%x&quot;</ETag><LastModified>%s</LastModified></Contents>",
			serverEncode(name, true), len(v.body), v.md5, v.at.UTC().Format(time.RFC3339))
	}
	a.WriteHeader(200)
	io.WriteString(a, body+"</ListBucketResult>")
	return nil
}
