package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"
)

// The command serve: from the configuration to a running node, and its end.

// How long serve waits for what is under way when it is told to stop.
const (
	requestGrace = 10 * time.Second // for requests
	closeGrace   = 10 * time.Second // for handing over leadership and flushing
)

// serve runs a node until ctx ends or the node fails.
func (p *program) serve(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	file := flags.String("config", "", "TOML `file` to read")
	bootstrap := flags.Bool("bootstrap", false, "form a new cluster of one, that others then join")
	flags.String("node-id", "", "`number` of this node, wins over node.id")
	flags.String("log-level", "", "trace, debug, info, warn or error; wins over log.level")
	if _, err := p.parse(flags, args, 0, 0); err != nil {
		return err
	}
	c, err := loadConfig(*file, p.env, flagSettings(flags), *bootstrap)
	if err != nil {
		return &exitError{exitUnusable, err}
	}
	logger := p.newLogger(c.Log)
	for _, key := range c.unserved {
		logger.Warn("setting has no effect in this version", "key", key)
	}
	if err := p.serveForever(ctx, c, logger); err != nil {
		return &exitError{exitUnusable, err}
	}
	return nil
}

// flagSettings returns the settings among the flags that were given.
func flagSettings(flags *flag.FlagSet) []setting {
	keys := map[string]string{"node-id": "node.id", "log-level": "log.level"}
	var settings []setting
	flags.Visit(func(f *flag.Flag) {
		if key, ok := keys[f.Name]; ok {
			value := f.Value.String()
			settings = append(settings, setting{key, place{source: sourceFlag, name: "--" + f.Name}, textValue(value), fmt.Sprintf("%q", value)})
		}
	})
	return settings
}

// newLogger returns the logger of a node.
func (p *program) newLogger(c logConfig) *slog.Logger {
	levels := map[string]slog.Level{"trace": slog.LevelDebug - 4, "debug": slog.LevelDebug,
		"info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}
	options := &slog.HandlerOptions{Level: levels[c.Level]}
	if c.Format == "text" || c.Format == "auto" && isTerminal(p.stderr) {
		return slog.New(slog.NewTextHandler(p.stderr, options))
	}
	return slog.New(slog.NewJSONHandler(p.stderr, options))
}

// serveForever opens a node and serves it, again and again while the node asks
// to be opened anew.
func (p *program) serveForever(ctx context.Context, c *config, logger *slog.Logger) error {
	addr := c.clientAddr()
	for {
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			return fmt.Errorf("listening for clients: %w", err)
		}
		addr = ln.Addr().String() // the next round takes the same port, even if the first took any
		err = p.serveNode(ctx, c, ln, logger)
		if !errors.Is(err, errRestart) || ctx.Err() != nil {
			return err
		}
		logger.Warn("opening the node again", "reason", err)
		select { // a node that cannot stay up must not spin
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// serveNode opens the node and serves clients on ln until ctx ends (nil) or
// something fails.
func (p *program) serveNode(ctx context.Context, c *config, ln net.Listener, logger *slog.Logger) error {
	defer ln.Close()
	m := new(metrics)
	url := c.httpURL(ln.Addr().(*net.TCPAddr).Port)
	n, err := openNode(nodeOptionsFrom(c, url, logger, m))
	if err != nil {
		return fmt.Errorf("opening the node: %w", err)
	}
	s := newServer(n, serverOptionsFrom(c, logger, m))
	ended := make(chan error, 1)
	go func() { ended <- s.serve(ln) }()
	p.announce(c, url, logger)

	select {
	case <-ctx.Done():
		logger.Info("stopping")
		return stopNode(n, s, logger)
	case err = <-n.failed():
		if errors.Is(err, errRestart) {
			return errors.Join(err, stopNode(n, s, logger))
		}
		return err // memory and disk may differ: touch nothing more
	case err = <-ended:
		return errors.Join(fmt.Errorf("serving clients: %w", err), stopNode(n, s, logger))
	}
}

// stopNode ends the requests under way, hands over leadership and closes the
// node. What takes too long is left behind: a restart recovers from it.
func stopNode(n *node, s *server, logger *slog.Logger) error {
	requests, cancel := context.WithTimeout(context.Background(), requestGrace)
	defer cancel()
	if err := s.shutdown(requests); err != nil {
		logger.Warn("requests were cut off", "error", err)
	}
	handover, cancel := context.WithTimeout(context.Background(), closeGrace)
	defer cancel()
	err := n.close(handover)
	if errors.Is(err, context.DeadlineExceeded) {
		logger.Warn("node did not close in time", "error", err)
		return nil
	}
	return err
}

// nodeOptionsFrom translates the configuration for the node.
func nodeOptionsFrom(c *config, url string, logger *slog.Logger, m *metrics) nodeOptions {
	return nodeOptions{
		id: uint64(c.Node.ID), httpURL: url, raftAddr: c.raftAddr(), raftListen: c.raftAddr(), seeds: c.seeds(),
		dataDir: c.Node.DataDir, clusterName: c.Cluster.Name, secret: c.Cluster.Secret,
		region: c.Node.Region, version: buildVersion(),
		expect: int(c.Cluster.Expect), bootstrap: c.bootstrap,
		segmentSize: c.Storage.SegmentSize, maxValueSize: c.Storage.MaxValueSize,
		cacheSize: c.Storage.MaxCacheSize, sealAfter: c.Storage.SealAfter,
		electionMin:  time.Duration(c.Consensus.ElectionTimeoutMin) * time.Millisecond,
		electionMax:  time.Duration(c.Consensus.ElectionTimeoutMax) * time.Millisecond,
		heartbeat:    time.Duration(c.Consensus.HeartbeatIntervalMS) * time.Millisecond,
		writeTimeout: time.Duration(c.API.WriteTimeoutSecs) * time.Second,
		readTimeout:  time.Duration(c.API.ReadTimeoutSecs) * time.Second,
		logger:       logger, metrics: m, now: time.Now,
	}
}

// serverOptionsFrom translates the configuration for the HTTP server.
func serverOptionsFrom(c *config, logger *slog.Logger, m *metrics) serverOptions {
	return serverOptions{
		maxValueSize: c.Storage.MaxValueSize,
		readTimeout:  time.Duration(c.API.ReadTimeoutSecs) * time.Second,
		writeTimeout: time.Duration(c.API.WriteTimeoutSecs) * time.Second,
		allowDelete:  c.API.AllowDelete, consistency: c.API.ReadConsistency,
		logger: logger, metrics: m, version: buildVersion(),
	}
}

// announce says that the node serves: a banner on a terminal, else one record.
func (p *program) announce(c *config, url string, logger *slog.Logger) {
	if !isTerminal(p.stderr) {
		logger.Info("serving", "version", buildVersion(), "node_id", c.Node.ID, "cluster", c.Cluster.Name,
			"http", url, "raft", c.raftAddr(), "data_dir", c.Node.DataDir, "expect", c.Cluster.Expect, "seeds", c.seeds())
		return
	}
	formation := "alone"
	if c.Cluster.Expect > 1 || len(c.seeds()) > 0 {
		formation = fmt.Sprintf("formed by %d, seeds %s", c.Cluster.Expect, strings.Join(c.seeds(), " "))
	}
	fmt.Fprintf(p.stderr, "Scribe Ledger %s\n  node %d of cluster %s, %s\n  clients  %s\n  nodes    %s\n  data     %s\n",
		buildVersion(), c.Node.ID, c.Cluster.Name, formation, url, c.raftAddr(), c.Node.DataDir)
}
