package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The calls about the node and the cluster rather than about entries.

// encodeJSON is a reply with v as JSON.
func encodeJSON(c *call, status int, v any) (reply, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return reply{}, err
	}
	rep := jsonReply(c, append(b, '\n'))
	rep.status = status
	return rep, nil
}

// health says whether this node can serve reads and writes now.
func (s *server) health(c *call) (reply, error) {
	type answer struct {
		Status     string            `json:"status"`
		NodeID     uint64            `json:"node_id"`
		Role       string            `json:"role"`
		Leader     *uint64           `json:"leader"`
		LedgerSize uint64            `json:"ledger_size"`
		Version    string            `json:"version"`
		Checks     map[string]string `json:"checks"`
	}
	st := s.node.status()
	a := answer{Status: "ok", NodeID: st.nodeID, Role: st.role, LedgerSize: st.size, Version: s.o.version,
		Checks: map[string]string{"raft": "ok", "disk": "ok"}}
	status := http.StatusOK
	if st.leader != nil {
		a.Leader = &st.leader.id
	}
	for name, state := range map[string]string{"archive": st.archive, "storage": st.storage, "signing": st.signing, "segments": st.segments} {
		if state != "" {
			a.Checks[name] = state
			if state != "ok" {
				a.Status = "degraded"
			}
		}
	}
	if st.diskHangs {
		a.Checks["disk"] = "hangs"
	} else if st.diskFull {
		a.Checks["disk"] = "full"
	} else if st.noRoom {
		a.Checks["disk"] = "full on the leader"
	}
	if st.diskFull || st.noRoom {
		a.Status, status = "degraded", http.StatusServiceUnavailable
	}
	if !st.ready {
		a.Checks["raft"] = "not ready"
		if st.leader == nil {
			a.Checks["raft"] = "no leader"
		}
		if st.role == "removed" {
			a.Checks["raft"] = "removed from the cluster"
		}
		a.Status, status = "unavailable", http.StatusServiceUnavailable
	}
	return encodeJSON(c, status, a)
}

func (s *server) live(c *call) (reply, error) {
	return jsonReply(c, []byte("{\"status\":\"ok\"}\n")), nil
}

// showMetrics answers in the format that Accept asks for.
func (s *server) showMetrics(c *call) (reply, error) {
	if wantsPrometheus(c.r.Header["Accept"]) {
		return s.prometheus(c)
	}
	s.gauge()
	return jsonReply(c, s.o.metrics.appendJSON(nil)), nil
}

