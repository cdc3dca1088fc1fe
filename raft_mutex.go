package main

import "sync"

// longMutex is a mutex that may be held over network and disk. Who waits for it
// waits on a sync.Cond, which virtual time (testing/synctest) takes for waiting:
// behind a sync.Mutex it would stand still. Its zero value is ready.
type longMutex struct {
	mu   sync.Mutex
	free *sync.Cond
	held bool
}

// TryLock locks m if that takes no waiting and tells whether it did.
func (m *longMutex) TryLock() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.held {
		return false
	}
	m.held = true
	return true
}

// Lock waits until m is free and locks it.
func (m *longMutex) Lock() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.free == nil {
		m.free = sync.NewCond(&m.mu)
	}
	for m.held {
		m.free.Wait()
	}
	m.held = true
}

// Unlock frees m, which must be locked.
func (m *longMutex) Unlock() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.held = false
	if m.free != nil {
		m.free.Signal()
	}
}
