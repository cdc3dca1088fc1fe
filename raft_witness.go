package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// The ledger's side of witnesses: C2SP tlog-witness, whose request is
// merkle_submission.go. In a round the leader shows its newest checkpoint to
// every witness that has not cosigned it yet, with the proof that it extends
// what the witness cosigned last, and keeps the cosignatures. Rounds are for the
// good of others: nothing in the ledger waits for one, and a witness that is
// down, slow or lying costs a line in the log now and then. Nothing is kept on
// disk: a new leader learns from the witness itself (409) how far it is.

const (
	maxWitnessAnswer = 16 << 10 // bytes
	witnessSizeType  = "text/x.tlog.size"
	witnessLogEvery  = time.Minute // between two lines about one witness
)

var (
	// errNotWitnessed is returned when no checkpoint has as many cosignatures of
	// witnesses as were asked for.
	errNotWitnessed = errors.New("no checkpoint is cosigned by that many witnesses")
	// errWitnessRefused is wrapped by errors that say that a witness knows
	// another history of this ledger.
	errWitnessRefused = errors.New("the witness knows another history of this ledger")
	errWitnessAnswer  = errors.New("the answer of the witness is wrong")
)

// witnessTarget is a configured witness.
type witnessTarget struct {
	key noteVerifier
	url string // submission prefix
}

// witnessTable is what a node knows of its witnesses.
type witnessTable struct {
	// immutable after init
	client *http.Client
	feeds  []*witnessFeed

	mu     sync.Mutex   // guards the rest
	newest signedHead   // of the last round that brought a cosignature
	lines  []string     // for each feed its cosignature of newest, or ""
	best   []signedHead // [k-1]: the newest head with k or more cosignatures, with all of its lines
}

// witnessFeed is what goes to one witness.
type witnessFeed struct {
	witnessTarget
	limit *logLimit

	// owned by the round under way
	old  uint64 // size it cosigned last as far as is known
	done uint64 // size of the last cosignature that came back
}

// init prepares the table for the configured witnesses.
func (t *witnessTable) init(o *nodeOptions) {
	t.client = newWitnessClient()
	t.lines = make([]string, len(o.witnesses))
	for _, w := range o.witnesses {
		log := o.logger.With("witness", w.key.name, "url", w.url)
		t.feeds = append(t.feeds, &witnessFeed{witnessTarget: w, limit: &logLimit{log: log, every: witnessLogEvery}})
	}
}

// newWitnessClient returns a client that goes nowhere but where it is sent.
func newWitnessClient() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DisableCompression:     true,
			MaxIdleConnsPerHost:    1,
			IdleConnTimeout:        2 * time.Minute,
			MaxResponseHeaderBytes: maxWitnessAnswer,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// witnessLoop has a round every o.witnessEvery while this node leads.
func (n *node) witnessLoop() {
	for n.ctx.Err() == nil {
		if n.leads() {
			n.witnessRound()
		}
		n.pause(n.o.witnessEvery)
	}
	n.witnesses.client.CloseIdleConnections()
}

// witnessRound shows the newest checkpoint to the witnesses that have not
// cosigned it. It ends with the slowest, at o.witnessTimeout.
func (n *node) witnessRound() {
	size := n.store.size()
	var due []*witnessFeed
	for _, f := range n.witnesses.feeds {
		if f.done < size {
			due = append(due, f)
		}
	}
	if len(due) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(n.ctx, n.o.witnessTimeout)
	defer cancel()
	head, err := n.signedHead(ctx, size, true)
	if err != nil {
		n.o.logger.Debug("no checkpoint for the witnesses", "error", err)
		return
	}
	parallel(len(due), func(i int) {
		line, err := due[i].cosign(ctx, n.witnesses.client, head, n.store.consistency)
		n.countWitness(due[i], head, err)
		if err == nil {
			n.witnesses.keep(due[i], head, line)
		}
	})
}

// countWitness tells the operator how it went with one witness.
func (n *node) countWitness(f *witnessFeed, head signedHead, err error) {
	m := &n.o.metrics.witness
	switch {
	case n.ctx.Err() != nil:
	case err == nil:
		m.cosigned.add(1)
		m.size.set(int64(head.size))
	case errors.Is(err, errWitnessRefused):
		m.refused.add(1)
		f.limit.warn("WITNESS REFUSES THIS LEDGER", "size", head.size, "error", err)
	default:
		m.failed.add(1)
		f.limit.warn("no cosignature", "size", head.size, "error", err)
	}
}

// prover returns the consistency proof between two sizes of the ledger.
type prover func(from, to uint64) ([]hash, error)

// cosign returns the witness's line under head. A witness that is at another
// size than was thought says so, and is asked a second time.
func (f *witnessFeed) cosign(ctx context.Context, client *http.Client, head signedHead, prove prover) (string, error) {
	signed, err := parseNote(head.note)
	if err != nil {
		return "", err
	}
	if f.old > head.size {
		f.old = 0 // the witness says anew where it is
	}
	for range 2 {
		proof, err := prove(f.old, head.size)
		if err != nil {
			return "", fmt.Errorf("proof from %d to %d: %w", f.old, head.size, err)
		}
		answer, err := f.post(ctx, client, submission{f.old, proof, signed})
		var at *witnessAt
		if errors.As(err, &at) {
			if f.old = at.size; f.old > head.size {
				return "", fmt.Errorf("%w: it cosigned %d entries, the ledger has %d", errWitnessRefused, f.old, head.size)
			}
			continue
		}
		if err != nil {
			return "", err
		}
		line, err := f.checkLines(signed.body, answer)
		if err == nil {
			f.old, f.done = head.size, head.size
		}
		return line, err
	}
	return "", fmt.Errorf("%w: it is at %d entries, but does not say so twice", errWitnessAnswer, f.old)
}