func (s *server) prometheus(c *call) (reply, error) {
	s.gauge()
	c.lines.add("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	return reply{status: http.StatusOK, body: s.o.metrics.appendPrometheus(nil)}, nil
}

// gauge sets the gauges that are read rather than counted.
func (s *server) gauge() {
	m, st := s.o.metrics, s.node.status()
	m.ledger.size.set(int64(st.size))
	if st.manifest != nil {
		_, stored := st.manifest.archived()
		m.ledger.segments.set(int64(len(st.manifest.segments)))
		m.archive.stored.set(int64(stored))
		m.archive.waiting.set(int64(st.manifest.confirmed - stored))
	}
	_, pending, _ := s.store.pendingInfo()
	m.ledger.pending.set(int64(pending))
	m.raft.term.set(int64(st.term))
	m.raft.contact.set(st.contact)
	m.raft.leader.set(0)
	if st.role == "leader" {
		m.raft.leader.set(1)
	}
}

// wantsPrometheus reports whether Accept names one of Prometheus' formats
// before JSON.
func wantsPrometheus(accept []string) bool {
	for _, one := range strings.Split(strings.Join(accept, ","), ",") {
		kind, params, _ := strings.Cut(strings.TrimSpace(one), ";")
		if strings.Contains(strings.ReplaceAll(params, " ", ""), "q=0;") || strings.HasSuffix(params, "q=0") {
			continue
		}
		switch strings.ToLower(strings.TrimSpace(kind)) {
		case "text/plain", "application/openmetrics-text":
			return true
		case "application/json":
			return false
		}
	}
	return false
}

// memberJSON is a member as /cluster/members shows it.
type memberJSON struct {
	ID      uint64 `json:"id"`
	HTTP    string `json:"http"`
	Raft    string `json:"raft"`
	Region  string `json:"region"`
	Version string `json:"version"`
	Role    string `json:"role"`
	State   string `json:"state"`
	Applied uint64 `json:"applied"`
	Lag     uint64 `json:"lag"`
}

// leaderJSON is the leader as /cluster/leader and /cluster/status show it.
type leaderJSON struct {
	ID   uint64 `json:"id"`
	HTTP string `json:"http"`
	Raft string `json:"raft"`
}

func leaderOf(st *nodeStatus) *leaderJSON {
	if st.leader == nil {
		return nil
	}
	return &leaderJSON{st.leader.id, st.leader.http, st.leader.raft}
}

// memberList returns the members; lag counts from the most any of them has applied.
func (s *server) memberList(size uint64) []memberJSON {
	members := s.node.members()
	for _, m := range members {
		size = max(size, m.applied)
	}
	list := make([]memberJSON, 0, len(members))
	for _, m := range members {
		list = append(list, memberJSON{m.id, m.http, m.raft, m.region, m.version, m.role, m.state, m.applied, size - m.applied})
	}
	return list
}

func (s *server) clusterStatus(c *call) (reply, error) {
	st := s.node.status()
	return encodeJSON(c, http.StatusOK, struct {
		ClusterID       string       `json:"cluster_id"`
		Name            string       `json:"name"`
		NodeID          uint64       `json:"node_id"`
		Role            string       `json:"role"`
		Term            uint64       `json:"term"`
		Leader          *leaderJSON  `json:"leader"`
		Members         []memberJSON `json:"members"`
		LedgerSize      uint64       `json:"ledger_size"`
		ManifestVersion uint64       `json:"manifest_version"`
	}{st.clusterID, st.name, st.nodeID, st.role, st.term, leaderOf(&st), s.memberList(st.size), st.size, manifestVersion(st.manifest)})
}

func manifestVersion(m *manifest) uint64 {
	if m == nil {
		return 0
	}
	return m.version
}

func (s *server) clusterMembers(c *call) (reply, error) {
	return encodeJSON(c, http.StatusOK, map[string]any{"members": s.memberList(s.node.status().size)})
}

func (s *server) clusterLeader(c *call) (reply, error) {
	st := s.node.status()
	if st.leader == nil {
		return reply{}, errNoLeader
	}
	return encodeJSON(c, http.StatusOK, leaderOf(&st))
}

// clusterMetrics answers with counters of the cluster as this node knows it.
func (s *server) clusterMetrics(c *call) (reply, error) {
	st := s.node.status()
	members := s.memberList(st.size)
	alive, lag := 0, uint64(0)
	for _, m := range members {
		if m.State == "alive" {
			alive++
		}
		lag = max(lag, m.Lag)
	}
	segments := 0
	if st.manifest != nil {
		segments = len(st.manifest.segments)
	}
	return encodeJSON(c, http.StatusOK, map[string]any{
		"members": len(members), "alive": alive, "max_lag": lag, "term": st.term,
		"ledger_size": st.size, "manifest_version": manifestVersion(st.manifest), "segments": segments,
	})
}

// readJSON decodes the small JSON object that is the body of an admin call.
func (s *server) readJSON(c *call, v any) error {
	body, room, err := s.readBody(c, freeBody-1)
	if err != nil {
		return err
	}
	defer s.giveBack(room)
	d := json.NewDecoder(strings.NewReader(string(body)))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return badRequest("malformed", "the body is not the JSON wanted: %s", clip(err.Error()))
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return badRequest("malformed", "more follows the JSON object in the body")
	}
	return nil
}

// transfer hands leadership to the node named in the body.
func (s *server) transfer(c *call) (reply, error) {
	var to struct {
		To *uint64 `json:"to"`
	}
	if err := s.readJSON(c, &to); err != nil {
		return reply{}, err
	}
	if to.To == nil {
		return reply{}, badRequest("malformed", `the body names no node, want {"to": id}`)
	}
	members := s.node.members()
	k := slices.IndexFunc(members, func(m memberInfo) bool { return m.id == *to.To })
	if k < 0 {
		return reply{}, badRequest("unknown_node", "node %d is not a member", *to.To)
	}
	if members[k].role == "learner" {
		message := "node " + strconv.FormatUint(*to.To, 10) + " does not vote and cannot lead"
		return reply{}, &apiError{status: 409, code: "not_a_voter", message: message}
	}
	if members[k].full {
		message := "the disk of node " + strconv.FormatUint(*to.To, 10) + " is full; leadership stays where it is"
		return reply{}, &apiError{status: 507, code: "disk_full", message: message}
	}
	if err := s.node.transfer(s.writes.context(), *to.To); err != nil {
		return reply{}, err
	}
	return encodeJSON(c, http.StatusOK, map[string]uint64{"leader": *to.To})
}

