package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"
)

// The client commands put, get, rm, history, keys and status: each is one kind
// of request of the HTTP interface, its answer on standard output.

const (
	defaultURL = "http://127.0.0.1:8001"
	pageSize   = 1000    // entries asked for in one page of a listing
	askFirst   = 1 << 20 // bytes of a value above which the server is asked before the body is sent
)

// client talks to one node.
type client struct {
	base string // URL without a slash at its end
	http *http.Client
}

// clientFlags returns a flag set that has --url.
func (p *program) clientFlags(name string) (flags *flag.FlagSet, url *string) {
	flags = flag.NewFlagSet(name, flag.ContinueOnError)
	url = flags.String("url", p.getenv("SCRIBE_URL", defaultURL), "`URL` of a node")
	return flags, url
}

// newClient returns a client of the node at base.
func newClient(base string) (*client, error) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" {
		return nil, unusable("url %q: want http://host:port", base)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DisableCompression = true // digests are of the bytes as stored
	return &client{
		base: strings.TrimRight(base, "/"),
		http: &http.Client{
			Transport:     transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// serverError is an error as the server tells it.
type serverError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	status  int
}

func (e *serverError) Error() string { return e.Code + ": " + e.Message }

// do sends one request. An answer that is not a success comes back as an error.
func (c *client) do(ctx context.Context, method, path string, header http.Header, body io.Reader, size int64) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, err
	}
	if header != nil {
		req.Header = header
	}
	if body != nil {
		req.ContentLength = size
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if e := parseServerError(text); e != nil {
		e.status = resp.StatusCode
		return nil, e
	}
	return nil, &serverError{"http_" + strconv.Itoa(resp.StatusCode), http.StatusText(resp.StatusCode), resp.StatusCode}
}

// parseServerError returns the error that text holds, or nil.
func parseServerError(text []byte) *serverError {
	var reply struct{ Error *serverError }
	if json.Unmarshal(text, &reply) != nil || reply.Error == nil || reply.Error.Code == "" {
		return nil
	}
	return reply.Error
}

// getJSON decodes the answer to a GET into v.
func (c *client) getJSON(ctx context.Context, path string, v any) error {
	resp, err := c.do(ctx, "GET", path, nil, nil, 0)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(v); err != nil {
		return fmt.Errorf("reading the answer to %s: %w", path, err)
	}
	return nil
}

// keyPath returns the path of a key below prefix, such as /kv/. Every byte that
// could be taken for something else on the way is escaped.
func keyPath(prefix, key string) string {
	escaped := url.PathEscape(key)
	if key == "." || key == ".." {
		escaped = strings.ReplaceAll(key, ".", "%2E")
	}
	return prefix + escaped
}

// withQuery appends those of the pairs (name, value, name, value, …) whose value is not empty.
func withQuery(path string, pairs ...string) string {
	query := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			query.Set(pairs[i], pairs[i+1])
		}
	}
	if len(query) == 0 {
		return path
	}
	return path + "?" + query.Encode()
}

// clientEntry is an entry as the server tells it.
type clientEntry struct {
	Seq         uint64    `json:"seq"`
	Key         string    `json:"key"`
	KeyBase64   []byte    `json:"key_base64"`
	Op          string    `json:"op"`
	Version     uint64    `json:"version"`
	Time        time.Time `json:"time"`
	Size        uint64    `json:"size"`
	SHA256      string    `json:"sha256"`
	ContentType string    `json:"content_type"`
}

