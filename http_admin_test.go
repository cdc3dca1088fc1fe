package main

import (
	"fmt"
	"strings"
	"testing"
)

func TestHealth(t *testing.T) {
	s := newTestServer(t, nil)
	s.do("PUT", "/a", "x")
	ok := apiRow{method: "GET", target: "/health", status: 200, in: `{"status":"ok","node_id":1,"role":"leader","leader":1,"ledger_size":1,"version":"test","checks":{"disk":"ok","raft":"ok"}}`}
	live := apiRow{method: "GET", target: "/health/live", status: 200, in: `{"status":"ok"}`}
	s.check([]apiRow{ok, live, {method: "HEAD", target: "/health", status: 200}, {method: "GET", target: "/%68ealth/live", status: 200}})
	s.f.state.archive = "unreachable"
	s.check([]apiRow{{method: "GET", target: "/health", status: 200, in: `"archive":"unreachable"`}})
	s.f.state.archive = "ok"
	s.check([]apiRow{{method: "GET", target: "/health", status: 200, in: `"status":"ok"`}})
	s.f.state.diskFull = true
	s.check([]apiRow{{method: "GET", target: "/health", status: 503, in: `"status":"degraded"`}})
	s.f.state.diskFull, s.f.state.noRoom = false, true
	s.check([]apiRow{{method: "GET", target: "/health", status: 503, in: `"disk":"full on the leader"`}})
	s.f.state.ready, s.f.state.diskHangs = false, true
	s.check([]apiRow{{method: "GET", target: "/health", status: 503, in: `"disk":"hangs"`}})
	s.f.state.ready, s.f.state.leader = false, nil
	s.check([]apiRow{{method: "GET", target: "/health", status: 503, in: `"leader":null`}, live,
		{method: "GET", target: "/cluster/leader", status: 503, code: "no_leader", want: []string{"Retry-After: 1"}},
		{method: "GET", target: "/cluster/status", status: 200, in: `"leader":null`}})
}

func TestArchiveCall(t *testing.T) {
	s := newTestServer(t, nil)
	s.f.archived = archiveResult{1, 3, 2, 70, 5}
	call := apiRow{method: "POST", target: "/cluster/archive", status: 200,
		in: `{"archived":1,"segments":3,"archived_segments":2,"ledger_size":70,"manifest_version":5}`}
	s.check([]apiRow{call, {method: "GET", target: "/cluster/archive", status: 405, code: "method_not_allowed"}})
	s.f.archiveErr = errNoBucket
	s.check([]apiRow{{method: "POST", target: "/cluster/archive", status: 409, code: "no_bucket", in: "storage.s3.bucket"}})
	s.f.archiveErr = fmt.Errorf("%w: s3: put b/k: AccessDenied", errArchive)
	s.check([]apiRow{{method: "POST", target: "/cluster/archive", status: 503, code: "archive_unavailable", in: "AccessDenied", want: []string{"Retry-After: 1"}}})
	s.f.archiveErr = errNoLeader
	s.check([]apiRow{{method: "POST", target: "/cluster/archive", status: 503, code: "no_leader"}})
	s.f.man.segments = []segmentInfo{{count: 1, object: "x.seg.gz"}}
	s.check([]apiRow{{method: "GET", target: "/ledger/manifest", status: 200, in: `"state":"archived","object":"prefix/segments/x.seg.gz"`}})
}

func TestCluster(t *testing.T) {
	s := newTestServer(t, nil)
	for range 3 {
		s.do("PUT", "/a", "x")
	}
	s.f.list_[0].applied, s.f.list_[1].applied = 3, 1
	const leader = `{"id":1,"http":"http://127.0.0.1:8001","raft":"127.0.0.1:9001"}`
	const members = `"members":[{"id":1,"http":"http://127.0.0.1:8001","raft":"127.0.0.1:9001","region":"","version":"1","role":"leader","state":"alive","applied":3,"lag":0},` +
		`{"id":2,"http":"http://127.0.0.1:8002","raft":"127.0.0.1:9002","region":"","version":"","role":"follower","state":"suspect","applied":1,"lag":2}]`
	s.check([]apiRow{
		{method: "GET", target: "/cluster/status", status: 200, in: `{"cluster_id":"000102030405060708090a0b0c0d0e0f","name":"scribe","node_id":1,"role":"leader","term":3,"leader":` + leader + `,` + members + `,"ledger_size":3,"manifest_version":0}`},
		{method: "GET", target: "/cluster/members", status: 200, in: "{" + members + "}"},
		{method: "GET", target: "/cluster/leader", status: 200, in: leader},
		{method: "GET", target: "/cluster/metrics", status: 200, in: `"max_lag":2`},
		{method: "POST", target: "/cluster/transfer", body: `{"to":2}`, status: 200, in: `{"leader":2}`},
		{method: "POST", target: "/cluster/transfer", body: `{"to":9}`, status: 400, code: "unknown_node"},
		{method: "POST", target: "/cluster/transfer", body: `{}`, status: 400, code: "malformed"},
		{method: "POST", target: "/cluster/transfer", body: ``, status: 400, code: "malformed"},
		{method: "POST", target: "/cluster/transfer", body: `{"to":2}x`, status: 400, code: "malformed"},
		{method: "POST", target: "/cluster/transfer", body: `{"too":2}`, status: 400, code: "malformed"},
		{method: "POST", target: "/cluster/transfer", body: `{"to":-2}`, status: 400, code: "malformed"},
		{method: "POST", target: "/cluster/transfer", body: strings.Repeat(" ", freeBody), status: 413, code: "value_too_large"},
	})
	s.f.list_[1].role = "learner"
	s.check([]apiRow{{method: "POST", target: "/cluster/transfer", body: `{"to":2}`, status: 409, code: "not_a_voter", in: "node 2 does not vote and cannot lead"}})
	s.f.list_[1].role, s.f.list_[1].full = "follower", true
	s.check([]apiRow{{method: "POST", target: "/cluster/transfer", body: `{"to":2}`, status: 507, code: "disk_full", in: "the disk of node 2 is full"}})
}

func TestMetricsFormats(t *testing.T) {
	s := newTestServer(t, nil)
	s.do("PUT", "/a", "x")
	s.check([]apiRow{
		{method: "GET", target: "/metrics", status: 200, in: `"requests":{"entry 2xx":1}`, want: []string{"Content-Type: application/json"}},
		{method: "GET", target: "/metrics", headers: []string{"Accept: */*"}, status: 200, in: `{"http":{`},
		{method: "GET", target: "/metrics", headers: []string{"Accept: application/json, text/plain"}, status: 200, in: `{"http":{`},
		{method: "GET", target: "/metrics", headers: []string{"Accept: text/html, text/plain;q=0.5"}, status: 200, in: "# TYPE scribe_http_requests_total counter"},
		{method: "GET", target: "/metrics", headers: []string{"Accept: application/openmetrics-text; version=1.0.0"}, status: 200, in: "# TYPE ", want: []string{"Content-Type: text/plain; version=0.0.4; charset=utf-8"}},
		{method: "GET", target: "/metrics/prometheus", headers: []string{"Accept: application/json"}, status: 200, in: "scribe_ledger_size 1\n"},
	})
}
