package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// The command witness: it watches ledgers, of others best, and cosigns each
// checkpoint that extends the one it cosigned before. Who asks for its
// cosignature knows that nobody was shown another history. It is a witness
// after C2SP tlog-witness and serves any log that speaks that:
//
//	POST /add-checkpoint      body: merkle_submission.go
//	     200  lines of cosignatures; the state is on disk
//	     400  malformed, or old is larger than the checkpoint
//	     403  no valid signature of the log
//	     404  the log is not one of --log, --log-file
//	     409  old is not the size cosigned last, which the body says in decimal and a
//	          newline, as text/x.tlog.size
//	     413  larger than 64 KiB
//	     422  the proof is wrong, or the size was cosigned with another root
//	     500  the state cannot be written
//	GET /<hex SHA-256 of the origin line>/checkpoint    the newest cosigned checkpoint, 404 if none
//	GET /vkey                 the key of the witness, one line (not in the standard)
//	GET /metrics              Prometheus text (not in the standard)
//
// The two prefixes of the standard, for submission and for monitoring, are the
// root here. There is no authentication but the log's signature; for TLS a
// proxy stands in front.

const (
	maxSubmission = 64 << 10 // bytes of one request
	plainType     = "text/plain; charset=utf-8"
)

// witnessServer is a running witness.
type witnessServer struct {
	// immutable
	signer noteSigner
	logs   map[string]*witnessedLog // by origin
	ids    map[string]*witnessedLog // by hex SHA-256 of the origin
	logger *slog.Logger
	now    func() time.Time

	answers [len(witnessStatuses)]atomic.Uint64 // to add-checkpoint
	forks   atomic.Uint64
}

// witnessStatuses is what add-checkpoint answers.
var witnessStatuses = [...]int{200, 400, 403, 404, 409, 413, 422, 500}

// witnessRefusal is a checkpoint that is not cosigned.
type witnessRefusal struct {
	status int
	err    error
	size   uint64 // of the checkpoint cosigned last; told with 409
}

func (r *witnessRefusal) Error() string { return r.err.Error() }

// refuse returns a witnessRefusal.
func refuse(status int, format string, args ...any) error {
	return &witnessRefusal{status: status, err: fmt.Errorf(format, args...)}
}

// witness runs a witness until ctx ends.
func (p *program) witness(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("witness", flag.ContinueOnError)
	listen := flags.String("listen", "127.0.0.1:8301", "`address` to serve at")
	dir := flags.String("data", "./witness", "`directory` of the key and of what was cosigned; made when missing")
	name := flags.String("name", "", "`name` of the witness in its cosignatures, such as witness.example.com/w1; for ever")
	var keys []noteVerifier
	flags.Func("log", "`vkey` of a ledger to watch, repeatable; its name is the origin line; several of one name are all trusted", func(s string) error {
		return addLogKey(&keys, s)
	})
	flags.Func("log-file", "`file` of such keys, one a line", func(file string) error {
		return readLogKeys(&keys, file)
	})
	if _, err := p.parse(flags, args, 0, 0); err != nil {
		return err
	}
	if *name == "" || len(keys) == 0 {
		return unusable("witness: --name and at least one --log are needed; usage: scribe-ledger %s", usageOf("witness"))
	}
	if _, err := newNoteSigner(*name, sigCosignature, make([]byte, 32)); err != nil {
		return unusable("witness: --name: %w", err)
	}
	if err := p.runWitness(ctx, *listen, *dir, *name, keys); err != nil {
		return &exitError{exitUnusable, err}
	}
	return nil
}

// addLogKey adds the key of one ledger.
func addLogKey(keys *[]noteVerifier, vkey string) error {
	k, err := parseVerifier(vkey)
	if err != nil {
		return err
	}
	if k.kind != sigEd25519 {
		return fmt.Errorf("key %s is of type %#02x, a ledger signs with type %#02x", k.name, k.kind, sigEd25519)
	}
	if !slices.ContainsFunc(*keys, func(o noteVerifier) bool { return o.String() == k.String() }) {
		*keys = append(*keys, k)
	}
	return nil
}

// readLogKeys adds the keys in a file: one a line, empty lines and lines that begin with # left out.
func readLogKeys(keys *[]noteVerifier, file string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	at := 0
	for line := range strings.Lines(string(b)) {
		at++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if err := addLogKey(keys, line); err != nil {
			return fmt.Errorf("line %d: %w", at, err)
		}
	}
	return nil
}

