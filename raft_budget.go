package main

import (
	"context"
	"fmt"
	"sync"
)

// bodyBudget is how many bytes of request bodies a node holds at a time, unless
// max_value_size asks for more.
const bodyBudget = 256 << 20

// reserve takes size bytes of the node's budget for request bodies, waiting for
// room in order of arrival; release gives them back.
func (n *node) reserve(ctx context.Context, size int64) (release func(), err error) {
	if err := n.bodies.take(ctx, size); err != nil {
		return nil, err
	}
	var once sync.Once
	return func() { once.Do(func() { n.bodies.give(size) }) }, nil
}

// budget is a number of bytes that requests share.
type budget struct {
	mu    sync.Mutex
	free  int64
	queue []*claim
}

// claim is somebody who waits for bytes.
type claim struct {
	size  int64
	ready chan struct{}
}

// take waits for size bytes; nobody overtakes.
func (b *budget) take(ctx context.Context, size int64) error {
	b.mu.Lock()
	if len(b.queue) == 0 && b.free >= size {
		b.free -= size
		b.mu.Unlock()
		return nil
	}
	c := &claim{size, make(chan struct{})}
	b.queue = append(b.queue, c)
	b.mu.Unlock()
	select {
	case <-c.ready:
		return nil
	case <-ctx.Done():
		b.mu.Lock()
		defer b.mu.Unlock()
		for i := range b.queue {
			if b.queue[i] == c {
				b.queue = append(b.queue[:i:i], b.queue[i+1:]...)
				b.serve()
				return fmt.Errorf("%w: %w", errOverloaded, ctx.Err())
			}
		}
		return nil // it was given just now
	}
}

// give returns bytes and serves those who wait.
func (b *budget) give(size int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free += size
	b.serve()
}

// serve gives to those at the front whose claim fits; mu must be held.
func (b *budget) serve() {
	for len(b.queue) > 0 && b.queue[0].size <= b.free {
		b.free -= b.queue[0].size
		close(b.queue[0].ready)
		b.queue = b.queue[1:]
	}
}
