package main

// root computes the root of size entries; store_tree.go of branch tree replaces it.
func (s *store) root(size uint64) (hash, error) {
	var t compactTree
	for seq := range size {
		e, err := s.headerAt(seq)
		if err != nil {
			return hash{}, err
		}
		t.append(leafHash(e.raw))
	}
	return t.root(), nil
}
