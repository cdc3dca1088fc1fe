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

const (
	requestGrace = 10 * time.Second       // for requests under way when serve is told to stop
	closeGrace   = 10 * time.Second       // for handing over leadership and flushing after that
	restartPause = 100 * time.Millisecond // before a node is opened again
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
	if c.host() != c.Node.Address {
		logger.Warn("no other node can join one whose address stands for all interfaces", "address", c.Node.Address)
	}
	if c.Discovery.Enabled && c.Cluster.Secret == "" {
		logger.Warn("announcements are signed with no secret: anybody on the network can make them up", "key", "cluster.secret")
	}
	limitMemory(ctx)
	start := func(ln net.Listener) (*service, error) { return p.startNode(c, ln, logger) }
	if err := serveForever(ctx, c.clientAddr(), logger, start); err != nil {
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
			settings = append(settings, setting{key, origin{source: sourceFlag, name: "--" + f.Name}, textValue(value), fmt.Sprintf("%q", value)})
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

// service is an open node that serves clients.
type service struct {
	failed <-chan error // why the node cannot go on
	ended  <-chan error // why clients are served no more
	stop   func() error // ends both in order
}

// serveForever listens at addr and serves what start opens, until ctx ends
// (nil) or something fails. A node that asks for it is opened anew.
func serveForever(ctx context.Context, addr string, logger *slog.Logger, start func(net.Listener) (*service, error)) error {
	for {
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			return fmt.Errorf("listening for clients: %w", err)
		}
		addr = ln.Addr().String() // the next round takes the same port, even if this one took any
		err = serveOnce(ctx, ln, logger, start)
		if !errors.Is(err, errRestart) || ctx.Err() != nil {
			return err
		}
		logger.Warn("opening the node again", "reason", err)
		select { // a node that cannot stay up must not spin
		case <-ctx.Done():
			return nil
		case <-time.After(restartPause):
		}
	}
}

// serveOnce is one life of a node. After an error that is not errRestart its
// memory and its disk may differ, so it is left as it is: the process ends.
func serveOnce(ctx context.Context, ln net.Listener, logger *slog.Logger, start func(net.Listener) (*service, error)) error {
	defer ln.Close()
	s, err := start(ln)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		logger.Info("stopping")
		return s.stop()
	case err = <-s.failed:
	case err = <-s.ended:
		err = fmt.Errorf("serving clients: %w", err)
	}
	if errors.Is(err, errRestart) {
		if stopped := s.stop(); stopped != nil {
			return stopped
		}
	}
	return err
}

// startNode opens the node and serves clients on ln.
func (p *program) startNode(c *config, ln net.Listener, logger *slog.Logger) (*service, error) {
	m := newMetrics()
	url := c.httpURL(ln.Addr().(*net.TCPAddr).Port)
	o := nodeOptionsFrom(c, url, logger, m)
	var err error
	if o.objects, err = bucketFrom(c.Storage.S3, m); err != nil {
		return nil, err
	}
	var found *discovery
	if c.Discovery.Enabled {
		found = newDiscovery(discoveryOptionsFrom(c, url, logger, m))
		o.suggest, o.peerState = found.addresses, found.state
	}
	n, err := openNode(o)
	if err != nil {
		return nil, fmt.Errorf("opening the node: %w", err)
	}
	if found != nil {
		if err := found.start(n.announced); err != nil {
			return nil, errors.Join(err, n.release())
		}
	}
	s := newServer(n, serverOptionsFrom(c, logger, m))
	ended := make(chan error, 1)
	go func() { ended <- s.serve(ln) }()
	p.announce(c, url, logger)
	stop := func() error {
		if found != nil {
			found.close()
		}
		return stopNode(n, s, ln, logger)
	}
	return &service{n.failed(), ended, stop}, nil
}

// stopNode stops taking connections, hands over leadership, while the node still
// passes on what it is asked for, ends the requests under way and closes the
// node. What takes too long is left behind: a restart recovers from it.
func stopNode(n *node, s *server, ln net.Listener, logger *slog.Logger) error {
	s.retire()
	ln.Close()
	handover, cancel := context.WithTimeout(context.Background(), closeGrace)
	n.handOver(handover)
	cancel()
	s.awaitRetired()
	requests, cancel := context.WithTimeout(context.Background(), requestGrace)
	defer cancel()
	if err := s.shutdown(requests); err != nil {
		logger.Warn("requests were cut off", "error", err)
	}
	closed := make(chan error, 1)
	go func() {
		closing, cancel := context.WithTimeout(context.Background(), closeGrace)
		defer cancel()
		closed <- n.close(closing)
	}()
	select {
	case err := <-closed:
		return err
	case <-time.After(2 * closeGrace): // its disk hangs, probably
		logger.Warn("node did not close in time")
		return nil
	}
}

