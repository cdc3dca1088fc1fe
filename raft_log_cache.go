package main

import "github.com/hashicorp/raft"

// logCacheEntryCost is what a cached entry costs beside its data, in bytes.
const logCacheEntryCost = 128

// logCache holds the newest entries of the log, as many as fit into limit
// bytes: followers ask for an entry right after it was stored. Entries share
// their data with the caller of StoreLogs, who must not change it afterwards
// (nor does raft). The owner's lock guards it.
type logCache struct {
	limit int64
	bytes int64
	logs  []raft.Log // consecutive indexes
}

// add puts logs, which follow those held, at the end and lets go of the oldest.
func (c *logCache) add(logs []*raft.Log) {
	for _, l := range logs {
		c.logs = append(c.logs, *l)
		c.bytes += logCacheCost(l)
	}
	drop := 0
	for ; c.bytes > c.limit && drop < len(c.logs); drop++ {
		c.bytes -= logCacheCost(&c.logs[drop])
		c.logs[drop] = raft.Log{} // the array stays for a while; the data must not
	}
	c.logs = c.logs[drop:]
}

// get returns the entry with that index, or nil.
func (c *logCache) get(index uint64) *raft.Log {
	if len(c.logs) == 0 || index < c.logs[0].Index || index-c.logs[0].Index >= uint64(len(c.logs)) {
		return nil
	}
	return &c.logs[index-c.logs[0].Index]
}

// truncate lets go of the entries from index on.
func (c *logCache) truncate(index uint64) {
	keep := len(c.logs)
	for ; keep > 0 && c.logs[keep-1].Index >= index; keep-- {
		c.bytes -= logCacheCost(&c.logs[keep-1])
		c.logs[keep-1] = raft.Log{}
	}
	c.logs = c.logs[:keep]
}

// logCacheCost is what l counts against the limit.
func logCacheCost(l *raft.Log) int64 {
	return logCacheEntryCost + int64(len(l.Data)+len(l.Extensions))
}
