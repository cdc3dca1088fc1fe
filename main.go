// Scribe Ledger is a distributed, immutable, append-only, verifiable key-value
// store in one binary: every write is appended to one ledger, agreed by Raft,
// hashed into one Merkle tree, and kept in sealed segment files. The same
// binary is the node, its command line client and its load generator.
//
// The package is flat. Read it from the leaves up; layers_test.go holds which
// file may know which:
//
//	merkle.go    the tree: hashes, roots
//	segment.go   what an entry and a segment file are, byte by byte
//	manifest.go  the list of sealed segments
//	store*.go    a node's disk: segments, key index, checkpoint, reads
//	fsm*.go      what is replicated: commands, and how they become entries
//	raft*.go     a node: log, transport, packing, confirmed reads, membership
//	http*.go     the interface for clients
//	config*.go   the configuration; its struct is the manual
//	main*.go     the command line: serving, client commands, bench
//
// The command line is in this file, the commands are in main_*.go.
// DESIGN.md says why things are as they are, README.md how to run them.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // so that a second signal ends the process at once
	os.Exit(runCommand(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Environ()))
}

// The exit codes of API.md.
const (
	exitDone     = 0
	exitFailed   = 1 // the request failed, or the check found a difference
	exitUnusable = 2 // unusable arguments or configuration, or a fatal storage error
)

// exitError is an error that ends the process with a code other than exitFailed.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// unusable returns an error that ends the process with exitUnusable.
func unusable(format string, args ...any) error {
	return &exitError{exitUnusable, fmt.Errorf(format, args...)}
}

// program is one run of the binary: what a command may touch of the outside.
type program struct {
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
	env    []string // NAME=value
	now    func() time.Time
}

// command is one subcommand. Its run returns nil for exit code 0.
type command struct {
	name  string
	usage string // its arguments
	about string
	run   func(p *program, ctx context.Context, args []string) error
}

// commands is the command line, in the order of the help text. It is a
// function because the commands themselves print it.
func commands() []command {
	return []command{
		{"serve", "[--config FILE] [--node-id N] [--bootstrap] [--log-level LEVEL]", "run a node; the default command", (*program).serve},
		{"recover", "[--config FILE] [--node-id N]", "make a stopped node a cluster of its own when most nodes are lost for good", (*program).recoverAlone},
		{"repair", "[--config FILE] [--node-id N]", "set the state of a stopped node aside: it fetches everything from the others", (*program).repair},
		{"backup", "--config FILE|--url URL --to DIR [--key VKEY] [--no-seal]", "bring a folder to where a ledger is, for restore and audit", (*program).backup},
		{"restore", "--config FILE [--from DIR|s3://BUCKET/PREFIX] [--cluster ID] [--key VKEY] [--force]", "make a cluster of one, that others then join, of what a lost cluster archived", (*program).restore},
		{"put", "KEY [FILE|-]", "write a value from a file or standard input", (*program).put},
		{"get", "KEY [--version N] [--seq N] [--at SEQ|TIME] [-o FILE]", "read a value", (*program).get},
		{"rm", "KEY", "delete a key; its history stays", (*program).rm},
		{"history", "KEY", "list the versions of a key, newest first", (*program).history},
		{"keys", "[PREFIX]", "list the live keys", (*program).keys},
		{"status", "[--json]", "show the cluster", (*program).status},
		{"verify", "KEY [--version N|--seq N] [--key VKEY] | --receipt FILE --key VKEY [--value FILE] [--quorum K --node-key VKEY ...]", "check an entry here, trusting no server", (*program).verify},
		{"audit", "--data DIR | --url URL|s3://BUCKET/PREFIX [--key VKEY] [--checkpoint FILE]", "re-derive a whole ledger from its bytes and say the first difference", (*program).audit},
		{"import", "FILE.ndjson|-", "write one operation a line", (*program).importLines},
		{"export", "[-o FILE] [--from SEQ] [--prefix P]", "print all entries, one a line, as import reads them", (*program).export},
		{"bench", "[--op put|get|mixed] [--connections N] ...", "generate load and measure it", (*program).bench},
		{"witness", "--name NAME --log VKEY [--log-file FILE] [--listen ADDR] [--data DIR]", "watch ledgers and cosign their checkpoints (C2SP tlog-witness)", (*program).witness},
		{"version", "", "print the version", (*program).version},
	}
}

