package main

import (
	"reflect"
	"unsafe"

	"github.com/hashicorp/raft"
)

// drainRaft answers what is left in the queues of a Raft that has shut down,
// which never does: whoever waits for it would wait beyond the end of the
// process, and of the bubble. The program itself does not care (node.wait).
func drainRaft(r *raft.Raft) {
	v := reflect.ValueOf(r).Elem()
	for _, name := range []string{"applyCh", "fsmMutateCh", "verifyCh", "configurationsCh", "leadershipTransferCh"} {
		queue := exposed(v.FieldByName(name))
		for {
			left, ok := queue.TryRecv()
			if !ok {
				break
			}
			answerLeft(left)
		}
	}
}

// exposed lifts the protection of a field that is not exported.
func exposed(field reflect.Value) reflect.Value {
	return reflect.NewAt(field.Type(), unsafe.Pointer(field.UnsafeAddr())).Elem()
}

// answerLeft answers a future, or all that are in a batch for the FSM.
func answerLeft(v reflect.Value) {
	for v.Kind() == reflect.Interface {
		v = v.Elem()
	}
	switch v.Kind() {
	case reflect.Slice: // []*commitTuple
		for i := range v.Len() {
			if f := exposed(v.Index(i).Elem().FieldByName("future")); !f.IsNil() {
				answerLeft(f)
			}
		}
	case reflect.Pointer:
		ch := exposed(v.Elem().FieldByName("errCh"))
		if !ch.IsNil() {
			ch.TrySend(reflect.ValueOf(raft.ErrRaftShutdown))
		}
	}
}