// witnessAt is the answer of a witness that is at another size.
type witnessAt struct{ size uint64 }

func (e *witnessAt) Error() string { return fmt.Sprintf("the witness is at %d entries", e.size) }

// post sends one request and returns what stands in the answer 200.
func (f *witnessFeed) post(ctx context.Context, client *http.Client, s submission) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, f.url+"/add-checkpoint", strings.NewReader(s.String()))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "text/plain; charset=utf-8")
	res, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxWitnessAnswer+1))
	if err != nil {
		return "", fmt.Errorf("reading the answer %s: %w", res.Status, err)
	}
	if len(b) > maxWitnessAnswer {
		return "", fmt.Errorf("%w: more than %d bytes", errWitnessAnswer, maxWitnessAnswer)
	}
	return witnessAnswer(res, string(b))
}

// witnessAnswer returns the text of an answer 200, or what else it says.
func witnessAnswer(res *http.Response, text string) (string, error) {
	switch {
	case res.StatusCode == http.StatusOK:
		return text, nil
	case res.StatusCode == http.StatusConflict && res.Header.Get("Content-Type") == witnessSizeType:
		size, err := parseDecimal(strings.TrimSuffix(text, "\n"))
		if err != nil {
			return "", fmt.Errorf("%w: size: %w", errWitnessAnswer, err)
		}
		return "", &witnessAt{size}
	case res.StatusCode == http.StatusConflict || res.StatusCode == http.StatusUnprocessableEntity:
		return "", fmt.Errorf("%w: %s %.200q", errWitnessRefused, res.Status, text)
	}
	return "", fmt.Errorf("%w: %s %.200q", errWitnessAnswer, res.Status, text)
}

// checkLines returns the line of the witness's cosignature of body among the
// lines of an answer; those of other keys do not matter.
func (f *witnessFeed) checkLines(body, lines string) (string, error) {
	n, err := parseNote(body + "\n" + lines)
	if err != nil {
		return "", fmt.Errorf("%w: %w", errWitnessAnswer, err)
	}
	signed, _, err := n.check(f.key)
	if err != nil || !signed || n.body != body {
		return "", errors.Join(fmt.Errorf("%w: no cosignature by %s", errWitnessAnswer, f.key), err)
	}
	for _, s := range n.signatures {
		if s.name == f.key.name && s.id == f.key.id {
			return s.line(), nil
		}
	}
	panic("witness: a signature that was checked is not there")
}

// keep notes the line of one witness under head.
func (t *witnessTable) keep(f *witnessFeed, head signedHead, line string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if head.size < t.newest.size {
		return
	}
	if head.body() != t.newest.body() {
		clear(t.lines)
	}
	t.newest = head
	count, text := 0, head.note
	for i, feed := range t.feeds {
		if feed == f {
			t.lines[i] = line
		}
		if t.lines[i] != "" {
			count, text = count+1, text+t.lines[i]
		}
	}
	for len(t.best) < count {
		t.best = append(t.best, signedHead{})
	}
	for i := range count {
		t.best[i] = signedHead{head.treeHead, text}
	}
}

// get returns the newest checkpoint with at least that many cosignatures of
// witnesses that this node has seen.
func (t *witnessTable) get(least uint64) (signedHead, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if least = max(least, 1); least > uint64(len(t.best)) {
		return signedHead{}, fmt.Errorf("%w: want %d, the best has %d", errNotWitnessed, least, len(t.best))
	}
	return t.best[least-1], nil
}

// witnessedHead returns the newest checkpoint with the cosignatures of at least
// that many witnesses, as the leader knows it; errNotWitnessed without one.
// Without an answer of the leader it is what this node saw while it led itself.
func (n *node) witnessedHead(ctx context.Context, least uint64) (signedHead, error) {
	if addr, _ := n.leaderServer(); addr != "" && !n.leads() {
		var answer witnessedAnswer
		ctx, cancel := context.WithTimeout(ctx, leaderWait)
		defer cancel()
		err := n.call(ctx, http.MethodGet, string(addr), "/witnessed?least="+strconv.FormatUint(least, 10), nil, &answer)
		if err == nil {
			return answer.head()
		}
	}
	return n.witnesses.get(least)
}

// witnessedAnswer is the leader's answer to GET /witnessed.
type witnessedAnswer struct {
	Note string `json:"note"` // "" if no checkpoint has that many cosignatures
}

// head returns the checkpoint in the answer.
func (a witnessedAnswer) head() (signedHead, error) {
	if a.Note == "" {
		return signedHead{}, errNotWitnessed
	}
	signed, err := parseNote(a.Note)
	if err != nil {
		return signedHead{}, err
	}
	head, err := parseTreeHead(signed.body)
	return signedHead{head, a.Note}, err
}

// serveWitnessed tells another node the newest witnessed checkpoint.
func (n *node) serveWitnessed(w http.ResponseWriter, r *http.Request) {
	least, err := parseDecimal(r.FormValue("least"))
	if err != nil {
		respond(w, nil, err)
		return
	}
	head, _ := n.witnesses.get(least) // none is an answer too
	respond(w, witnessedAnswer{head.note}, nil)
}
