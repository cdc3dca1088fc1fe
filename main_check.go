package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
)

// The commands verify and audit: their flags and exit codes. What they do is in
// main_verify*.go, which knows nothing of the server or of this program.

// textList is a flag that may be given more than once.
type textList []string

func (l *textList) String() string     { return fmt.Sprint(*l) }
func (l *textList) Set(s string) error { *l = append(*l, s); return nil }

// verify checks one entry, of a server or of a receipt.
func (p *program) verify(ctx context.Context, args []string) error {
	flags, base := p.clientFlags("verify")
	var offline receiptOptions
	var nodes textList
	version := flags.String("version", "", "the `Nth` version of the key")
	seq := flags.String("seq", "", "the entry with this `number`")
	key := flags.String("key", "", "the ledger's verifier key: `vkey`, or a file that holds it")
	flags.StringVar(&offline.receipt, "receipt", "", "check the receipt in this `file`, offline")
	flags.StringVar(&offline.value, "value", "", "check that this `file` is the value that the receipt is for")
	flags.IntVar(&offline.quorum, "quorum", 0, "demand that so `many` of the nodes given have cosigned the receipt (default all)")
	flags.Var(&nodes, "node-key", "verifier key of a node: `vkey`, or a file that holds it; may be given more than once")
	args, err := p.parse(flags, args, 0, 1)
	if err != nil {
		return err
	}
	v := p.verifier()
	given := givenFlags(flags)
	if given["receipt"] {
		if len(args) > 0 || given["url"] || given["version"] || given["seq"] || *key == "" {
			return unusable("verify: --receipt takes --key, and neither KEY, --url, --version nor --seq")
		}
		if offline.quorum < 0 {
			return unusable("verify: --quorum %d", offline.quorum)
		}
		if !given["quorum"] {
			offline.quorum = -1
		}
		offline.key, offline.nodeKeys = *key, nodes
		return withExitCode(v.verifyReceipt(offline))
	}
	if len(args) == 0 || given["value"] || given["quorum"] || given["node-key"] {
		return unusable("verify: name a key, or a --receipt, to which alone --value, --quorum and --node-key belong; usage: scribe-ledger %s", usageOf("verify"))
	}
	return withExitCode(v.verifyEntry(ctx, entryOptions{url: *base, key: args[0], version: *version, seq: *seq, pin: *key}))
}

// auditGCPercent keeps the memory of an audit small: what it has is many bytes
// in few pieces without pointers, which a collection hardly has to look at.
const auditGCPercent = 25

// audit re-derives a whole ledger.
func (p *program) audit(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("audit", flag.ContinueOnError)
	var o auditOptions
	flags.StringVar(&o.data, "data", "", "data `folder` of a node, a folder of segment files, or a backup")
	flags.StringVar(&o.url, "url", "", "`URL` of a node, or s3://bucket/prefix")
	file := flags.String("config", "", "with s3://: TOML `file` that says how the bucket is reached; without it the environment does")
	flags.StringVar(&o.cluster, "cluster", "", "of a bucket or a backup that has several: `id` of the cluster")
	flags.StringVar(&o.key, "key", "", "the ledger's verifier key: `vkey`, or a file that holds it")
	flags.StringVar(&o.checkpoint, "checkpoint", "", "with --data and --key: compare with the signed checkpoint in this `file`")
	if _, err := p.parse(flags, args, 0, 0); err != nil {
		return err
	}
	if (o.data == "") == (o.url == "") {
		return unusable("audit: give either --data or --url")
	}
	if o.checkpoint != "" && (o.data == "" || o.key == "") {
		return unusable("audit: --checkpoint needs --data and --key")
	}
	if name := o.data + o.url; isBucket(name) || o.data != "" && isBackupFolder(name) {
		at, err := p.locationOf(name, *file)
		if err != nil {
			return err
		}
		defer at.close()
		o.archive, o.prefix = at.objects, at.prefix
	} else if *file != "" || o.cluster != "" {
		return unusable("audit: --config belongs to --url s3://…, --cluster to that or a backup")
	}
	bar := p.newProgress("audited")
	v := p.verifier()
	v.progress = bar.update
	defer debug.SetGCPercent(debug.SetGCPercent(auditGCPercent))
	err := v.audit(ctx, o)
	bar.clear()
	return withExitCode(err)
}

// verifier returns what verify and audit may touch of the outside.
func (p *program) verifier() *verifier {
	folder := p.getenv("SCRIBE_CONFIG_DIR", "")
	if folder == "" {
		if dir, err := os.UserConfigDir(); err == nil {
			folder = filepath.Join(dir, "scribe-ledger")
		}
	}
	return &verifier{out: p.stdout, now: p.now, folder: folder, soundPages: checkBolt}
}

// withExitCode gives an error of verify or audit its exit code.
func withExitCode(err error) error {
	if errors.Is(err, errBadArgument) || errors.Is(err, errPin) || errors.Is(err, errNoArchive) {
		return &exitError{exitUnusable, err}
	}
	return err
}

// givenFlags returns the names of the flags that the command line has.
func givenFlags(flags *flag.FlagSet) map[string]bool {
	given := make(map[string]bool)
	flags.Visit(func(f *flag.Flag) { given[f.Name] = true })
	return given
}