// runWitness opens the directory and serves.
func (p *program) runWitness(ctx context.Context, listen, dir, name string, keys []noteVerifier) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	lock, err := lockDir(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	w := &witnessServer{logger: p.newLogger(logConfig{Level: "info", Format: "auto"}), now: p.now}
	if err := w.open(dir, name, keys); err != nil {
		return err
	}
	ln, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	fmt.Fprintln(p.stdout, w.signer.noteVerifier)
	w.logger.Info("witness serving", "version", buildVersion(), "listen", ln.Addr().String(), "data", dir, "logs", len(w.logs))
	return w.serve(ctx, ln)
}

// open reads the state.
func (w *witnessServer) open(dir, name string, keys []noteVerifier) error {
	signer, logs, err := openWitness(dir, name, keys)
	if err != nil {
		return err
	}
	w.signer = signer
	w.logs, w.ids = make(map[string]*witnessedLog), make(map[string]*witnessedLog)
	for _, l := range logs {
		l.limit = &logLimit{log: w.logger.With("log", l.origin), every: witnessWarnEvery}
		w.logs[l.origin], w.ids[l.id] = l, l
	}
	return nil
}

// serve answers on ln until ctx ends, then lets the requests under way finish.
func (w *witnessServer) serve(ctx context.Context, ln net.Listener) error {
	server := &http.Server{
		Handler:           w.routes(),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       20 * time.Second,
		WriteTimeout:      60 * time.Second, // a write of the state included
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(w.logger.Handler(), slog.LevelDebug),
	}
	stopped := make(chan error, 1)
	end := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.Background(), requestGrace)
		defer cancel()
		stopped <- server.Shutdown(grace)
	})
	err := server.Serve(ln)
	if end() {
		return err
	}
	if err := <-stopped; err != nil {
		w.logger.Warn("requests were cut off", "error", err)
	}
	return nil
}

// routes is the whole interface.
func (w *witnessServer) routes() http.Handler {
	m := http.NewServeMux()
	m.HandleFunc("POST /add-checkpoint", w.addCheckpoint)
	m.HandleFunc("GET /{log}/checkpoint", w.checkpoint)
	m.HandleFunc("GET /vkey", w.vkey)
	m.HandleFunc("GET /metrics", w.metrics)
	return m
}

// addCheckpoint cosigns the checkpoint in the request, or says why not.
func (w *witnessServer) addCheckpoint(rw http.ResponseWriter, r *http.Request) {
	line, err := w.cosign(http.MaxBytesReader(rw, r.Body, maxSubmission))
	refusal := &witnessRefusal{status: http.StatusOK}
	if err != nil && !errors.As(err, &refusal) {
		w.logger.Error("keeping a checkpoint", "error", err)
		refusal = &witnessRefusal{status: http.StatusInternalServerError, err: errors.New("the state cannot be written")}
	}
	w.answers[slices.Index(witnessStatuses[:], refusal.status)].Add(1)
	kind, body := plainType, line
	switch {
	case refusal.status == http.StatusConflict:
		kind, body = witnessSizeType, fmt.Sprintf("%d\n", refusal.size)
	case err != nil:
		body = refusal.Error() + "\n"
	}
	replyText(rw, refusal.status, kind, body)
}

// cosign returns the line of the cosignature, after the checkpoint is on disk.
// Its error is a witnessRefusal, or what went wrong with the disk.
func (w *witnessServer) cosign(body io.Reader) (string, error) {
	text, err := io.ReadAll(body)
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return "", refuse(http.StatusRequestEntityTooLarge, "body: more than %d bytes", large.Limit)
	case err != nil:
		return "", refuse(http.StatusBadRequest, "body: %w", err)
	}
	s, err := parseSubmission(string(text))
	if err != nil {
		return "", refuse(http.StatusBadRequest, "%w", err)
	}
	head, err := parseTreeHead(s.head.body)
	if errors.Is(err, errEmptyRoot) {
		head.origin, _, _ = strings.Cut(s.head.body, "\n") // 422, but only to who has the log's signature
	} else if err != nil {
		return "", refuse(http.StatusBadRequest, "%w", err)
	}
	l := w.logs[head.origin]
	if l == nil {
		return "", refuse(http.StatusNotFound, "log %.200q is not watched here", head.origin)
	}
	signed, err := l.signatures(s.head)
	if err != nil {
		return "", err
	}
	if s.old > head.size {
		return "", refuse(http.StatusBadRequest, "old is %d, the checkpoint has %d entries", s.old, head.size)
	}
	return w.advance(l, s, head, signed)
}