// put writes one value.
func (p *program) put(ctx context.Context, args []string) error {
	flags, base := p.clientFlags("put")
	contentType := flags.String("content-type", "", "media `type` kept with the value")
	ifAbsent := flags.Bool("if-absent", false, "only if the key has no value")
	ifMatch := flags.String("if-match", "", "only if the entry with this `seq` is the key's newest")
	args, err := p.parse(flags, args, 1, 2)
	if err != nil {
		return err
	}
	c, err := newClient(*base)
	if err != nil {
		return err
	}
	header := http.Header{}
	if *contentType != "" {
		header.Set("Content-Type", *contentType)
	}
	if *ifAbsent {
		header.Set("If-None-Match", "*")
	}
	if *ifMatch != "" {
		header.Set("If-Match", strconv.Quote(strings.Trim(*ifMatch, `"`)))
	}
	name := "-"
	if len(args) == 2 {
		name = args[1]
	} else if isTerminal(p.stdin) {
		return unusable("put: no value: name a file, or pipe the value in")
	}
	in, size, err := p.openInput(name)
	if err != nil {
		return err
	}
	defer in.Close()
	if size > askFirst {
		header.Set("Expect", "100-continue")
	}
	var body io.Reader = in
	if size == 0 {
		body = http.NoBody // else net/http takes 0 for unknown
	}
	return p.change(ctx, c, "PUT", args[0], header, body, size)
}

// rm deletes one key.
func (p *program) rm(ctx context.Context, args []string) error {
	flags, base := p.clientFlags("rm")
	args, err := p.parse(flags, args, 1, 1)
	if err != nil {
		return err
	}
	c, err := newClient(*base)
	if err != nil {
		return err
	}
	return p.change(ctx, c, "DELETE", args[0], nil, nil, 0)
}

// change sends a write and prints the entry it made.
func (p *program) change(ctx context.Context, c *client, method, key string, header http.Header, body io.Reader, size int64) error {
	resp, err := c.do(ctx, method, keyPath("/kv/", key), header, body, size)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var e clientEntry
	if err := json.NewDecoder(resp.Body).Decode(&e); err != nil {
		return fmt.Errorf("reading the answer: %w", err)
	}
	fmt.Fprintf(p.stdout, "seq %d, version %d, sha256 %s\n", e.Seq, e.Version, e.SHA256)
	return nil
}

// openInput opens the named file, or standard input for "-". size is -1 if nobody knows it.
func (p *program) openInput(name string) (in io.ReadCloser, size int64, err error) {
	if name == "-" {
		return io.NopCloser(p.stdin), -1, nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, 0, unusable("%w", err)
	}
	info, err := f.Stat()
	switch {
	case err != nil:
		f.Close()
		return nil, 0, unusable("%w", err)
	case info.IsDir():
		f.Close()
		return nil, 0, unusable("%s is a directory", name)
	case !info.Mode().IsRegular():
		return f, -1, nil
	}
	return f, info.Size(), nil
}

// get prints one value, or writes it into a file.
func (p *program) get(ctx context.Context, args []string) error {
	flags, base := p.clientFlags("get")
	version := flags.String("version", "", "the `Nth` version of the key")
	seq := flags.String("seq", "", "the entry with this `number`")
	at := flags.String("at", "", "the value as of then: `seq` or RFC 3339 time")
	consistency := flags.String("consistency", "", "linearizable or stale")
	file := flags.String("o", "", "`file` to write the value to")
	args, err := p.parse(flags, args, 1, 1)
	if err != nil {
		return err
	}
	c, err := newClient(*base)
	if err != nil {
		return err
	}
	path := withQuery(keyPath("/kv/", args[0]), "version", *version, "seq", *seq, "at", *at, "consistency", *consistency)
	resp, err := c.do(ctx, "GET", path, nil, nil, 0)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	out, err := p.createOutput(*file)
	if err != nil {
		return err
	}
	if err := copyChecked(out, resp); err != nil {
		out.discard()
		return err
	}
	return out.commit()
}

// copyChecked writes the body to w and compares it with the digest in the header.
func copyChecked(w io.Writer, resp *http.Response) error {
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(w, sum), resp.Body); err != nil {
		return fmt.Errorf("reading the value: %w", err)
	}
	want := resp.Header.Get("Repr-Digest")
	got := "sha-256=:" + base64.StdEncoding.EncodeToString(sum.Sum(nil)) + ":"
	if strings.HasPrefix(want, "sha-256=") && want != got {
		return fmt.Errorf("value is damaged: its digest is %s, the server says %s", got, want)
	}
	return nil
}

