package main

import (
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Counters of the whole process, as JSON and as Prometheus text.
//
// A metric is one line: a field of metrics whose tag is its help text. Its
// name is the path of fields in snake case: http.bodyBytes becomes
// scribe_http_body_bytes_total. Fields that are arrays carry one label, whose
// name and values the tag "label" takes from labelValues: never from data.

// metrics is every number the process keeps, grouped by subject.
type metrics struct {
	series []metricSeries // immutable after newMetrics

	http struct {
		requests    [len(routeLabels)][len(classLabels)]counter `help:"Requests answered." label:"route,class"`
		seconds     [len(routeLabels)]histogram                 `help:"Time from the head of a request to the end of its reply." label:"route"`
		inFlight    gauge                                       `help:"Requests under way."`
		connections gauge                                       `help:"Open client connections."`
		bodyBytes   counter                                     `help:"Bytes of request bodies read."`
		refused     counter                                     `help:"Requests refused before a handler saw them."`
	}
	ledger struct {
		size      gauge   `help:"Entries this node has applied."`
		segments  gauge   `help:"Sealed segments in the manifest."`
		pending   gauge   `help:"Entries that are not in a sealed segment yet."`
		writes    counter `help:"Entries appended for clients of this node."`
		conflicts counter `help:"Writes refused because a condition did not hold."`
		reads     counter `help:"Entries read by clients of this node."`
	}
	raft struct {
		term    gauge `help:"Current Raft term."`
		leader  gauge `help:"1 while this node leads."`
		contact gauge `help:"Milliseconds since the leader was heard; -1 = never."`
	}
	log struct {
		bytes   gauge   `help:"Bytes that the files of the Raft log take."`
		behind  gauge   `help:"Entries of the Raft log that the checkpoint covers."`
		dropped counter `help:"Entries dropped from the Raft log, which the checkpoint covers."`
	}
	snapshot struct {
		sent      counter                      `help:"Snapshots read for followers."`
		installed counter                      `help:"Snapshots installed."`
		refused   [len(snapshotLabels)]counter `help:"Snapshots not installed when they were offered." label:"reason"`
	}
	fetch struct {
		segments     counter                   `help:"Segments fetched from other nodes."`
		bytes        counter                   `help:"Bytes of segments fetched."`
		wireBytes    counter                   `help:"Bytes that travelled for them, compressed or not."`
		resumed      counter                   `help:"Segments continued where an earlier try had ended."`
		resumedBytes counter                   `help:"Bytes that did not have to be fetched again."`
		refused      [len(fetchLabels)]counter `help:"Peers left while they sent a segment." label:"fault"`
		peers        gauge                     `help:"Peers that send segments now."`
		missing      gauge                     `help:"Segments of a snapshot that are not here yet."`
		rate         gauge                     `help:"Bytes a second of the last pieces fetched, of all peers together."`
		waiting      gauge                     `help:"1 while there is no room on the disk for what is fetched."`
		served       counter                   `help:"Bytes of segments sent to other nodes."`
		busy         counter                   `help:"Requests for segments turned away because enough are being sent."`
	}
	store struct {
		corrupt counter `help:"Reads that found damaged bytes."`
		removed counter `help:"Leftover files removed."`
		unknown gauge   `help:"Files in the data directory that this program does not know and leaves alone."`
	}
	disk struct {
		free gauge `help:"Bytes free for this node's data directory."`
		full gauge `help:"1 while there is less than the reserve."`
	}
	scrub struct {
		bytes    counter `help:"Bytes that the scrub has read."`
		passes   counter `help:"Passes of the scrub over everything on disk."`
		lastPass gauge   `help:"Unix time in seconds at which the last pass ended; 0 = none did."`
		found    counter `help:"Damaged segments, index runs and tiles found."`
		repaired counter `help:"Damages that were mended."`
		damaged  gauge   `help:"Damages that are not mended."`
	}
	cold struct {
		segments    gauge   `help:"Sealed segments whose bytes are in the bucket only, on this node."`
		localBytes  gauge   `help:"Bytes of segment files on this node's disk."`
		reads       counter `help:"Requests for parts of archived segments."`
		readBytes   counter `help:"Bytes of objects read."`
		cacheBytes  gauge   `help:"Bytes of cold segments in memory."`
		hits        counter `help:"Members of cold segments found in memory."`
		corrupt     counter `help:"Objects, or parts of them, that were missing or not what they should be."`
		unavailable counter `help:"Reads the bucket did not answer, or refused."`
		dropped     counter `help:"Local copies of archived segments that were removed."`
		prefetched  counter `help:"Cold segments whose files were brought back."`
		adopted     counter `help:"Segments taken over from the bucket without their values."`
		pinned      gauge   `help:"Segments whose files are to stay on this node."`
	}
	witness struct {
		cosigned counter `help:"Cosignatures that witnesses gave."`
		refused  counter `help:"Checkpoints a witness refused because it knows another history."`
		failed   counter `help:"Requests to witnesses that failed otherwise."`
		size     gauge   `help:"Entries of the newest checkpoint that a witness cosigned."`
	}
	proof struct {
		receipts counter   `help:"Receipts given with writes."`
		missing  counter   `help:"Writes committed whose receipt could not be given."`
		verified counter   `help:"Entries verified for clients."`
		differs  counter   `help:"Verifications that found a difference."`
		seconds  histogram `help:"Time from the commit of a write to its receipt."`
	}
	discovery struct {
		sent    counter                     `help:"Announcements sent."`
		failed  counter                     `help:"Announcements that could not be sent."`
		heard   counter                     `help:"Announcements heard and believed, this node's own included."`
		dropped [len(dropLabels)]counter    `help:"Announcements dropped." label:"cause"`
		peers   [len(peerStateLabels)]gauge `help:"Other nodes that announce themselves." label:"state"`
	}
	s3 struct {
		requests [len(s3OpLabels)][len(s3ResultLabels)]counter `help:"Requests to the bucket, each try counted." label:"op,result"`
		seconds  [len(s3OpLabels)]histogram                    `help:"Time from a request to the head of its answer." label:"op"`
		retries  counter                                       `help:"Requests to the bucket that were tried again."`
		sent     counter                                       `help:"Bytes of bodies sent to the bucket."`
		received counter                                       `help:"Bytes of bodies received from the bucket."`
	}
	archive struct {
		usable   gauge     `help:"1 while the bucket takes and gives what it should; 0 = it does not, or there is none."`
		segments counter   `help:"Segments this node has archived."`
		bytes    counter   `help:"Bytes of their files."`
		packed   counter   `help:"Bytes of the objects that hold them."`
		failed   counter   `help:"Tries to archive a segment that failed."`
		wrong    gauge     `help:"Segments whose object in the bucket holds other bytes than its name says."`
		waiting  gauge     `help:"Confirmed segments that are not in the bucket."`
		stored   gauge     `help:"Segments that are in the bucket."`
		entries  gauge     `help:"Entries in the newest bucket manifest that this node has written."`
		seconds  histogram `help:"Time to pack, put, check and record a segment."`
	}
	follow struct {
		streams gauge   `help:"Open streams that follow the ledger."`
		entries counter `help:"Entries sent on streams that follow the ledger."`
	}
	batch struct {
		lines   counter `help:"Lines of ndjson batches."`
		failed  counter `help:"Lines of ndjson batches that were not applied."`
		streams gauge   `help:"Open ndjson batches."`
	}
}

// Label values, in the order of the constants that index them.
var (
	routeLabels     = [...]string{"entry", "history", "keys", "batch", "health", "metrics", "cluster", "ledger", "verify", "follow", "other"}
	classLabels     = [...]string{"1xx", "2xx", "3xx", "4xx", "5xx"}
	dropLabels      = [...]string{"malformed", "version", "foreign", "forged", "stale", "replayed", "crowded"}
	peerStateLabels = [...]string{"alive", "suspect", "dead"}
	snapshotLabels  = [...]string{"fetching", "corrupt", "version", "diverged", "other"}
	fetchLabels     = [...]string{"lacks", "busy", "stalled", "slow", "broken", "corrupt", "cold"}
	s3OpLabels      = [...]string{"get", "put", "head", "list", "delete"}
	s3ResultLabels  = [...]string{"ok", "absent", "exists", "refused", "failed", "silent"}
	labelValues     = map[string][]string{"route": routeLabels[:], "class": classLabels[:], "cause": dropLabels[:], "state": peerStateLabels[:],
		"reason": snapshotLabels[:], "fault": fetchLabels[:], "op": s3OpLabels[:], "result": s3ResultLabels[:]}
)

// Indexes of snapshotLabels.
const (
	snapshotFetching = iota
	snapshotCorrupt
	snapshotVersion
	snapshotDiverged
	snapshotOther
)

// counter is a number that only grows.
type counter struct{ n atomic.Uint64 }

func (c *counter) add(n uint64) {
	if c != nil {
		c.n.Add(n)
	}
}

func (c *counter) value() uint64 {
	if c == nil {
		return 0
	}
	return c.n.Load()
}

// gauge is a number that goes up and down.
type gauge struct{ n atomic.Int64 }

func (g *gauge) set(n int64) {
	if g != nil {
		g.n.Store(n)
	}
}

func (g *gauge) add(n int64) {
	if g != nil {
		g.n.Add(n)
	}
}

func (g *gauge) value() int64 {
	if g == nil {
		return 0
	}
	return g.n.Load()
}

// histogramBounds are the upper bounds of the buckets of every histogram: 2^k
// times 64 µs, up to about 34 s; a last bucket takes the rest.
const (
	histogramFirst   = 64 * time.Microsecond
	histogramBuckets = 20
)

// histogram counts durations by size.
type histogram struct {
	buckets [histogramBuckets + 1]atomic.Uint64
	nanos   atomic.Uint64
}

func (h *histogram) observe(d time.Duration) {
	if h == nil {
		return
	}
	i := 0
	for limit := histogramFirst; i < histogramBuckets && d > limit; limit *= 2 {
		i++
	}
	h.buckets[i].Add(1)
	h.nanos.Add(uint64(max(d, 0)))
}

// count returns how many durations were observed.
func (h *histogram) count() uint64 {
	var n uint64
	for i := range h.buckets {
		n += h.buckets[i].Load()
	}
	return n
}

// metricSeries is one metric with the labels it varies over.
type metricSeries struct {
	group, field string // snake case
	help         string
	labels       []string
	points       []metricPoint
}

// metricPoint is the metric at one choice of label values.
type metricPoint struct {
	values []string // one for each label
	metric any      // *counter, *gauge or *histogram
}

// newMetrics returns metrics that all read zero.
func newMetrics() *metrics {
	m := &metrics{}
	v := reflect.ValueOf(m).Elem()
	for i := range v.NumField() {
		group := v.Type().Field(i)
		if group.Type.Kind() != reflect.Struct {
			continue
		}
		for j := range group.Type.NumField() {
			field := group.Type.Field(j)
			s := metricSeries{group: snake(group.Name), field: snake(field.Name), help: field.Tag.Get("help")}
			if l := field.Tag.Get("label"); l != "" {
				s.labels = strings.Split(l, ",")
			}
			s.collect(v.Field(i).Field(j), nil)
			m.series = append(m.series, s)
		}
	}
	return m
}

// collect adds a point for v, or for each of its elements.
func (s *metricSeries) collect(v reflect.Value, values []string) {
	if v.Kind() == reflect.Array {
		names := labelValues[s.labels[len(values)]]
		for i := range v.Len() {
			s.collect(v.Index(i), append(values[:len(values):len(values)], names[i]))
		}
		return
	}
	p := v.Addr().UnsafePointer() // the fields are unexported: Interface would panic
	s.points = append(s.points, metricPoint{values, reflect.NewAt(v.Type(), p).Interface()})
}

// snake turns bodyBytes into body_bytes.
func snake(name string) string {
	var b strings.Builder
	for _, r := range name {
		if r >= 'A' && r <= 'Z' {
			b.WriteByte('_')
			r += 'a' - 'A'
		}
		b.WriteRune(r)
	}
	return b.String()
}

// appendJSON appends the metrics as one object of groups. A labelled metric is
// an object of its label values; points that never counted are left out.
func (m *metrics) appendJSON(b []byte) []byte {
	group := ""
	b = append(b, '{')
	for i, s := range m.series {
		switch {
		case i == 0:
			b = append(b, `"`+s.group+`":{`...)
		case s.group != group:
			b = append(b, `},"`+s.group+`":{`...)
		default:
			b = append(b, ',')
		}
		group = s.group
		b = append(b, `"`+s.field+`":`...)
		if len(s.labels) == 0 {
			b = s.points[0].appendJSON(b)
			continue
		}
		b = append(b, '{')
		first := true
		for _, p := range s.points {
			if p.empty() {
				continue
			}
			if !first {
				b = append(b, ',')
			}
			first = false
			b = append(b, `"`+strings.Join(p.values, " ")+`":`...)
			b = p.appendJSON(b)
		}
		b = append(b, '}')
	}
	return append(b, "}}\n"...)
}

func (p metricPoint) empty() bool {
	switch m := p.metric.(type) {
	case *counter:
		return m.value() == 0
	case *histogram:
		return m.count() == 0
	}
	return false
}

func (p metricPoint) appendJSON(b []byte) []byte {
	switch m := p.metric.(type) {
	case *counter:
		return strconv.AppendUint(b, m.value(), 10)
	case *gauge:
		return strconv.AppendInt(b, m.value(), 10)
	case *histogram:
		b = append(b, `{"count":`...)
		b = strconv.AppendUint(b, m.count(), 10)
		b = append(b, `,"sum":`...)
		b = strconv.AppendFloat(b, float64(m.nanos.Load())/1e9, 'g', -1, 64)
		for _, q := range [...]struct {
			name string
			at   float64
		}{{"p50", 0.50}, {"p95", 0.95}, {"p99", 0.99}} {
			b = append(b, `,"`+q.name+`":`...)
			b = strconv.AppendFloat(b, m.quantile(q.at), 'g', -1, 64)
		}
		return append(b, '}')
	}
	panic(fmt.Sprintf("metrics: no JSON for %T", p.metric))
}

// quantile returns the upper bound in seconds of the bucket that holds the
// observation at q; observations beyond the last bound count as twice it.
func (h *histogram) quantile(q float64) float64 {
	rank := uint64(math.Ceil(q * float64(h.count())))
	seen := uint64(0)
	limit := histogramFirst
	for i := range h.buckets {
		seen += h.buckets[i].Load()
		if seen >= rank {
			break
		}
		limit *= 2
	}
	if seen == 0 {
		return 0
	}
	return limit.Seconds()
}

// appendPrometheus appends the metrics in the Prometheus text format 0.0.4.
func (m *metrics) appendPrometheus(b []byte) []byte {
	for _, s := range m.series {
		name, kind := "scribe_"+s.group+"_"+s.field, "gauge"
		switch s.points[0].metric.(type) {
		case *counter:
			name, kind = name+"_total", "counter"
		case *histogram:
			kind = "histogram"
		}
		b = append(b, "# HELP "+name+" "+s.help+"\n# TYPE "+name+" "+kind+"\n"...)
		for _, p := range s.points {
			b = p.appendPrometheus(b, name, s.labelText(p))
		}
	}
	return b
}

// labelText returns `route="entry",class="2xx"`, or "" without labels.
func (s *metricSeries) labelText(p metricPoint) string {
	var parts []string
	for i, l := range s.labels {
		parts = append(parts, l+`="`+p.values[i]+`"`)
	}
	return strings.Join(parts, ",")
}

func (p metricPoint) appendPrometheus(b []byte, name, labels string) []byte {
	braced := ""
	if labels != "" {
		braced = "{" + labels + "}"
	}
	switch m := p.metric.(type) {
	case *counter:
		return fmt.Appendf(b, "%s%s %d\n", name, braced, m.value())
	case *gauge:
		return fmt.Appendf(b, "%s%s %d\n", name, braced, m.value())
	case *histogram:
		if labels != "" {
			labels += ","
		}
		total := uint64(0)
		for i := range m.buckets {
			total += m.buckets[i].Load()
			bound := "+Inf"
			if i < histogramBuckets {
				bound = strconv.FormatFloat((histogramFirst << i).Seconds(), 'g', -1, 64)
			}
			b = fmt.Appendf(b, "%s_bucket{%sle=%q} %d\n", name, labels, bound, total)
		}
		sum := strconv.FormatFloat(float64(m.nanos.Load())/1e9, 'g', -1, 64)
		return fmt.Appendf(b, "%s_sum%s %s\n%s_count%s %d\n", name, braced, sum, name, braced, total)
	}
	panic(fmt.Sprintf("metrics: no text for %T", p.metric))
}
