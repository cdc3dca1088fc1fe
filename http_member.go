package main

import (
	"errors"
	"net"
	"net/http"
	"net/url"
	"strconv"
)

// The calls that change the membership.

// memberStatus is the status that answers each code of a changeRefused.
var memberStatus = map[string]int{
	refusedQuorum:      http.StatusConflict,
	refusedID:          http.StatusConflict,
	refusedAddress:     http.StatusConflict,
	refusedCluster:     http.StatusConflict,
	refusedRole:        http.StatusConflict,
	refusedUnknown:     http.StatusBadRequest,
	refusedWrong:       http.StatusBadRequest,
	refusedUnreachable: http.StatusBadGateway,
	refusedConnection:  http.StatusBadGateway,
}

// join takes the node that answers at an internal address into the cluster,
// or changes the role of a member.
func (s *server) join(c *call) (reply, error) {
	var ask struct {
		ID    uint64 `json:"id"`
		HTTP  string `json:"http"`
		Raft  string `json:"raft"`
		Voter *bool  `json:"voter"`
	}
	if err := s.readJSON(c, &ask); err != nil {
		return reply{}, err
	}
	switch {
	case ask.ID == 0 || ask.ID > 1<<53-1:
		return reply{}, badRequest("malformed", "id is %d, want the number of the node that joins", ask.ID)
	case !isAddress(ask.Raft):
		return reply{}, badRequest("malformed", "raft is %q, want host:port of the node's internal port", clip(ask.Raft))
	case ask.HTTP != "" && !isClientURL(ask.HTTP):
		return reply{}, badRequest("malformed", "http is %q, want the URL of the node's client port", clip(ask.HTTP))
	}
	return s.changeMember(c, &memberChange{ID: ask.ID, Raft: ask.Raft, Voter: ask.Voter})
}

// leave takes a node out of the cluster, dead or alive.
func (s *server) leave(c *call) (reply, error) {
	var ask struct {
		ID uint64 `json:"id"`
	}
	if err := s.readJSON(c, &ask); err != nil {
		return reply{}, err
	}
	if ask.ID == 0 {
		return reply{}, badRequest("malformed", `the body names no node, want {"id": number}`)
	}
	return s.changeMember(c, &memberChange{Leave: true, ID: ask.ID})
}

// changeMember answers a change of the membership once it is committed.
func (s *server) changeMember(c *call, change *memberChange) (reply, error) {
	err := s.node.changeMember(s.writes.context(), change)
	var refused *changeRefused
	switch {
	case errors.As(err, &refused):
		return reply{}, &apiError{status: memberStatus[refused.code], code: refused.code, message: refused.message}
	case errors.Is(err, errUnknownOutcome):
		return reply{}, &apiError{status: http.StatusGatewayTimeout, code: "unknown_outcome",
			message: "the change may be made later; look at /cluster/members, it is safe to ask for it again"}
	case err != nil:
		return reply{}, err
	}
	return encodeJSON(c, http.StatusOK, map[string]uint64{"id": change.ID})
}

// isAddress tells whether s is host:port.
func isAddress(s string) bool {
	host, port, err := net.SplitHostPort(s)
	n, perr := strconv.ParseUint(port, 10, 16)
	return err == nil && perr == nil && n > 0 && host != "" && len(s) <= 260
}

// isClientURL tells whether s is the URL of a server and nothing below it.
func isClientURL(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" && u.User == nil && len(s) <= 2048
}
