package main

import (
	"runtime"
	"testing"
)

func TestMemoryLimit(t *testing.T) {
	for _, c := range []struct{ live, want int64 }{
		{0, lowMemory},
		{lowMemory / 2, lowMemory},
		{400 << 20, 450 << 20},
		{2 << 30, highMemory},
	} {
		if got := memoryLimit(c.live); got != c.want {
			t.Errorf("limit with %d bytes live is %d, want %d", c.live, got, c.want)
		}
	}
	held := make([]byte, 8<<20)
	runtime.GC()
	if live := liveHeap(); live < int64(len(held)) || live > lowMemory {
		t.Errorf("live heap is %d bytes with a slice of %d", live, len(held))
	}
	runtime.KeepAlive(held)
}