// nodeOptionsFrom translates the configuration for the node.
func nodeOptionsFrom(c *config, url string, logger *slog.Logger, m *metrics) nodeOptions {
	return nodeOptions{
		id: uint64(c.Node.ID), httpURL: url, raftAddr: c.raftAddr(), raftListen: c.raftListen(), seeds: c.seeds(),
		dataDir: c.Node.DataDir, clusterName: c.Cluster.Name, secret: c.Cluster.Secret,
		region: c.Node.Region, version: buildVersion(),
		expect: int(c.Cluster.Expect), bootstrap: c.bootstrap,
		learner: !c.Cluster.Voter, removeDeadAfter: c.Cluster.RemoveDeadAfter,
		segmentSize: c.Storage.SegmentSize, maxValueSize: c.Storage.MaxValueSize,
		sealAfter: c.Storage.SealAfter, scrubRate: c.Storage.ScrubRate,
		electionMin:  time.Duration(c.Consensus.ElectionTimeoutMin) * time.Millisecond,
		electionMax:  time.Duration(c.Consensus.ElectionTimeoutMax) * time.Millisecond,
		heartbeat:    time.Duration(c.Consensus.HeartbeatIntervalMS) * time.Millisecond,
		writeTimeout: time.Duration(c.API.WriteTimeoutSecs) * time.Second,
		readTimeout:  time.Duration(c.API.ReadTimeoutSecs) * time.Second,
		objectPrefix: prefixFrom(c.Storage.S3), cacheSize: c.Storage.MaxCacheSize,
		packLevel: int(c.Storage.Tiering.CompressionLevel), archiveAsked: !c.Storage.Tiering.EnableAutoArchival,
		archiveEvery: time.Duration(c.Storage.Tiering.ArchivalCheckIntervalSecs) * time.Second,
		dropAge:      time.Duration(c.Storage.Tiering.AgeThresholdSecs) * time.Second, localMax: c.Storage.Tiering.LocalMaxBytes,
		witnesses:    witnessTargets(c.Witness.Targets),
		witnessEvery: time.Duration(c.Witness.IntervalSecs) * time.Second, witnessTimeout: time.Duration(c.Witness.TimeoutSecs) * time.Second,
		logger: logger, metrics: m, now: time.Now,
	}
}

// discoveryOptionsFrom translates the configuration for discovery.
func discoveryOptionsFrom(c *config, url string, logger *slog.Logger, m *metrics) discoveryOptions {
	return discoveryOptions{
		name: c.Cluster.Name, secret: c.Cluster.Secret, node: uint64(c.Node.ID), raft: c.raftAddr(), http: url,
		host: c.host(), port: uint16(c.Discovery.DiscoveryPort), broadcast: c.broadcast(), endpoints: c.endpoints(),
		heartbeat: time.Duration(c.Discovery.HeartbeatIntervalMS) * time.Millisecond,
		timeout:   time.Duration(c.Discovery.FailureTimeoutMS) * time.Millisecond,
		logger:    logger, metrics: m, now: time.Now,
	}
}

// witnessTargets translates the witnesses, which validate has looked at.
func witnessTargets(list []string) []witnessTarget {
	var all []witnessTarget
	for _, s := range list {
		if key, url, err := splitWitness(s); err == nil {
			all = append(all, witnessTarget{key, url})
		}
	}
	return all
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
	if c.Discovery.Enabled {
		formation += fmt.Sprintf(", discovery by UDP port %d", c.Discovery.DiscoveryPort)
	}
	fmt.Fprintf(p.stderr, "Scribe Ledger %s\n  node %d of cluster %s, %s\n  clients  %s\n  nodes    %s\n  data     %s\n",
		buildVersion(), c.Node.ID, c.Cluster.Name, formation, url, c.raftAddr(), c.Node.DataDir)
}
