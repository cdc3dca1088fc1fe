package main

// store is the node's disk.
type store struct{}
