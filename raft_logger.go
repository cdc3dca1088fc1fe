package main

import (
	"bytes"
	"context"
	"log/slog"
)

// raftLogger is where hashicorp/raft writes its log: lines of the form
//
//	2026-11-22T15:28:57.160Z [WARN]  raft: heartbeat timeout reached: last-leader-id=
//
// become slog records. Lines below the level raft was given never come here.
type raftLogger struct{ log *slog.Logger }

// raftLevels maps the level of a line; what is not here is logged as a warning.
var raftLevels = map[string]slog.Level{
	"TRACE": slog.LevelDebug - 4, "DEBUG": slog.LevelDebug, "INFO": slog.LevelInfo, "ERROR": slog.LevelError,
}

// quietErrors are for those who debug only: a log in doubt is the reason this
// process ends with, which main says aloud, and a node that still fetches
// segments is no failure, as Raft has it.
var quietErrors = []error{errLogPoisoned, errStablePoisoned, errFetching}

// Write logs one line.
func (r raftLogger) Write(line []byte) (int, error) {
	level, text := slog.LevelWarn, bytes.TrimSpace(line)
	if _, rest, ok := bytes.Cut(text, []byte(" [")); ok {
		if name, message, ok := bytes.Cut(rest, []byte("]")); ok {
			if l, known := raftLevels[string(name)]; known {
				level = l
			}
			text = bytes.TrimSpace(message)
		}
	}
	for _, err := range quietErrors {
		if bytes.Contains(text, []byte(err.Error())) {
			level = slog.LevelDebug
		}
	}
	r.log.Log(context.Background(), level, string(text))
	return len(line), nil
}
