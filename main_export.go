package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"
)

// The command export: the entries that the ledger has when it starts, one JSON
// object a line, values included. A connection that drops is made anew and the
// stream goes on at the next seq, so that the result has no gap and no double.

// exportRetries is how often a stream is opened again without any entry in between.
const exportRetries = 10

// exporter is one run of export.
type exporter struct {
	client   *client
	prefix   string
	next     uint64 // seq of the entry to ask for
	end      uint64 // size of the ledger when export began
	answered bool   // end is what the first answer said
	count    int64  // entries written
	from     uint64
	out      *bufio.Writer
	bar      *progress
	pause    time.Duration // before a stream is opened again
}

// export writes all entries to standard output or into a file.
func (p *program) export(ctx context.Context, args []string) error {
	flags, base := p.clientFlags("export")
	file := flags.String("o", "", "`file` to write to")
	from := flags.Uint64("from", 0, "`seq` of the first entry")
	prefix := flags.String("prefix", "", "only entries whose key begins with `text`")
	if _, err := p.parse(flags, args, 0, 0); err != nil {
		return err
	}
	c, err := newClient(*base)
	if err != nil {
		return err
	}
	var status clusterStatus
	if err := c.getJSON(ctx, "/cluster/status", &status); err != nil {
		return err
	}
	out, err := p.createOutput(*file)
	if err != nil {
		return err
	}
	job := &exporter{client: c, prefix: *prefix, next: *from, from: *from, end: status.LedgerSize,
		out: bufio.NewWriterSize(out, 64<<10), bar: p.newProgress("exported"), pause: 500 * time.Millisecond}
	err = job.run(ctx)
	job.bar.finish(job.count)
	if err != nil {
		return fmt.Errorf("export stopped before seq %d, --from %d goes on there%s: %w", job.next, job.next, out.kept(), err)
	}
	return out.commit()
}

// run streams until the end is reached, again and again if need be. The first
// answer tells the end: the status is only what that node has applied so far.
func (j *exporter) run(ctx context.Context) error {
	for failures := 0; !j.answered || j.next < j.end; {
		before := j.next
		err := j.stream(ctx)
		if flushed := j.out.Flush(); flushed != nil {
			return flushed
		}
		switch {
		case err != nil && !transient(err):
			return err
		case err == nil && j.next == before && j.prefix == "" && j.next < j.end:
			return fmt.Errorf("the server has no entry %d, its ledger had %d entries", j.next, j.end)
		case err == nil && j.next == before:
			return nil // the rest does not have the prefix
		case err == nil || j.next > before:
			failures = 0
		case failures == exportRetries:
			return err
		default:
			failures++
		}
		if err == nil {
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(j.pause):
		}
	}
	return nil
}

// errBadExport is wrapped by errors that another attempt would not mend.
var errBadExport = errors.New("the server's stream is wrong")

// transient reports whether the request may work when it is sent again.
func transient(err error) bool {
	var server *serverError
	if errors.As(err, &server) {
		return server.status >= 500 || server.status == 429
	}
	return !errors.Is(err, errBadExport) && !errors.Is(err, context.Canceled)
}

// stream writes whole lines until the answer ends (nil), breaks off, or the end is reached (nil).
func (j *exporter) stream(ctx context.Context) error {
	path := withQuery("/ledger/entries", "from", strconv.FormatUint(j.next, 10), "values", "true", "prefix", j.prefix)
	resp, err := j.client.do(ctx, "GET", path, nil, nil, 0)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if size, err := strconv.ParseUint(resp.Header.Get("Scribe-Ledger-Size"), 10, 64); err == nil && !j.answered {
		j.end = max(j.end, size)
	}
	j.answered = true
	r := bufio.NewReaderSize(resp.Body, 64<<10)
	var line []byte
	for j.next < j.end {
		line, err = readLine(r, line)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := j.entry(line); err != nil {
			return err
		}
	}
	return nil
}

// entry checks one line and writes it.
func (j *exporter) entry(line []byte) error {
	var e struct {
		Seq   *uint64
		Error *serverError
	}
	if err := json.Unmarshal(line, &e); err != nil {
		return fmt.Errorf("reading the entry after seq %d: %w", int64(j.next)-1, err)
	}
	switch {
	case e.Error != nil:
		return e.Error
	case e.Seq == nil || *e.Seq < j.next || *e.Seq != j.next && j.prefix == "":
		return fmt.Errorf("%w: want entry %d, got %.60q", errBadExport, j.next, line)
	case *e.Seq >= j.end:
		j.next = j.end
		return nil
	}
	if _, err := j.out.Write(line); err != nil {
		return err // run finds it again when it flushes
	}
	if line[len(line)-1] != '\n' {
		j.out.WriteByte('\n')
	}
	j.next = *e.Seq + 1
	j.count++
	j.bar.update(j.count, float64(j.next-j.from)/float64(j.end-j.from))
	return nil
}
