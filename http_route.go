package main

import (
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// The route table, and the reading of request targets, queries and headers.

// route is what can be done with one path.
type route struct {
	label   int
	methods map[string]handler // HEAD is answered by GET
	allow   string
}

// Indexes into routeLabels.
const (
	routeEntry = iota
	routeHistory
	routeKeys
	routeBatch
	routeHealth
	routeMetrics
	routeCluster
	routeLedger
	routeVerify
	routeFollow
	routeOther
)

// table holds all paths below reserved names; one that ends in a slash is
// followed by a key or an id.
func (s *server) table() map[string]route {
	type m = map[string]handler
	entry := m{"GET": s.get, "PUT": s.put, "DELETE": s.delete}
	if !s.o.allowDelete {
		entry["DELETE"] = s.deletesDisabled
	}
	t := map[string]route{
		"kv/":                {routeEntry, entry, ""},
		"history/":           {routeHistory, m{"GET": s.history}, ""},
		"keys":               {routeKeys, m{"GET": s.keys}, ""},
		"batch":              {routeBatch, m{"POST": s.batch}, ""},
		"health":             {routeHealth, m{"GET": s.health}, ""},
		"health/live":        {routeHealth, m{"GET": s.live}, ""},
		"metrics":            {routeMetrics, m{"GET": s.showMetrics}, ""},
		"metrics/prometheus": {routeMetrics, m{"GET": s.prometheus}, ""},
		"cluster/status":     {routeCluster, m{"GET": s.clusterStatus}, ""},
		"cluster/members":    {routeCluster, m{"GET": s.clusterMembers}, ""},
		"cluster/leader":     {routeCluster, m{"GET": s.clusterLeader}, ""},
		"cluster/metrics":    {routeCluster, m{"GET": s.clusterMetrics}, ""},
		"cluster/join":       {routeCluster, m{"POST": s.join}, ""},
		"cluster/leave":      {routeCluster, m{"POST": s.leave}, ""},
		"cluster/transfer":   {routeCluster, m{"POST": s.transfer}, ""},
		"cluster/seal":       {routeCluster, m{"POST": s.seal}, ""},
		"cluster/archive":    {routeCluster, m{"POST": s.archive}, ""},
		"cluster/prefetch":   {routeCluster, m{"POST": s.prefetch}, ""},
		"cluster/rotate-key": {routeCluster, m{"POST": s.rotateKey}, ""},
		"ledger/manifest":    {routeLedger, m{"GET": s.manifest}, ""},
		"ledger/entries":     {routeLedger, m{"GET": s.entries}, ""},
		"ledger/segments/":   {routeLedger, m{"GET": s.segment}, ""},
		"ledger/checkpoint":  {routeLedger, m{"GET": s.checkpoint}, ""},
		"ledger/key":         {routeLedger, m{"GET": s.ledgerKey}, ""},
		"ledger/keys":        {routeLedger, m{"GET": s.ledgerKeys}, ""},
		"ledger/proof":       {routeLedger, m{"GET": s.proof}, ""},
		"ledger/consistency": {routeLedger, m{"GET": s.consistency}, ""},
		"ledger/tile/":       {routeLedger, m{"GET": s.tile}, ""},
		"verify/":            {routeVerify, m{"GET": s.verify}, ""},
	}
	for path, r := range t {
		for method := range r.methods {
			switch {
			case method == "DELETE" && !s.o.allowDelete:
			case method == "GET":
				r.allow += ", GET, HEAD"
			default:
				r.allow += ", " + method
			}
		}
		names := strings.Split(r.allow[2:], ", ")
		slices.Sort(names)
		r.allow = strings.Join(names, ", ")
		t[path] = r
	}
	return t
}

// reserved reports whether name, decoded, is a first segment kept for the interface.
func reserved(name string) bool {
	switch name {
	case "health", "metrics", "cluster", "verify", "history", "keys", "batch", "kv", "ledger", "region", "ui":
		return true
	}
	return false
}

// route finds the handler of a request by the raw bytes of its target. Nothing
// is cleaned and nobody is redirected: each path is a key of its own.
func (s *server) route(c *call) (reply, error) {
	path, query, ok := splitTarget(c.r.RequestURI)
	if !ok {
		return reply{}, badRequest("malformed", "request target %q is not a path", clip(c.r.RequestURI))
	}
	segment, rest, slash := strings.Cut(path, "/")
	first, err := unescapePath(segment)
	if err != nil {
		return reply{}, err
	}
	if query != "" {
		if c.query, err = parseQuery(query); err != nil {
			return reply{}, err
		}
	}
	head, _, hidden := strings.Cut(string(first), "/")
	if !reserved(head) {
		c.route = routeEntry
		return s.dispatch(c, &s.entry, path)
	}
	name := head
	if slash {
		name += "/"
	}
	if r, ok := s.routes[name]; ok && !hidden {
		return s.dispatch(c, &r, rest)
	}
	sub, id, slash := strings.Cut(rest, "/")
	name += sub
	if slash {
		name += "/"
	}
	if r, ok := s.routes[name]; ok && !hidden {
		return s.dispatch(c, &r, id)
	}
	if isChange(c.r.Method) {
		return reply{}, reservedKey(head, path)
	}
	return reply{}, &apiError{status: 404, code: "not_found", message: "nothing is served at /" + clip(path)}
}

func isChange(method string) bool { return method == "PUT" || method == "DELETE" }

func reservedKey(head, path string) error {
	return badRequest("reserved_key", "keys that begin with %q are reached as /kv/%s", head, clip(path))
}

// dispatch runs the handler of r; raw is the part of the path that names the key.
func (s *server) dispatch(c *call, r *route, raw string) (reply, error) {
	c.route = r.label
	method := c.r.Method
	if method == "HEAD" {
		method = "GET"
	}
	h, ok := r.methods[method]
	switch {
	case ok:
	case isChange(method):
		path, _, _ := splitTarget(c.r.RequestURI)
		head, _, _ := strings.Cut(path, "/")
		return reply{}, reservedKey(head, path)
	default:
		return reply{}, &apiError{status: 405, code: "method_not_allowed", message: c.r.Method + " is not served here; " + r.allow + " are", allow: r.allow}
	}
	key, err := unescapePath(raw)
	if err != nil {
		return reply{}, err
	}
	c.raw, c.key = raw, key
	return h(c)
}

// splitTarget cuts a request target into its path after the first slash and
// its query, both as they were sent. The target may be a whole URL.
func splitTarget(target string) (path, query string, ok bool) {
	if target == "" || target[0] != '/' {
		_, rest, found := strings.Cut(target, "://")
		if !found {
			return "", "", false
		}
		i := strings.IndexAny(rest, "/?")
		if i < 0 {
			return "", "", true
		}
		if target = rest[i:]; target[0] == '?' {
			return "", target[1:], true
		}
	}
	path, query, _ = strings.Cut(target[1:], "?")
	return path, query, true
}

// unescapePath percent-decodes s once. The result is the caller's.
func unescapePath(s string) ([]byte, error) {
	if strings.IndexByte(s, '%') < 0 {
		return []byte(s), nil
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b = append(b, s[i])
			continue
		}
		if len(s)-i < 3 || unhex(s[i+1]) < 0 || unhex(s[i+2]) < 0 {
			return nil, badRequest("malformed", "%q is not percent-encoded", clip(s[i:min(i+3, len(s))]))
		}
		b = append(b, byte(unhex(s[i+1])<<4|unhex(s[i+2])))
		i += 2
	}
	return b, nil
}