// seal closes the pending segment; the answer tells what the segments cover.
func (s *server) seal(c *call) (reply, error) {
	if err := s.node.seal(s.writes.context()); err != nil {
		return reply{}, err
	}
	m := s.store.currentManifest()
	covered := uint64(0)
	if n := len(m.segments); n > 0 {
		covered = m.segments[n-1].first + m.segments[n-1].count
	}
	return encodeJSON(c, http.StatusOK, map[string]uint64{
		"ledger_size": covered, "manifest_version": m.version, "segments": uint64(len(m.segments)),
	})
}

// archive brings all confirmed segments to the bucket.
func (s *server) archive(c *call) (reply, error) {
	return s.whileAsked(c, func(ctx context.Context) (any, error) { return s.node.archive(ctx) })
}

// whileAsked answers with the result of something that may take hours: it goes on as
// long as the client stays.
func (s *server) whileAsked(c *call, do func(context.Context) (any, error)) (reply, error) {
	rc := http.NewResponseController(c.w)
	rc.SetReadDeadline(time.Time{}) // a timeout would end r's context
	rc.SetWriteDeadline(time.Time{})
	if c.conn != nil {
		c.conn.watch(true)
		defer c.conn.watch(false)
	}
	ctx, cancel := context.WithCancel(c.r.Context())
	defer cancel()
	defer context.AfterFunc(s.closing, cancel)()
	result, err := do(ctx)
	rc.SetWriteDeadline(time.Now().Add(s.limits.write))
	if err != nil {
		return reply{}, err
	}
	return encodeJSON(c, http.StatusOK, result)
}

// prefetch brings the files of segments back to this node, those that hold the
// entries from one seq to another.
func (s *server) prefetch(c *call) (reply, error) {
	var want struct {
		From *uint64 `json:"from"`
		To   *uint64 `json:"to"`
		Pin  *bool   `json:"pin"`
	}
	if err := s.readJSON(c, &want); err != nil {
		return reply{}, err
	}
	if want.From == nil || want.To == nil || *want.From > *want.To {
		return reply{}, badRequest("malformed", `the body names no entries, want {"from": seq, "to": seq, "pin": true or false or left out}`)
	}
	return s.whileAsked(c, func(ctx context.Context) (any, error) { return s.store.prefetch(ctx, *want.From, *want.To, want.Pin) })
}

// manifest answers with the sealed segments and what is not sealed yet.
func (s *server) manifest(c *call) (reply, error) {
	if signed, err := c.flag("signed"); err != nil {
		return reply{}, err
	} else if signed {
		return s.signedManifest(c)
	}
	type segmentJSON struct {
		ID        string  `json:"id"`
		FirstSeq  uint64  `json:"first_seq"`
		Count     uint64  `json:"count"`
		Size      uint64  `json:"size"`
		Timestamp string  `json:"timestamp"`
		Root      string  `json:"merkle_root"`
		SHA256    string  `json:"sha256"`
		State     string  `json:"state"`
		Object    *string `json:"object"`
	}
	type pendingJSON struct {
		FirstSeq uint64 `json:"first_seq"`
		Count    uint64 `json:"count"`
		Size     uint64 `json:"size"`
	}
	m := s.store.currentManifest()
	segments := make([]segmentJSON, 0, len(m.segments))
	for i := range m.segments {
		g := &m.segments[i]
		j := segmentJSON{ID: g.id(), FirstSeq: g.first, Count: g.count, Size: g.size, Timestamp: string(appendTime(nil, g.time)),
			Root: g.root.String(), SHA256: g.sum.String(), State: "local"}
		if g.object != "" {
			key := s.store.objectKey(*g)
			j.State, j.Object = "archived", &key
		}
		if s.store.isCold(g.first) {
			j.State = "cold"
		}
		segments = append(segments, j)
	}
	first, count, size := s.store.pendingInfo()
	return encodeJSON(c, http.StatusOK, map[string]any{
		"version": m.version, "ledger_size": s.store.size(), "pending": pendingJSON{first, count, size}, "segments": segments,
	})
}

// segment answers with the bytes of a sealed segment.
func (s *server) segment(c *call) (reply, error) {
	f, info, err := s.store.sealedFile(string(c.key))
	if err != nil {
		return reply{}, err
	}
	c.lines.add("Etag", `"`+info.sum.String()+`"`)
	c.lines.add("Content-Type", "application/octet-stream")
	c.lines.add("Scribe-Segment-Count", strconv.FormatUint(info.count, 10))
	return reply{stream: func() error {
		defer f.Close()
		return s.serveContent(c, f, time.UnixMilli(info.time))
	}}, nil
}
