package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"time"
)

// The leader's patrol in the bucket: others can write there, too. The bucket is listed
// every hour, for what is gone, as it is when a client wants all archived. Each recorded
// object is visited once a day: its size and its table are compared with its name. What is in its members is seen when they are read.
//
//	it is gone         it is put again, from this node's copy, else from another's;
//	                   the name is the same, so nothing is to be recorded
//	it is another one  it is told and left alone (raft_archive.go)
//
// A bucket manifest that is gone is written anew, and was hardly alone.

const (
	patrolTime = 24 * time.Hour // for one walk past all objects
	listEvery  = time.Hour
)

// patrol visits the objects whose turn it is, and the newest bucket manifest.
func (a *archiver) patrol(ctx context.Context) error {
	var all []segmentInfo
	for _, info := range a.n.store.manifest.Load().segments {
		if info.object != "" {
			all = append(all, info)
		}
	}
	for _, info := range all {
		if _, wrong := a.wrong[info.first]; !wrong {
			continue
		}
		if err := a.visit(ctx, info); err != nil { // it may have been put right
			return err
		}
	}
	for due := a.due(len(all)); due > 0; due-- {
		a.beat++ // one that cannot be asked for holds up no other
		if err := a.visit(ctx, all[a.beat%len(all)]); err != nil {
			return err
		}
	}
	p, gone := &a.published, false
	if p.size > 0 && p.bytes == nil {
		_, err := a.n.o.objects.size(ctx, p.name)
		gone = errors.Is(err, fs.ErrNotExist)
	}
	if gone || time.Since(a.listed) >= listEvery {
		if err := a.list(ctx); err != nil {
			return err
		}
	}
	if gone {
		a.n.o.logger.Warn("the bucket manifest is gone from the bucket, writing it again", "object", p.name)
		*p = publishedManifest{}
		return a.publish(ctx)
	}
	return nil
}

// list visits the recorded objects that a listing of the bucket does not name. A
// bucket that may not be listed is believed.
func (a *archiver) list(ctx context.Context) error {
	named := make(map[string]bool)
	err := a.n.o.objects.list(ctx, a.folder()+segmentsFolder, func(key string, _ int64) error {
		named[key] = true
		return nil
	})
	if err != nil {
		a.n.o.logger.Debug("listing the bucket", "error", err)
		return a.look(ctx)
	}
	for _, info := range a.n.store.manifest.Load().segments {
		if info.object == "" || named[a.n.store.objectKey(info)] {
			continue
		}
		if err := a.visit(ctx, info); err != nil {
			return err
		}
	}
	a.listed = time.Now()
	return nil
}

// due returns how many of so many objects it is time to visit.
func (a *archiver) due(objects int) int {
	each := max(a.n.o.patrolTime/time.Duration(max(objects, 1)), 1)
	if a.visited.IsZero() {
		a.visited, a.beat = time.Now(), rand.IntN(1<<30) // leaders come and go: who began with the first would not come to the last
	}
	due := time.Since(a.visited) / each
	a.visited = a.visited.Add(due * each)
	return int(min(due, time.Duration(objects)))
}

// visit looks whether the object of a segment is there. Only an error of the bucket as
// a whole is returned; what is wrong with the object is noted.
func (a *archiver) visit(ctx context.Context, info segmentInfo) error {
	key := a.n.store.objectKey(info)
	_, err := a.open(ctx, info, info.object, key)
	if wrongBytes(err) {
		_, err = a.open(ctx, info, info.object, key)
	}
	var w *wrongObject
	switch {
	case err == nil:
		delete(a.wrong, info.first)
		return nil
	case errors.Is(err, fs.ErrNotExist):
		err = a.putAgain(ctx, info, key)
	case wrongBytes(err):
		err = &wrongObject{a.n.o.objects.String() + "/" + key, otherBytes, err, time.Now()}
	}
	if errors.As(err, &w) {
		a.noteWrong(info, w)
		return nil
	}
	return err
}

// putAgain brings an object that is gone to the bucket once more.
func (a *archiver) putAgain(ctx context.Context, info segmentInfo, key string) error {
	a.n.o.logger.Warn("an object is gone from the bucket, putting it again", "segment", info.id(), "object", key)
	if err := a.n.store.bringBack(info); err != nil {
		return &wrongObject{a.n.o.objects.String() + "/" + key, goneObject, err, time.Now()}
	}
	p := a.pack(ctx, info)
	defer p.close()
	if p.err == nil && p.name != info.object {
		return fmt.Errorf("segment %s: %w: its object is %s, what was packed is %s", info.id(), errPacked, info.object, p.name)
	}
	return a.put(ctx, p)
}
