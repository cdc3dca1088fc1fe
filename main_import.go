package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// The command import: a file of operations, one JSON object a line, streamed
// into POST /batch on one connection, so that the order of the lines is the
// order of the ledger. It reads what export writes.

// shownErrors is how many failed lines import prints one by one.
const shownErrors = 10

// importFields are what POST /batch takes of a line; the other fields of an
// exported entry (seq, time, …) belong to the ledger it came from.
type importFields struct {
	Op          json.RawMessage `json:"op"`
	Key         json.RawMessage `json:"key"`
	KeyBase64   json.RawMessage `json:"key_base64"`
	Value       json.RawMessage `json:"value"`
	ValueBase64 json.RawMessage `json:"value_base64"`
	ContentType json.RawMessage `json:"content_type"`
	IfAbsent    json.RawMessage `json:"if_absent"`
	IfSeq       json.RawMessage `json:"if_seq"`
}

// appendImported appends the operation that line describes, as one line. A
// line that is not a JSON object is passed on as it is: the server answers it
// with an error in its place. room is for the fields and may be used again.
func appendImported(b, line []byte, room *importFields) []byte {
	fields := [...]struct {
		name  string
		value *json.RawMessage
	}{
		{`"op":`, &room.Op}, {`"key":`, &room.Key}, {`"key_base64":`, &room.KeyBase64},
		{`"value":`, &room.Value}, {`"value_base64":`, &room.ValueBase64},
		{`"content_type":`, &room.ContentType}, {`"if_absent":`, &room.IfAbsent}, {`"if_seq":`, &room.IfSeq},
	}
	for _, f := range fields {
		*f.value = (*f.value)[:0]
	}
	if json.Unmarshal(line, room) != nil {
		return append(append(b, line...), '\n')
	}
	b = append(b, '{')
	for _, f := range fields {
		if len(*f.value) == 0 {
			continue // not in the line
		}
		if b[len(b)-1] != '{' {
			b = append(b, ',')
		}
		b = append(append(b, f.name...), *f.value...)
	}
	return append(b, '}', '\n')
}

// importer is one run of import.
type importer struct {
	in   *bufio.Reader
	read atomic.Int64 // bytes of the input that were sent

	mu    sync.Mutex // guards sent and blank, so that lineOf knows every line that was answered
	sent  int64      // operations
	blank []int64    // for each line left out: how many operations were sent before it
}

// importLines sends every line of a file as one operation.
func (p *program) importLines(ctx context.Context, args []string) error {
	flags, base := p.clientFlags("import")
	args, err := p.parse(flags, args, 1, 1)
	if err != nil {
		return err
	}
	c, err := newClient(*base)
	if err != nil {
		return err
	}
	in, size, err := p.openInput(args[0])
	if err != nil {
		return err
	}
	defer in.Close()

	job := &importer{in: bufio.NewReaderSize(in, 1<<20)}
	body, feed := io.Pipe()
	go func() { feed.CloseWithError(job.send(feed)) }()
	header := http.Header{"Content-Type": {"application/x-ndjson"}}
	resp, err := c.do(ctx, "POST", "/batch", header, body, -1)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return p.readResults(job, resp.Body, size)
}

// send writes all operations to w. It never holds back a line while it waits
// for input, so that a slow producer sees its lines applied.
func (j *importer) send(w io.Writer) error {
	out := bufio.NewWriterSize(w, 64<<10)
	var line, op []byte
	var room importFields
	for {
		if j.in.Buffered() == 0 {
			if err := out.Flush(); err != nil {
				return err
			}
		}
		var err error
		line, err = readLine(j.in, line)
		if errors.Is(err, io.EOF) {
			return out.Flush()
		}
		if err != nil {
			return fmt.Errorf("reading the input: %w", err)
		}
		j.read.Add(int64(len(line)))
		if !j.count(bytes.TrimSpace(line)) {
			continue
		}
		op = appendImported(op[:0], bytes.TrimSpace(line), &room)
		if _, err := out.Write(op); err != nil {
			return err
		}
	}
}

// count enters a line before it is sent; it returns false for a blank one, which is left out.
func (j *importer) count(line []byte) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(line) == 0 {
		j.blank = append(j.blank, j.sent)
		return false
	}
	j.sent++
	return true
}

