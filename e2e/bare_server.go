//go:build ignore

// Bare_server answers every request with 204 and nothing else: the yardstick
// of bench.py, the most that net/http does on these cores.
package main

import (
	"flag"
	"log"
	"net/http"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8000", "address to listen on")
	flag.Parse()
	answer := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }
	log.Fatal(http.ListenAndServe(*addr, http.HandlerFunc(answer)))
}