// unhex returns the value of a hexadecimal digit, or -1.
func unhex(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c|0x20 >= 'a' && c|0x20 <= 'f':
		return int(c|0x20-'a') + 10
	}
	return -1
}

// param is one name=value of a query, decoded.
type param struct{ name, value string }

// parseQuery reads a query; unknown names are kept and never looked at.
func parseQuery(raw string) ([]param, error) {
	var params []param
	for raw != "" {
		var pair string
		pair, raw, _ = strings.Cut(raw, "&")
		if pair == "" {
			continue
		}
		n, v, _ := strings.Cut(pair, "=")
		name, err := url.QueryUnescape(n)
		value, err2 := url.QueryUnescape(v)
		if err != nil || err2 != nil {
			return nil, badRequest("malformed", "query parameter %q is not percent-encoded", clip(pair))
		}
		params = append(params, param{name, value})
	}
	return params, nil
}

// param returns the value of a query parameter, which may be given once.
func (c *call) param(name string) (value string, given bool, err error) {
	for _, p := range c.query {
		if p.name != name {
			continue
		}
		if given {
			return "", false, badRequest("malformed", "query parameter %s is given twice", name)
		}
		value, given = p.value, true
	}
	return value, given, nil
}

// number returns a query parameter that is a number between low and high.
func (c *call) number(name string, low, high uint64) (n uint64, given bool, err error) {
	v, given, err := c.param(name)
	if err != nil || !given {
		return 0, false, err
	}
	n, ok := parseNumber([]byte(v))
	if !ok || n < low || n > high {
		return 0, false, badRequest("malformed", "%s is %q, want a number from %d to %d", name, clip(v), low, high)
	}
	return n, true, nil
}

// limit returns the query parameter limit, cut to most.
func (c *call) limit(usual, most int) (int, error) {
	n, given, err := c.number("limit", 1, 1<<63-1)
	if err != nil || !given {
		return usual, err
	}
	return int(min(n, uint64(most))), nil
}

// flag returns a query parameter that is true or false, false if not given.
func (c *call) flag(name string) (bool, error) {
	v, given, err := c.param(name)
	if err != nil || !given || v == "false" || v == "0" {
		return false, err
	}
	if v == "true" || v == "1" || v == "" {
		return true, nil
	}
	return false, badRequest("malformed", "%s is %q, want true or false", name, clip(v))
}

// header returns the one line of a request header; key is canonical.
func (c *call) header(key string) (value string, given bool, err error) {
	lines := c.r.Header[key]
	switch len(lines) {
	case 0:
		return "", false, nil
	case 1:
		return lines[0], true, nil
	}
	return "", false, badRequest("malformed", "header %s is given %d times", key, len(lines))
}

// parseNumber reads decimal digits without sign or leading zeros.
func parseNumber(s []byte) (uint64, bool) {
	if len(s) == 0 || len(s) > 20 || (s[0] == '0' && len(s) > 1) {
		return 0, false
	}
	n := uint64(0)
	for _, c := range s {
		d := uint64(c - '0')
		if d > 9 || n > (^uint64(0)-d)/10 {
			return 0, false
		}
		n = n*10 + d
	}
	return n, true
}

// decimal is n in digits.
func decimal(n int64) string { return strconv.FormatInt(n, 10) }

// clip shortens what a client sent, for a message.
func clip(s string) string {
	if len(s) <= 80 {
		return s
	}
	return s[:77] + "..."
}
