package main

import (
	"context"
	"os"
	"runtime/debug"
	gauges "runtime/metrics"
	"time"
)

// Most of a node's heap is the pending segment and the one that is on its way
// to disk, some 250 MiB in all when a segment is full. Go lets the heap grow to
// twice what is live before it collects; above lowMemory it has to make do with
// an eighth more. So a node at full speed stays below 400 MiB (700 without
// this, at a rate that could not be told apart). GOMEMLIMIT wins over it.
const (
	lowMemory   = 352 << 20 // bytes below which there is no limit
	highMemory  = 1 << 30   // bytes above which the collector works hard, whatever is live
	memorySteps = 16 << 20  // bytes of change that are not worth a new limit
	memoryTick  = 500 * time.Millisecond
)

// limitMemory keeps the memory of the process low until ctx ends.
func limitMemory(ctx context.Context) {
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	limit := int64(lowMemory)
	debug.SetMemoryLimit(limit)
	go func() {
		tick := time.NewTicker(memoryTick)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if next := memoryLimit(liveHeap()); next > limit+memorySteps || next < limit-memorySteps {
				limit = next
				debug.SetMemoryLimit(limit)
			}
		}
	}()
}

// memoryLimit returns the limit for a heap of which so many bytes are live.
func memoryLimit(live int64) int64 {
	return min(max(live+live/8, lowMemory), highMemory)
}

// liveHeap returns the bytes that the last collection found in use.
func liveHeap() int64 {
	sample := []gauges.Sample{{Name: "/gc/heap/live:bytes"}}
	gauges.Read(sample)
	return int64(sample[0].Value.Uint64())
}