// output is where a command writes its result: standard output, or a file that
// gets its name when it is whole.
type output struct {
	io.Writer
	file *os.File // nil: standard output
	path string   // name the file gets; "" if it has it already
}

// partSuffix ends the name of a file that is not whole yet.
const partSuffix = ".part"

// createOutput opens the named file for writing; no name stands for standard
// output. Something that is no plain file, such as a pipe, is written in place.
func (p *program) createOutput(path string) (*output, error) {
	if path == "" || path == "-" {
		return &output{Writer: p.stdout}, nil
	}
	name, final := path+partSuffix, path
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		name, final = path, ""
	}
	f, err := os.Create(name)
	if err != nil {
		return nil, unusable("%w", err)
	}
	return &output{f, f, final}, nil
}

// commit closes the output; a file is on disk under its name afterwards.
func (o *output) commit() error {
	if o.file == nil {
		return nil
	}
	if o.path == "" {
		return o.file.Close()
	}
	if err := errors.Join(o.file.Sync(), o.file.Close()); err != nil {
		return err
	}
	return os.Rename(o.file.Name(), o.path)
}

// discard closes the output and removes what was written to a new file.
func (o *output) discard() {
	if o.file == nil {
		return
	}
	o.file.Close()
	if o.path != "" {
		os.Remove(o.file.Name())
	}
}

// kept closes the output as it is and says where it stands.
func (o *output) kept() string {
	if o.file == nil {
		return ""
	}
	o.file.Close()
	return ", what came before is in " + o.file.Name()
}

// history prints the versions of a key, newest first.
func (p *program) history(ctx context.Context, args []string) error {
	flags, base := p.clientFlags("history")
	asJSON := flags.Bool("json", false, "print the entries as JSON, one a line")
	args, err := p.parse(flags, args, 1, 1)
	if err != nil {
		return err
	}
	c, err := newClient(*base)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(p.stdout, 0, 8, 2, ' ', 0)
	defer table.Flush()
	if !*asJSON {
		fmt.Fprintln(table, "VERSION\tSEQ\tOP\tTIME\tSIZE\tSHA256\tCONTENT TYPE")
	}
	for before := ""; ; {
		var page struct {
			Versions []json.RawMessage
			Next     *uint64
		}
		path := withQuery(keyPath("/history/", args[0]), "limit", strconv.Itoa(pageSize), "before", before)
		if err := c.getJSON(ctx, path, &page); err != nil {
			return err
		}
		for _, raw := range page.Versions {
			if *asJSON {
				fmt.Fprintf(p.stdout, "%s\n", raw)
				continue
			}
			var e clientEntry
			if err := json.Unmarshal(raw, &e); err != nil {
				return fmt.Errorf("reading an entry: %w", err)
			}
			fmt.Fprintf(table, "%d\t%d\t%s\t%s\t%d\t%s\t%s\n", e.Version, e.Seq, e.Op,
				e.Time.Format(time.RFC3339Nano), e.Size, e.SHA256, printable(e.ContentType))
		}
		if page.Next == nil {
			return nil
		}
		before = strconv.FormatUint(*page.Next, 10)
	}
}

// keys prints the live keys with a prefix, one a line, in byte order.
func (p *program) keys(ctx context.Context, args []string) error {
	flags, base := p.clientFlags("keys")
	asJSON := flags.Bool("json", false, "print key, seq, version, size and time as JSON, one a line")
	args, err := p.parse(flags, args, 0, 1)
	if err != nil {
		return err
	}
	c, err := newClient(*base)
	if err != nil {
		return err
	}
	prefix := strings.Join(args, "")
	for after, after64 := "", ""; ; {
		var page struct {
			Keys       []json.RawMessage
			Next       *string
			NextBase64 *string `json:"next_base64"`
		}
		path := withQuery("/keys", "prefix", prefix, "limit", strconv.Itoa(pageSize), "after", after, "after_base64", after64)
		if err := c.getJSON(ctx, path, &page); err != nil {
			return err
		}
		if err := p.printKeys(page.Keys, *asJSON); err != nil {
			return err
		}
		switch {
		case page.Next != nil:
			after, after64 = *page.Next, ""
		case page.NextBase64 != nil:
			after, after64 = "", *page.NextBase64
		default:
			return nil
		}
	}
}