// signatures returns those of n that are the log's and valid: one at least.
func (l *witnessedLog) signatures(n note) ([]noteSignature, error) {
	var signed []noteSignature
	for _, k := range l.keys {
		ok, _, err := n.check(k)
		if err != nil {
			return nil, refuse(http.StatusForbidden, "%w", err)
		}
		if ok {
			at := slices.IndexFunc(n.signatures, func(s noteSignature) bool { return s.name == k.name && s.id == k.id })
			signed = append(signed, n.signatures[at])
		}
	}
	if len(signed) == 0 {
		return nil, refuse(http.StatusForbidden, "no signature of a known key of %s", l.origin)
	}
	return signed, nil
}

// advance checks that head extends what was cosigned last, keeps it and
// cosigns it. One at a time for a log.
func (w *witnessServer) advance(l *witnessedLog, s submission, head treeHead, signed []noteSignature) (string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := l.last.Load()
	if last == nil {
		last = &cosignedHead{treeHead: treeHead{origin: l.origin, root: emptyRoot}}
	}
	if head.size == last.size && head.root != last.root && head.size > 0 {
		w.reportFork(l, s.head, last)
	}
	if s.old != last.size {
		return "", &witnessRefusal{http.StatusConflict, fmt.Errorf("old is %d, want %d", s.old, last.size), last.size}
	}
	if err := extends(s, head, last.treeHead); err != nil {
		l.limit.warn("a checkpoint does not extend the one cosigned last", "cosigned", last.size, "size", head.size, "error", err)
		return "", refuse(http.StatusUnprocessableEntity, "%w", err)
	}
	own := w.signer.sign(s.head.body, w.now().Unix())
	cosigned := note{body: s.head.body, signatures: append(signed, own)}
	if err := l.save(cosignedHead{head, cosigned.String()}); err != nil {
		return "", err
	}
	return own.line(), nil
}

// extends tells why head is not shown to be an extension of last.
func extends(s submission, head, last treeHead) error {
	if head.size == 0 && head.root != emptyRoot {
		return errEmptyRoot
	}
	return checkConsistency(last.size, head.size, s.proof, last.root, head.root)
}

// reportFork tells the world that a log signed two trees of one size. l.mu must be held.
func (w *witnessServer) reportFork(l *witnessedLog, refused note, base *cosignedHead) {
	w.forks.Add(1)
	if err := l.saveFork(refused, base); err != nil {
		w.logger.Error("keeping the evidence of a fork", "log", l.origin, "error", err)
	}
	l.limit.warn("FORK: the log signed two trees of one size", "size", base.size, "evidence", l.path+witnessForkSuffix)
}

// checkpoint shows the newest cosigned checkpoint of a log.
func (w *witnessServer) checkpoint(rw http.ResponseWriter, r *http.Request) {
	l := w.ids[r.PathValue("log")]
	var head *cosignedHead
	if l != nil {
		head = l.last.Load()
	}
	if head == nil {
		replyText(rw, http.StatusNotFound, plainType, "no checkpoint of this log was cosigned\n")
		return
	}
	rw.Header().Set("Cache-Control", "no-cache")
	replyText(rw, http.StatusOK, plainType, head.note)
}

// vkey shows the key of the witness.
func (w *witnessServer) vkey(rw http.ResponseWriter, _ *http.Request) {
	replyText(rw, http.StatusOK, plainType, w.signer.noteVerifier.String()+"\n")
}

// metrics shows what add-checkpoint answered.
func (w *witnessServer) metrics(rw http.ResponseWriter, _ *http.Request) {
	b := []byte("# HELP scribe_witness_answers_total Answers to add-checkpoint.\n# TYPE scribe_witness_answers_total counter\n")
	for i, status := range witnessStatuses {
		b = fmt.Appendf(b, "scribe_witness_answers_total{status=\"%d\"} %d\n", status, w.answers[i].Load())
	}
	b = fmt.Appendf(b, "# HELP scribe_witness_forks_total Checkpoints with the size of a cosigned one and another root.\n"+
		"# TYPE scribe_witness_forks_total counter\nscribe_witness_forks_total %d\n", w.forks.Load())
	replyText(rw, http.StatusOK, "text/plain; version=0.0.4; charset=utf-8", string(b))
}

// replyText sends a whole answer.
func replyText(rw http.ResponseWriter, status int, kind, text string) {
	rw.Header().Set("Content-Type", kind)
	rw.Header().Set("X-Content-Type-Options", "nosniff")
	rw.WriteHeader(status)
	io.WriteString(rw, text)
}
