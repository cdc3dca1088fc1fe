package main

import (
	"errors"
	"fmt"
)

// errBeyond says that the ledger has fewer entries than were asked for.
var errBeyond = errors.New("beyond the end of the ledger")

// root returns the root of the tree over the first size entries.
func (s *store) root(size uint64) (hash, error) {
	if size > s.size() {
		return hash{}, fmt.Errorf("%w: size %d", errBeyond, size)
	}
	var t compactTree
	for seq := range size {
		e, err := s.headerAt(seq)
		if err != nil {
			return hash{}, err
		}
		t.append(e.leaf)
	}
	return t.root(), nil
}
