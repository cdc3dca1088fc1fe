package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/hashicorp/raft"
)

// An upload is a request too large for a pack. It travels in parts of packSize
// bytes that the FSM joins (fsm.go), one upload at a time, so that no message
// between nodes is large and small writes go on beside it.

const partsAhead = 8 // parts under way at a time

// upload has a request agreed that is too large for a pack, by itself.
func (n *node) upload(r *request, done func(result, error)) {
	f := &flight{pack: []waiting{{done: done}}}
	f.expiry = time.AfterFunc(n.o.writeTimeout, func() {
		if !f.answer(flightHome, nil, errNoLeader) {
			f.answer(flightAway, nil, errUnknownOutcome)
		}
	})
	n.packer.large.Lock() // one encoded copy at a time
	defer n.packer.large.Unlock()
	var body []byte
	for f.state.CompareAndSwap(flightHome, flightAway) {
		if body == nil {
			body = appendRequest(make([]byte, packHeaderSize, packHeaderSize+requestSize(r)), r)
		}
		changed := n.changing.next()
		results, err := n.sendLarge(body)
		if !errors.Is(err, errNotApplied) || errors.Is(err, errDiskFull) {
			f.answer(flightAway, results, err)
			return
		}
		f.state.CompareAndSwap(flightAway, flightHome)
		if n.leaderless() > n.patience() {
			f.answer(flightHome, nil, fmt.Errorf("%w: %w", errNoLeader, err))
			return
		}
		select {
		case <-changed:
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// sendLarge has a pack agreed that travels in parts, wherever the leader is.
func (n *node) sendLarge(body []byte) ([]result, error) {
	if n.leads() {
		return n.proposeLarge(body)
	}
	addr, _ := n.leaderServer()
	if addr == "" {
		return nil, fmt.Errorf("%w: %w", errNotApplied, errNoLeader)
	}
	return n.forwardLarge(string(addr), body[packHeaderSize:])
}

// proposeLarge puts a pack into the Raft log in parts.
func (n *node) proposeLarge(body []byte) ([]result, error) {
	if err := n.mayPropose(); err != nil {
		return nil, err
	}
	appendPackHeader(body[:0], n.o.now().UnixMilli())
	response, err := n.applyInParts(body)
	if err != nil {
		return nil, err
	}
	results, err := n.resultsOf(response)
	if errors.Is(err, errUploadLost) {
		err = fmt.Errorf("%w: %w", errNotApplied, err)
	}
	return results, err
}

// applyInParts has a command committed in parts. Its last part is proposed only
// when all others are committed, so that any failure before it leaves
// nothing applied.
func (n *node) applyInParts(body []byte) (any, error) {
	n.uploads.Lock()
	defer n.uploads.Unlock()
	id := rand.Uint64()
	part := func(at int) []byte {
		end := min(at+packSize, len(body))
		return append(appendPartHeader(make([]byte, 0, partHeaderSize+packSize), id, uint32(at), uint32(len(body))), body[at:end]...)
	}
	r := n.raft.Load()
	var ahead []raft.ApplyFuture
	at := 0
	for ; len(body)-at > packSize; at += packSize {
		ahead = append(ahead, r.Apply(part(at), enqueueLimit))
		if len(ahead) >= partsAhead {
			if err := n.wait(ahead[0]); err != nil {
				return nil, fmt.Errorf("%w: %w", errNotApplied, err)
			}
			ahead = ahead[1:]
		}
	}
	for _, f := range ahead {
		if err := n.wait(f); err != nil {
			return nil, fmt.Errorf("%w: %w", errNotApplied, err)
		}
	}
	return n.apply(part(at))
}

// notLeaderStatus answers a pack that was certainly not applied here.
const notLeaderStatus = http.StatusMisdirectedRequest

// forwardLarge has the leader agree a pack that needs parts.
func (n *node) forwardLarge(addr string, body []byte) ([]result, error) {
	ctx, cancel := context.WithTimeout(n.ctx, n.o.writeTimeout)
	defer cancel()
	ctx, stop := n.whileLeads(ctx, addr)
	defer stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+"/pack", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.GetBody = nil // never sent twice by net/http
	res, err := n.port.client().Do(req)
	if errors.Is(err, errDial) {
		return nil, fmt.Errorf("%w: %w", errNotApplied, err)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUnknownOutcome, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", errUnknownOutcome, err)
	case res.StatusCode == http.StatusOK:
		return parseResults(b)
	case res.StatusCode == http.StatusInsufficientStorage:
		return nil, fmt.Errorf("%w: %w", errNotApplied, errDiskFull)
	case res.StatusCode == notLeaderStatus:
		return nil, fmt.Errorf("%w: %s", errNotApplied, bytes.TrimSpace(b))
	}
	return nil, fmt.Errorf("%w: %s", errUnknownOutcome, bytes.TrimSpace(b))
}

// serveLarge agrees a follower's pack that needs parts.
func (n *node) serveLarge(w http.ResponseWriter, r *http.Request) {
	if !n.leads() {
		http.Error(w, "not the leader", notLeaderStatus)
		return
	}
	if r.ContentLength < 0 || r.ContentLength > uploadLimit {
		http.Error(w, fmt.Sprintf("pack of %d bytes", r.ContentLength), http.StatusBadRequest)
		return
	}
	release, err := n.reserve(r.Context(), r.ContentLength)
	if err != nil {
		http.Error(w, err.Error(), notLeaderStatus)
		return
	}
	defer release()
	body := make([]byte, packHeaderSize+r.ContentLength)
	if _, err := io.ReadFull(r.Body, body[packHeaderSize:]); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	results, err := n.proposeLarge(body)
	switch {
	case errors.Is(err, errDiskFull):
		http.Error(w, err.Error(), http.StatusInsufficientStorage)
	case errors.Is(err, errNotApplied):
		http.Error(w, err.Error(), notLeaderStatus)
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	default:
		var out []byte
		for i := range results {
			out = appendResult(out, &results[i])
		}
		w.Write(out)
	}
}