// runCommand executes one command line and returns the exit code. An error is told in
// one line on stderr; several faults of a configuration take a line each.
func runCommand(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, env []string) int {
	p := &program{stdin, stdout, stderr, env, time.Now}
	err := p.dispatch(ctx, args)
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return exitDone
	}
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintf(stderr, "scribe-ledger: %s\n", strings.TrimSpace(line))
	}
	var exit *exitError
	if errors.As(err, &exit) {
		return exit.code
	}
	return exitFailed
}

// dispatch runs the command that args name; without a name it serves.
func (p *program) dispatch(ctx context.Context, args []string) error {
	name := "serve"
	if len(args) > 0 {
		switch first := args[0]; {
		case first == "help" || first == "-h" || first == "-help" || first == "--help":
			p.help()
			return nil
		case first == "--version":
			name, args = "version", args[1:]
		case !strings.HasPrefix(first, "-"):
			name, args = first, args[1:]
		}
	}
	for _, c := range commands() {
		if c.name == name {
			return c.run(p, ctx, args)
		}
	}
	return unusable("unknown command %q; scribe-ledger help lists them", name)
}

// help prints the command line.
func (p *program) help() {
	fmt.Fprintln(p.stdout, "Usage: scribe-ledger [command] [arguments]")
	fmt.Fprintln(p.stdout)
	for _, c := range commands() {
		fmt.Fprintf(p.stdout, "  %s %s\n        %s\n", c.name, c.usage, c.about)
	}
	fmt.Fprintln(p.stdout, "\nClient commands take --url (default $SCRIBE_URL or "+defaultURL+").")
	fmt.Fprintln(p.stdout, "scribe-ledger COMMAND --help lists all flags of a command.")
}

// parse reads flags, which may stand before, between and after the other
// arguments, and returns the others: from least to most of them. After "--"
// nothing is a flag.
func (p *program) parse(flags *flag.FlagSet, args []string, least, most int) ([]string, error) {
	flags.SetOutput(io.Discard)
	var others []string
	for {
		if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
			p.commandHelp(flags)
			return nil, err
		} else if err != nil {
			return nil, unusable("%s: %w", flags.Name(), err)
		}
		rest := flags.Args()
		if used := len(args) - len(rest); len(rest) == 0 || used > 0 && args[used-1] == "--" {
			others = append(others, rest...)
			break
		}
		others, args = append(others, rest[0]), rest[1:]
	}
	if len(others) < least {
		return nil, unusable("%s: argument missing; usage: scribe-ledger %s", flags.Name(), usageOf(flags.Name()))
	}
	if len(others) > most {
		return nil, unusable("%s: unexpected argument %q; usage: scribe-ledger %s", flags.Name(), others[most], usageOf(flags.Name()))
	}
	return others, nil
}

// commandHelp prints the usage and all flags of one command.
func (p *program) commandHelp(flags *flag.FlagSet) {
	fmt.Fprintf(p.stdout, "Usage: scribe-ledger %s\n", usageOf(flags.Name()))
	flags.SetOutput(p.stdout)
	flags.PrintDefaults()
}

// usageOf returns the name and arguments of a command.
func usageOf(name string) string {
	for _, c := range commands() {
		if c.name == name {
			return strings.TrimSpace(c.name + " " + c.usage)
		}
	}
	return name
}

// getenv returns a variable of the environment, or fallback if it is unset or empty.
func (p *program) getenv(name, fallback string) string {
	for _, pair := range p.env {
		if key, value, _ := strings.Cut(pair, "="); key == name && value != "" {
			return value
		}
	}
	return fallback
}

// version prints what this binary was built from.
func (p *program) version(_ context.Context, args []string) error {
	if _, err := p.parse(flag.NewFlagSet("version", flag.ContinueOnError), args, 0, 0); err != nil {
		return err
	}
	fmt.Fprintf(p.stdout, "scribe-ledger %s %s %s/%s\n", buildVersion(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return nil
}

// buildVersion returns the module's version and, if the build knows it, the
// revision of the source.
func buildVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(devel)"
	}
	version := info.Main.Version
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision" && !strings.Contains(version, s.Value[:min(12, len(s.Value))]):
			version += " " + s.Value
		case s.Key == "vcs.modified" && s.Value == "true" && !strings.Contains(version, "dirty"):
			version += "+dirty"
		}
	}
	return version
}

// isTerminal reports whether f, a reader or writer, is a terminal.
func isTerminal(f any) bool {
	file, ok := f.(*os.File)
	if !ok {
		return false
	}
	info, err := file.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull)
	return err != nil || !os.SameFile(info, null)
}