// printKeys prints one page of keys.
func (p *program) printKeys(keys []json.RawMessage, asJSON bool) error {
	var page bytes.Buffer
	for _, raw := range keys {
		var e clientEntry
		if asJSON {
			fmt.Fprintf(&page, "%s\n", raw)
		} else if err := json.Unmarshal(raw, &e); err != nil {
			return fmt.Errorf("reading a key: %w", err)
		} else if e.KeyBase64 != nil {
			fmt.Fprintln(&page, strconv.Quote(string(e.KeyBase64)))
		} else {
			fmt.Fprintln(&page, printable(e.Key))
		}
	}
	_, err := p.stdout.Write(page.Bytes())
	return err
}

// printable returns s as it is, or quoted if it would do something to a
// terminal or break a list of lines.
func printable(s string) string {
	clean := utf8.ValidString(s) && !strings.HasPrefix(s, `"`) &&
		strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) < 0
	if clean {
		return s
	}
	return strconv.Quote(s)
}

// clusterStatus is the answer of GET /cluster/status.
type clusterStatus struct {
	ClusterID string `json:"cluster_id"`
	Name      string `json:"name"`
	NodeID    uint64 `json:"node_id"`
	Term      uint64 `json:"term"`
	Leader    *struct {
		ID   uint64 `json:"id"`
		HTTP string `json:"http"`
	} `json:"leader"`
	Members []struct {
		ID      uint64 `json:"id"`
		HTTP    string `json:"http"`
		Raft    string `json:"raft"`
		Region  string `json:"region"`
		Version string `json:"version"`
		Role    string `json:"role"`
		State   string `json:"state"`
		Applied uint64 `json:"applied"`
		Lag     uint64 `json:"lag"`
	} `json:"members"`
	LedgerSize      uint64 `json:"ledger_size"`
	ManifestVersion uint64 `json:"manifest_version"`
}

// status prints what one node knows of its cluster.
func (p *program) status(ctx context.Context, args []string) error {
	flags, base := p.clientFlags("status")
	asJSON := flags.Bool("json", false, "print the server's answer")
	if _, err := p.parse(flags, args, 0, 0); err != nil {
		return err
	}
	c, err := newClient(*base)
	if err != nil {
		return err
	}
	var raw json.RawMessage
	if err := c.getJSON(ctx, "/cluster/status", &raw); err != nil {
		return err
	}
	if *asJSON {
		fmt.Fprintf(p.stdout, "%s\n", raw)
		return nil
	}
	var s clusterStatus
	if err := json.Unmarshal(raw, &s); err != nil {
		return fmt.Errorf("reading the answer to /cluster/status: %w", err)
	}
	return p.printStatus(&s)
}

// printStatus prints the cluster as a few lines and a table of its members.
func (p *program) printStatus(s *clusterStatus) error {
	leader := "none known"
	if s.Leader != nil {
		leader = fmt.Sprintf("node %d, %s", s.Leader.ID, printable(s.Leader.HTTP))
	}
	fmt.Fprintf(p.stdout, "cluster  %s %s\nanswer   of node %d, term %d\nleader   %s\nledger   %d entries, manifest version %d\n\n",
		printable(s.Name), printable(s.ClusterID), s.NodeID, s.Term, leader, s.LedgerSize, s.ManifestVersion)
	table := tabwriter.NewWriter(p.stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(table, "NODE\tROLE\tSTATE\tAPPLIED\tLAG\tHTTP\tRAFT\tREGION\tVERSION")
	for _, m := range s.Members {
		fmt.Fprintf(table, "%d\t%s\t%s\t%d\t%d\t%s\t%s\t%s\t%s\n", m.ID, printable(m.Role), printable(m.State),
			m.Applied, m.Lag, printable(m.HTTP), printable(m.Raft), printable(m.Region), printable(m.Version))
	}
	return table.Flush()
}
