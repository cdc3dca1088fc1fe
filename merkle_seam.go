package main

import (
	"errors"
	"fmt"
)

func checkInclusion(leaf hash, seq, size uint64, proof []hash, root hash) error {
	if seq >= size {
		return fmt.Errorf("leaf %d of %d", seq, size)
	}
	fn, sn, r := seq, size-1, leaf
	for _, c := range proof {
		if sn == 0 {
			return errors.New("too long")
		}
		if fn&1 == 1 || fn == sn {
			r = nodeHash(c, r)
			for fn&1 == 0 && fn != 0 {
				fn, sn = fn>>1, sn>>1
			}
		} else {
			r = nodeHash(r, c)
		}
		fn, sn = fn>>1, sn>>1
	}
	if sn != 0 || r != root {
		return errors.New("another root")
	}
	return nil
}

func checkConsistency(from, to uint64, proof []hash, fromRoot, toRoot hash) error { return nil }

type treeHead struct {
	origin     string
	size       uint64
	root       hash
	extensions []string
}

type tileID struct {
	level int
	index uint64
	width int
}

const entryTile = -1

func parseTilePath(s string) (tileID, error) {
	var id tileID
	_, err := fmt.Sscanf(s, "%d/%03d.p/%d", &id.level, &id.index, &id.width)
	return id, err
}
