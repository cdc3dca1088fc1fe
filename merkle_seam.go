package main

import "fmt"

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
