package main

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

// scriptedObjects is a bucket that answers a read when the test says how.
type scriptedObjects struct {
	objectStore
	answers map[string]chan error
}

func (o *scriptedObjects) read(ctx context.Context, key string, _, size int64) ([]byte, error) {
	return make([]byte, size), <-o.answers[key]
}

// TestObjectsDown: a bucket that answers nobody is asked once a second; a read that
// it left alone while it answered others does not stop those to come.
func TestObjectsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lost := errors.New("connection lost")
		objects := &scriptedObjects{answers: make(map[string]chan error)}
		o := &objectReader{objects: objects, ctx: t.Context(), metrics: new(metrics), logger: slog.New(slog.DiscardHandler)}
		told := 0
		o.failed = func(err error) {
			told++
			wantError(t, err, errArchiveUnavailable, "object nobody", "connection lost")
		}
		results := make(map[string]chan error)
		begin := func(key string) {
			objects.answers[key], results[key] = make(chan error), make(chan error, 1)
			result := results[key]
			go func() {
				_, err := o.read(key, 0, 1)
				result <- err
			}()
			time.Sleep(time.Millisecond)
			synctest.Wait()
		}
		end := func(key string, answer error) {
			objects.answers[key] <- answer
			wantError(t, <-results[key], answerKind(answer))
			time.Sleep(time.Millisecond)
		}
		atOnce := func() {
			begin("refused")
			wantError(t, <-results["refused"], errArchiveUnavailable, "object refused", "connection lost")
		}
		begin("left alone")
		begin("other")
		end("other", nil)
		end("left alone", lost)
		begin("next")
		end("next", nil)

		begin("nobody")
		end("nobody", lost)
		atOnce()
		time.Sleep(objectRest)
		begin("asks again")
		atOnce()
		end("asks again", lost)
		atOnce()
		time.Sleep(objectRest)
		begin("asks once more")
		end("asks once more", nil)
		begin("all ask")
		begin("side by side")
		end("all ask", nil)
		end("side by side", nil)
		if told != 1 {
			t.Errorf("it is told %d times that the bucket does not answer", told)
		}
	})
}

// answerKind is what a reader makes of the answer to a read.
func answerKind(answer error) error {
	if answer == nil {
		return nil
	}
	return errArchiveUnavailable
}
