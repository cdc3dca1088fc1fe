package main

import "errors"

// operation is one change a client asks for.
type operation struct {
	kind        opKind
	key         []byte
	value       []byte
	contentType string
	author      string
	region      string
	ifAbsent    bool   // If-None-Match: *: the key must have no live version
	ifSeq       uint64 // If-Match: the key's live version must be this seq; noSeq = no condition
	digest      *hash  // SHA-256 the client says value has; nil = none given
}

// request is what a client submits as one unit: a single operation or an
// atomic batch. It is committed whole or not at all.
type request struct {
	ops            []operation
	atomic         bool   // POST /batch application/json; false: len(ops) == 1
	idempotencyKey string // at most 64 bytes; "" = none
}

// outcome is what the FSM decided about a request.
type outcome uint8

// Part of the log and of the internal protocol; never renumber.
const (
	outcomeApplied        outcome = 1 // entries were appended, one per operation
	outcomePrecondition   outcome = 2 // If-Match or If-None-Match does not hold; nothing appended
	outcomeNotFound       outcome = 3 // delete of a key without a live version; nothing appended
	outcomeDigestMismatch outcome = 4 // the value is not what the client hashed; nothing appended
)

// result is the FSM's answer to one request.
type result struct {
	outcome outcome
	failed  int      // index of the operation that failed, when nothing was applied
	current uint64   // seq of the live version that broke the precondition, or noSeq
	headers [][]byte // canonical header of each appended entry, in order
}

// The fates of a proposal that brought no result; http.go maps them to codes.
var (
	// errNoLeader: no leader is known or reachable; the request was not applied.
	errNoLeader = errors.New("no leader")
	// errUnknownOutcome: the request may or may not be applied later.
	errUnknownOutcome = errors.New("outcome unknown")
	// errOverloaded: the node has no room for the request now; it was not applied.
	errOverloaded = errors.New("overloaded")
	// errDiskFull: the disk is above its high-water mark; the request was not applied.
	errDiskFull = errors.New("disk full")
	// errNotYetApplied: this node did not reach the wanted seq in time.
	errNotYetApplied = errors.New("not yet applied")
)
