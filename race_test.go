//go:build race

package main

// raceDetector tells whether it is on: tests of one goroutine have smaller sizes
// then, and the full ones without it.
const raceDetector = true
