package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// The HTTP client of verify and audit. The server is the one that is checked:
// every reply has a bound, and no redirect is followed.

const (
	maxReply     = 2 << 20          // bytes of a reply that is read whole, unless said otherwise
	replyTimeout = 60 * time.Second // of such a reply; of silence within a long one
)

// errReply is wrapped by errors about replies that are not what was asked for.
var errReply = errors.New("request failed")

// errSilent ends a reply of which nothing has come for too long.
var errSilent = fmt.Errorf("%w: the server sends nothing more", errReply)

// ledgerClient asks one server.
type ledgerClient struct {
	base     string // URL without a slash at its end
	http     *http.Client
	patience time.Duration // with a server that sends nothing
}

// newLedgerClient returns a client of the server at base.
func newLedgerClient(base string) (*ledgerClient, error) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return nil, fmt.Errorf("%w url %q: want http://host:port", errBadArgument, base)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DisableCompression = true // digests are of the bytes as stored, and a bound is of what is read
	transport.ResponseHeaderTimeout = replyTimeout
	transport.MaxIdleConnsPerHost = 16
	return &ledgerClient{strings.TrimRight(base, "/"), &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, replyTimeout}, nil
}

// statusError is a reply that is not 200.
type statusError struct {
	status int
	text   string // what the server says, quoted
	path   string
}

func (e *statusError) Error() string {
	return fmt.Sprintf("GET %s: status %d %s", e.path, e.status, e.text)
}
func (e *statusError) Unwrap() error { return errReply }

// open asks for path and returns the body of the reply, which is a 200.
func (c *ledgerClient) open(ctx context.Context, path string) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	resp, err := c.ask(ctx, path)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	watch := time.AfterFunc(c.patience, func() { cancel(errSilent) })
	return &watchedBody{resp.Body, ctx, cancel, watch, c.patience}, nil
}

// watchedBody is the body of a reply; a read of it lasts only so long.
type watchedBody struct {
	io.ReadCloser
	ctx      context.Context // ends the reply
	cancel   context.CancelCauseFunc
	watch    *time.Timer
	patience time.Duration
}

func (b *watchedBody) Read(p []byte) (int, error) {
	b.watch.Reset(b.patience)
	n, err := b.ReadCloser.Read(p)
	b.watch.Stop() // the reader may take its time
	if err != nil && errors.Is(context.Cause(b.ctx), errSilent) {
		err = fmt.Errorf("%w for %s", errSilent, b.patience)
	}
	return n, err
}

func (b *watchedBody) Close() error {
	b.watch.Stop()
	b.cancel(nil)
	return b.ReadCloser.Close()
}

// ask asks for path. The body of the reply, which is a 200, is to be closed.
func (c *ledgerClient) ask(ctx context.Context, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, "GET", c.base+path, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errReply, err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errReply, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 2<<10))
	var reply struct {
		Error struct{ Code, Message string }
	}
	if json.Unmarshal(text, &reply) == nil && reply.Error.Code != "" {
		text = []byte(reply.Error.Code + ": " + reply.Error.Message)
	}
	return nil, &statusError{resp.StatusCode, fmt.Sprintf("%.300q", text), path}
}

// get returns the body of the reply to path, at most limit bytes.
func (c *ledgerClient) get(ctx context.Context, path string, limit int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, replyTimeout)
	defer cancel()
	body, err := c.open(ctx, path)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	b, err := io.ReadAll(io.LimitReader(body, limit+1))
	if err != nil {
		return nil, fmt.Errorf("%w: GET %s: %w", errReply, path, err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%w: GET %s: more than %d bytes", errReply, path, limit)
	}
	return b, nil
}

// getJSON decodes the reply to path into v.
func (c *ledgerClient) getJSON(ctx context.Context, path string, limit int64, v any) error {
	b, err := c.get(ctx, path, limit)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w: GET %s: %w", errReply, path, err)
	}
	return nil
}

// escapeKey returns a key as it stands in a path: every byte that could be
// taken for something else on the way is escaped.
func escapeKey[T string | []byte](key T) string {
	if s := string(key); s == "." || s == ".." {
		return strings.ReplaceAll(s, ".", "%2E")
	}
	return url.PathEscape(string(key))
}