// lineOf returns the number of the line, from 1, that the operation (from 0)
// stood in. Operations must be asked for in rising order.
func (j *importer) lineOf(op int64, blanks *int64) int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	for len(j.blank) > 0 && j.blank[0] <= op {
		j.blank = j.blank[1:]
		*blanks++
	}
	return op + *blanks + 1
}

// readLine reads up to and including the next newline into buf, however long
// the line is. The last line may lack its newline; io.EOF comes alone.
func readLine(r *bufio.Reader, buf []byte) ([]byte, error) {
	buf = buf[:0]
	for {
		part, err := r.ReadSlice('\n')
		buf = append(buf, part...)
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(buf) > 0:
			return buf, nil
		default:
			return buf, err
		}
	}
}

// readResults reads one result for each operation, tells the progress and the
// first errors, and returns an error unless every line was applied.
func (p *program) readResults(job *importer, results io.Reader, size int64) error {
	progress := p.newProgress("imported")
	r := bufio.NewReaderSize(results, 64<<10)
	var line []byte
	var done, failed, blanks int64
	for ; ; done++ {
		var err error
		if line, err = readLine(r, line); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			progress.finish(done - failed)
			return fmt.Errorf("reply broke off after line %d, later lines may or may not be applied: %w", job.lineOf(done-1, &blanks), err)
		}
		number := job.lineOf(done, &blanks)
		if e := resultError(line); e != nil {
			failed++
			if failed <= shownErrors {
				progress.clear()
				fmt.Fprintf(p.stderr, "line %d: %s\n", number, e)
			}
		}
		progress.update(done+1-failed, float64(job.read.Load())/float64(size))
	}
	progress.finish(done - failed)
	if sent := job.total(); done < sent {
		return fmt.Errorf("reply ended after line %d, later lines may or may not be applied", job.lineOf(done-1, &blanks))
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d lines were not applied", failed, done)
	}
	return nil
}

// total returns how many operations were sent.
func (j *importer) total() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.sent
}

// resultError returns the error that a line of the reply holds, or nil.
func resultError(line []byte) error {
	if !bytes.Contains(line, []byte(`"error"`)) {
		return nil
	}
	if e := parseServerError(line); e != nil {
		return e
	}
	return nil
}

// progress tells how far a long command is: in one line that changes on a
// terminal, else in a line every few seconds. Its methods are for one goroutine.
type progress struct {
	out      io.Writer
	now      func() time.Time
	verb     string // such as "imported"
	terminal bool
	every    time.Duration
	start    time.Time
	shown    time.Time
}

// newProgress starts the clock of a command that has verb entries.
func (p *program) newProgress(verb string) *progress {
	now := p.now()
	pr := &progress{out: p.stderr, now: p.now, verb: verb, terminal: isTerminal(p.stderr), every: 5 * time.Second, start: now, shown: now}
	if pr.terminal {
		pr.every = 200 * time.Millisecond
	}
	return pr
}

// update tells that count entries are done, which is the given part of all;
// a part that is not between 0 and 1 is unknown.
func (pr *progress) update(count int64, part float64) {
	now := pr.now()
	if now.Sub(pr.shown) < pr.every {
		return
	}
	pr.shown = now
	text := pr.summary(count, now)
	if part > 0 && part <= 1 {
		left := time.Duration(float64(now.Sub(pr.start)) * (1 - part) / part)
		text += fmt.Sprintf(", %.0f %%, %s left", 100*part, left.Round(time.Second))
	}
	if pr.terminal {
		fmt.Fprintf(pr.out, "\r%s\x1b[K", text)
	} else {
		fmt.Fprintln(pr.out, text)
	}
}

// summary says how many entries are done and how fast.
func (pr *progress) summary(count int64, now time.Time) string {
	seconds := now.Sub(pr.start).Seconds()
	return fmt.Sprintf("%s %d entries in %.1f s, %.0f/s", pr.verb, count, seconds, float64(count)/max(seconds, 1e-3))
}

// clear empties the line that changes, so that another can be printed.
func (pr *progress) clear() {
	if pr.terminal {
		fmt.Fprint(pr.out, "\r\x1b[K")
	}
}

// finish tells the result.
func (pr *progress) finish(count int64) {
	pr.clear()
	fmt.Fprintln(pr.out, pr.summary(count, pr.now()))
}
