package main

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// raftLogger is the hclog.Logger that hashicorp/raft asks for, on top of slog.
// The embedded logger, which says nothing, answers the methods Raft never calls.
type raftLogger struct {
	hclog.Logger
	log *slog.Logger
	min slog.Level // nothing below is logged
}

// newRaftLogger returns a logger for Raft that passes on what is at least min.
func newRaftLogger(log *slog.Logger, min slog.Level) hclog.Logger {
	return &raftLogger{hclog.NewNullLogger(), log, min}
}

// slogLevel maps Raft's levels to ours; Trace is below Debug as in hclog.
func slogLevel(l hclog.Level) slog.Level {
	switch l {
	case hclog.Trace:
		return slog.LevelDebug - 4
	case hclog.Debug:
		return slog.LevelDebug
	case hclog.Warn:
		return slog.LevelWarn
	case hclog.Error:
		return slog.LevelError
	}
	return slog.LevelInfo
}

// on reports whether messages of level l are logged.
func (r *raftLogger) on(l hclog.Level) bool {
	s := slogLevel(l)
	return s >= r.min && r.log.Enabled(context.Background(), s)
}

// Log passes on one message; hclog's lazy formats become strings.
func (r *raftLogger) Log(l hclog.Level, msg string, args ...any) {
	if !r.on(l) {
		return
	}
	plain := make([]any, len(args))
	for i, a := range args {
		plain[i] = a
		if f, ok := a.(hclog.Format); ok && len(f) > 0 {
			plain[i] = fmt.Sprintf(fmt.Sprint(f[0]), f[1:]...)
		}
	}
	r.log.Log(context.Background(), slogLevel(l), msg, plain...)
}

func (r *raftLogger) Trace(msg string, args ...any) { r.Log(hclog.Trace, msg, args...) }
func (r *raftLogger) Debug(msg string, args ...any) { r.Log(hclog.Debug, msg, args...) }
func (r *raftLogger) Info(msg string, args ...any)  { r.Log(hclog.Info, msg, args...) }
func (r *raftLogger) Warn(msg string, args ...any)  { r.Log(hclog.Warn, msg, args...) }
func (r *raftLogger) Error(msg string, args ...any) { r.Log(hclog.Error, msg, args...) }

func (r *raftLogger) IsTrace() bool { return r.on(hclog.Trace) }
func (r *raftLogger) IsDebug() bool { return r.on(hclog.Debug) }
func (r *raftLogger) IsInfo() bool  { return r.on(hclog.Info) }
func (r *raftLogger) IsWarn() bool  { return r.on(hclog.Warn) }
func (r *raftLogger) IsError() bool { return r.on(hclog.Error) }

// With adds attributes to every message.
func (r *raftLogger) With(args ...any) hclog.Logger {
	return &raftLogger{r.Logger, r.log.With(args...), r.min}
}

// Named and ResetNamed keep the logger: slog has no names.
func (r *raftLogger) Named(string) hclog.Logger      { return r }
func (r *raftLogger) ResetNamed(string) hclog.Logger { return r }
