package main

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestSimBucketDown: the bucket is down for ten minutes of virtual time, or an hour with
// SCRIBE_SIM_HOURS, while three nodes are written to. No write is refused or slow, none is lost, and all is archived
// soon after it is back.
func TestSimBucketDown(t *testing.T) {
	t.Parallel()
	dir, down := t.TempDir(), 10*time.Minute
	if envUint(t, "SCRIBE_SIM_HOURS") > 0 {
		down = time.Hour
	}
	synctest.Test(t, func(t *testing.T) {
		b := newMemBucket(t)
		c := newSimCluster(t, 1, dir, simLife{every: time.Hour, scrub: time.Hour, again: "go test -run 'TestSimBucketDown$' ."})
		for _, n := range c.nodes {
			n.o.objects, n.o.archiveEvery, n.o.dropAge = b, time.Minute, 24*time.Hour
		}
		var nodes sync.WaitGroup
		for _, n := range c.nodes {
			nodes.Go(n.keep)
		}
		c.eventually("there is a leader", simSettle, func() string {
			if c.lead() == nil {
				return "no leader"
			}
			return ""
		})
		lead := c.lead().running()
		b.down(true)
		writes := 0
		for began := time.Now(); time.Since(began) < down; time.Sleep(2 * time.Second) {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			_, err := lead.submit(ctx, putRequest(fmt.Sprint("key-", writes), "value"))
			if cancel(); err != nil {
				t.Fatalf("write %d after %v: %v", writes, time.Since(began), err)
			}
			writes++
		}
		before := lead.store.manifest.Load()
		if _, total := before.archived(); total != 0 || before.confirmed < 5 || lead.status().archive == "ok" || !lead.status().ready {
			t.Errorf("%d of %d segments are archived, the check says %q", total, before.confirmed, lead.status().archive)
		}
		b.down(false)
		back := time.Now()
		c.eventually("all is archived", 3*time.Minute, func() string {
			prefix, _ := lead.store.manifest.Load().archived()
			if prefix < before.confirmed || lead.status().archive != "ok" {
				return fmt.Sprintf("%d of %d segments are, the check says %q", prefix, before.confirmed, lead.status().archive)
			}
			return ""
		})
		t.Logf("%d writes, %d segments, archived %v after the bucket was back", writes, before.confirmed, time.Since(back))
		if size := lead.store.size(); size < uint64(writes) {
			t.Errorf("the ledger has %d entries of %d", size, writes)
		}
		c.settle()
		close(c.ending)
		nodes.Wait()
		time.Sleep(simLinger)
	})
}
