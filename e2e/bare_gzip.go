//go:build ignore

// Bytes a second that compress/gzip packs at level 6 of the files that are named:
// what archiving is compared with.
package main

import (
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"time"
)

func main() {
	var size int
	var took time.Duration
	for _, name := range os.Args[1:] {
		b, err := os.ReadFile(name)
		if err != nil {
			panic(err)
		}
		start := time.Now()
		w, err := gzip.NewWriterLevel(io.Discard, 6)
		if err != nil {
			panic(err)
		}
		if _, err := w.Write(b); err != nil {
			panic(err)
		}
		if err := w.Close(); err != nil {
			panic(err)
		}
		size, took = size+len(b), took+time.Since(start)
	}
	fmt.Println(float64(size) / took.Seconds())
}
