package main

import "testing"

// Each outcome of a change of the membership has its answer.
func TestMembership(t *testing.T) {
	s := newTestServer(t, nil)
	join := func(body string, status int, code string) apiRow {
		return apiRow{method: "POST", target: "/cluster/join", body: body, status: status, code: code}
	}
	leave := func(body string, status int, code string) apiRow {
		return apiRow{method: "POST", target: "/cluster/leave", body: body, status: status, code: code}
	}
	const good = `{"id":4,"http":"http://127.0.0.1:8004","raft":"127.0.0.1:9004","voter":false}`
	s.check([]apiRow{
		join(good, 200, ""),
		join(`{"id":4,"raft":"[::1]:9004"}`, 200, ""),
		join(`{"id":0,"http":"http://127.0.0.1:8004","raft":"127.0.0.1:9004"}`, 400, "malformed"),
		join(`{"id":-1,"raft":"127.0.0.1:9004"}`, 400, "malformed"),
		join(`{"id":9007199254740992,"raft":"127.0.0.1:9004"}`, 400, "malformed"),
		join(`{"id":4}`, 400, "malformed"),
		join(`{"id":4,"raft":"127.0.0.1"}`, 400, "malformed"),
		join(`{"id":4,"raft":"127.0.0.1:0"}`, 400, "malformed"),
		join(`{"id":4,"raft":"127.0.0.1:65536"}`, 400, "malformed"),
		join(`{"id":4,"raft":":9004"}`, 400, "malformed"),
		join(`{"id":4,"raft":"127.0.0.1:9004","http":"127.0.0.1:8004"}`, 400, "malformed"),
		join(`{"id":4,"raft":"127.0.0.1:9004","voter":"yes"}`, 400, "malformed"),
		join(`{"id":4,"raft":"127.0.0.1:9004","vote":true}`, 400, "malformed"),
		join(``, 400, "malformed"),
		leave(`{"id":4}`, 200, ""),
		leave(`{}`, 400, "malformed"),
		leave(`4`, 400, "malformed"),
		{method: "GET", target: "/cluster/join", status: 405, code: "method_not_allowed"},
	})
	if !s.f.change.Leave || s.f.change.ID != 4 {
		t.Errorf("leave asked for %+v", s.f.change)
	}
	s.check([]apiRow{join(good, 200, "")})
	if c := s.f.change; c.Leave || c.ID != 4 || c.Raft != "127.0.0.1:9004" || c.Voter == nil || *c.Voter {
		t.Errorf("join asked for %+v", c)
	}
	for code, status := range memberStatus {
		s.f.fail = &changeRefused{code, "why"}
		s.check([]apiRow{join(good, status, code), leave(`{"id":4}`, status, code)})
	}
	s.f.fail = errNoLeader
	s.check([]apiRow{join(good, 503, "no_leader")})
	s.f.fail = errUnknownOutcome
	s.check([]apiRow{leave(`{"id":4}`, 504, "unknown_outcome")})
	s.f.fail = errRemoved
	s.check([]apiRow{join(good, 503, "removed"), {method: "GET", target: "/a", status: 503, code: "removed"}})
	s.f.state.role, s.f.state.ready, s.f.state.leader = "removed", false, nil
	s.check([]apiRow{{method: "GET", target: "/health", status: 503, in: `"raft":"removed from the cluster"`}})
}
