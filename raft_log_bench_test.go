package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
)

// Each benchmark stores batches of 256-byte records durably and reports the
// median and the 99th percentile of one batch: through the store, through a
// bbolt one, and as a bare write and fdatasync of the same number of bytes.

func BenchmarkStoreLogs1(b *testing.B)   { benchmarkStores(b, 1) }
func BenchmarkStoreLogs16(b *testing.B)  { benchmarkStores(b, 16) }
func BenchmarkStoreLogs128(b *testing.B) { benchmarkStores(b, 128) }

func benchmarkStores(b *testing.B, batch int) {
	b.Run("file", func(b *testing.B) {
		l := mustOpenLog(b, b.TempDir(), logOptions{})
		benchmarkBatches(b, batch, l.StoreLogs)
	})
	b.Run("bbolt", func(b *testing.B) {
		benchmarkBatches(b, batch, openBoltLog(b).StoreLogs)
	})
	b.Run("append", func(b *testing.B) {
		f := createBench(b)
		size := int64(0)
		raw := make([]byte, batch*(256+entryHeaderSize)+frameHeaderSize+frameEndSize)
		benchmarkBatches(b, batch, func([]*raft.Log) error {
			size += int64(len(raw))
			return writeSynced(f, raw, size)
		})
	})
	b.Run("overwrite", func(b *testing.B) {
		f := createBench(b)
		for off := range int64(16) {
			if err := writeSynced(f, zeros[:], off<<20); err != nil {
				b.Fatal(err)
			}
		}
		raw := make([]byte, batch*(256+entryHeaderSize)+frameHeaderSize+frameEndSize)
		at := int64(0)
		benchmarkBatches(b, batch, func([]*raft.Log) error {
			at = (at + int64(len(raw))) % (15 << 20)
			return writeSynced(f, raw, at)
		})
	})
}

// createBench makes an empty file.
func createBench(b *testing.B) logHandle {
	h, err := osDisk{}.create(filepath.Join(b.TempDir(), "raw"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { h.Close() })
	return h
}

// benchmarkBatches calls store with one batch after the other.
func benchmarkBatches(b *testing.B, batch int, store func([]*raft.Log) error) {
	data := make([]byte, 256)
	for i := range data {
		data[i] = byte(i + 1)
	}
	logs := make([]*raft.Log, batch)
	index := uint64(0)
	var took []time.Duration
	b.ResetTimer()
	for b.Loop() {
		for i := range logs {
			index++
			logs[i] = &raft.Log{Index: index, Term: 1, Data: data}
		}
		start := time.Now()
		if err := store(logs); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(start))
	}
	b.StopTimer()
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-us")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-us")
	b.ReportMetric(float64(len(took)*batch)/b.Elapsed().Seconds(), "rec/s")
}

// boltLog stores entries as the usual raft.LogStore on bbolt does.
type boltLog struct{ db *bbolt.DB }

func openBoltLog(b *testing.B) *boltLog {
	db, err := bbolt.Open(filepath.Join(b.TempDir(), "raft.db"), 0o600, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { db.Close() })
	return &boltLog{db}
}

func (l *boltLog) StoreLogs(logs []*raft.Log) error {
	return l.db.Update(func(tx *bbolt.Tx) error {
		bucket, err := tx.CreateBucketIfNotExists([]byte("logs"))
		if err != nil {
			return err
		}
		for _, log := range logs {
			key := binary.BigEndian.AppendUint64(nil, log.Index)
			if err := bucket.Put(key, appendLogEntry(nil, 0, log)); err != nil {
				return err
			}
		}
		return nil
	})
}

// BenchmarkGetLog reads entries one by one, from the cache and from the disk.
func BenchmarkGetLog(b *testing.B) {
	for _, cache := range []int64{1, 0} {
		b.Run(fmt.Sprintf("cached=%v", cache == 0), func(b *testing.B) {
			l := mustOpenLog(b, b.TempDir(), logOptions{cache: cache})
			mustStore(b, l, testLogs(1, 10000, "x", 256))
			b.ReportAllocs()
			index := uint64(0)
			for b.Loop() {
				index = index%10000 + 1
				if err := l.GetLog(index, new(raft.Log)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkOpenLog opens a new log, and one of 64 MiB that must be scanned.
func BenchmarkOpenLog(b *testing.B) {
	b.Run("new", func(b *testing.B) {
		dir := b.TempDir()
		for b.Loop() {
			l, err := openLogStore(filepath.Join(dir, "raft"), logOptions{})
			if err != nil {
				b.Fatal(err)
			}
			l.close()
			if err := os.RemoveAll(filepath.Join(dir, "raft")); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("64MiB", func(b *testing.B) {
		dir := b.TempDir()
		l := mustOpenLog(b, dir, logOptions{})
		for i := range uint64(2000) {
			mustStore(b, l, testLogs(1+i*100, 100, "x", 300))
		}
		l.close()
		b.SetBytes(l.bytes())
		for b.Loop() {
			l, err := openLogStore(dir, logOptions{})
			if err != nil {
				b.Fatal(err)
			}
			l.close()
		}
	})
}
