package main

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestNilMetrics: nobody needs metrics to count.
func TestNilMetrics(t *testing.T) {
	var c *counter
	var g *gauge
	var h *histogram
	c.add(1)
	g.set(1)
	g.add(1)
	h.observe(time.Second)
	if c.value() != 0 || g.value() != 0 {
		t.Error("a nil metric counts")
	}
}

func TestMetricsJSON(t *testing.T) {
	m := newMetrics()
	m.http.requests[routeKeys][3].add(2)
	m.http.seconds[routeKeys].observe(time.Millisecond)
	m.raft.contact.set(-1)
	var got map[string]map[string]any
	if err := json.Unmarshal(m.appendJSON(nil), &got); err != nil {
		t.Fatalf("%v: %s", err, m.appendJSON(nil))
	}
	if n := got["http"]["requests"].(map[string]any)["keys 4xx"]; n != 2.0 {
		t.Errorf("requests %v", got["http"]["requests"])
	}
	if got["raft"]["contact"] != -1.0 {
		t.Errorf("contact %v", got["raft"]["contact"])
	}
	d := got["http"]["seconds"].(map[string]any)["keys"].(map[string]any)
	if d["count"] != 1.0 || d["sum"] != 0.001 || d["p50"] != 0.001024 {
		t.Errorf("seconds %v", d)
	}
}

func TestHistogram(t *testing.T) {
	h := &histogram{}
	for d, bucket := range map[time.Duration]int{0: 0, -1: 0, 64 * time.Microsecond: 0, 65 * time.Microsecond: 1, 128 * time.Microsecond: 1, 33 * time.Second: 19, 34 * time.Second: 20, time.Hour: 20} {
		before := h.buckets[bucket].Load()
		h.observe(d)
		if h.buckets[bucket].Load() != before+1 {
			t.Errorf("%v is not in bucket %d", d, bucket)
		}
	}
}

// TestPrometheusText holds the text to the grammar of the format 0.0.4: HELP
// and TYPE once, before the samples; buckets that grow and end in +Inf.
func TestPrometheusText(t *testing.T) {
	m := newMetrics()
	m.http.seconds[0].observe(time.Millisecond)
	m.http.seconds[0].observe(time.Hour)
	sample := regexp.MustCompile(`^(scribe_[a-z0-9_]+)(\{[a-z]+="[^"\\]*"(,[a-z]+="[^"\\]*")*\})? -?[0-9.e+-]+$`)
	seen := map[string]bool{}
	kind, name := "", ""
	for _, line := range strings.Split(strings.TrimSuffix(string(m.appendPrometheus(nil)), "\n"), "\n") {
		f := strings.Fields(line)
		switch {
		case strings.HasPrefix(line, "# HELP "):
			if name = f[2]; seen[name] || len(f) < 4 {
				t.Errorf("%s: seen before, or no help", line)
			}
			seen[name] = true
		case strings.HasPrefix(line, "# TYPE "):
			if kind = f[3]; f[2] != name || (kind == "counter") != strings.HasSuffix(name, "_total") {
				t.Errorf("%s after HELP of %s", line, name)
			}
		default:
			part := sample.FindStringSubmatch(line)
			if part == nil {
				t.Errorf("%q is not a sample", line)
				continue
			}
			base := part[1]
			if kind == "histogram" {
				base = strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(base, "_bucket"), "_sum"), "_count")
			}
			if base != name {
				t.Errorf("%q under %s", line, name)
			}
		}
	}
	text := string(m.appendPrometheus(nil))
	for _, want := range []string{
		`scribe_http_seconds_bucket{route="entry",le="0.000512"} 0`, `scribe_http_seconds_bucket{route="entry",le="0.001024"} 1`,
		`scribe_http_seconds_bucket{route="entry",le="+Inf"} 2`, `scribe_http_seconds_sum{route="entry"} 3600.001`, `scribe_http_seconds_count{route="entry"} 2`,
		`scribe_http_requests_total{route="entry",class="2xx"} 0`, "scribe_http_body_bytes_total 0",
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("no %s", want)
		}
	}
}
