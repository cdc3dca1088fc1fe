package main

import (
	"cmp"
	"fmt"
	"io/fs"
	"math"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// The configuration: this struct is the manual. Each key states its unit, its
// default and why. Where settings come from (TOML file, SCRIBE_* variables,
// flags) is in config_source.go. Only main.go reads a config; the rest of the
// program gets plain values.
//
// The tags min and max are the inclusive range of a number or of the length of
// a string or list, oneof names the words a string may be, and hidden keeps a value
// out of fault reports.

// config is everything a node can be told.
type config struct {
	Node      nodeConfig      `toml:"node"`
	Network   networkConfig   `toml:"network"`
	Storage   storageConfig   `toml:"storage"`
	Consensus consensusConfig `toml:"consensus"`
	Cluster   clusterConfig   `toml:"cluster"`
	Discovery discoveryConfig `toml:"discovery"`
	API       apiConfig       `toml:"api"`
	Witness   witnessConfig   `toml:"witness"`
	Log       logConfig       `toml:"log"`

	// These sections have no keys yet: a file may hold them only empty.
	TLS       struct{} `toml:"tls"`
	Auth      struct{} `toml:"auth"`
	RateLimit struct{} `toml:"rate_limit"`
	Audit     struct{} `toml:"audit"`
	Region    struct{} `toml:"region"`

	bootstrap bool // --bootstrap: form a new cluster of one, that others then join
}

// nodeConfig is [node]: who this node is.
type nodeConfig struct {
	// Number of the node, unique in its cluster and never reused for another
	// machine. Default 1. At most 2^53-1, so that every JSON reader keeps it exact.
	ID int64 `toml:"id" min:"1" max:"9007199254740991"`
	// IP address or name under which the other nodes reach this one. Default
	// 127.0.0.1: a node that nobody configured is not on the network. 0.0.0.0 is
	// for a node that stays alone: nobody else could reach that address.
	Address string `toml:"address" min:"1" max:"253"`
	// Directory of everything the node stores; made when missing, one process
	// at a time. Default ./data.
	DataDir string `toml:"data_dir" min:"1" max:"4096"`
	// Label of the place the node runs in, kept in every entry it takes. Default none.
	Region string `toml:"region" max:"64"`
}

// networkConfig is [network]: where the node listens and whom it knows.
type networkConfig struct {
	// host:port for clients; wins over node.address and client_port. An empty
	// host listens on all interfaces, port 0 takes any free one. Default none.
	ListenAddr string `toml:"listen_addr" max:"260"`
	// TCP port for clients at node.address. Default 8001.
	ClientPort int64 `toml:"client_port" min:"1" max:"65535"`
	// TCP port at node.address for all that nodes say to each other. Default 9001.
	RaftPort int64 `toml:"raft_port" min:"1" max:"65535"`
	// host:raft_port of the other nodes; this node's own is ignored, so that all
	// nodes can carry one list. Default none: a node that stands alone.
	SeedPeers []string `toml:"seed_peers" max:"98"`
}

// storageConfig is [storage]: sizes on disk and in memory.
type storageConfig struct {
	// Bytes at which the pending segment is sealed, the most that a restart
	// replays. The leader's value counts. Default 64 MiB, 64 KiB to 1 GiB.
	SegmentSize int64 `toml:"segment_size" min:"65536" max:"1073741824"`
	// Age at which a smaller segment is sealed: a duration such as "90s" or
	// "10m". Default 10m, 100ms to 720h.
	SealAfter time.Duration `toml:"seal_after"`
	// Bytes of memory for what was read from the bucket; what is local, the system
	// caches. Default 256 MiB; 0 = none.
	MaxCacheSize int64 `toml:"max_cache_size" min:"0" max:"1099511627776"`
	// Bytes of the largest value a client may write. Default 32 MiB, so that 64
	// such uploads at once fit into 1.5 GiB; 1 KiB to 1 GiB.
	MaxValueSize int64 `toml:"max_value_size" min:"1024" max:"1073741824"`
	// Bytes a second at which the node reads its files again to find what has
	// rotted. Default 4 MiB: 60 GiB in four hours, for two percent of a core; 0 = never.
	ScrubRate int64 `toml:"scrub_rate" min:"0" max:"1099511627776"`

	S3      s3Config      `toml:"s3"`
	Tiering tieringConfig `toml:"tiering"`
}

// s3Config is [storage.s3]: the bucket that sealed segments are archived to. All
// nodes should have the same: the leader writes there, every node reads.
type s3Config struct {
	// Name of the bucket. Default none: nothing is archived.
	Bucket string `toml:"bucket" max:"255"`
	// Region named in signatures. Default us-east-1, which most other stores accept.
	Region string `toml:"region" max:"64"`
	// http:// or https:// URL of the store. Default none: AWS, by region.
	Endpoint string `toml:"endpoint" max:"2048"`
	// Name of the access key. Default none: AWS_ACCESS_KEY_ID and the like, else the
	// file ~/.aws/credentials, which may hold keys that expire.
	AccessKeyID string `toml:"access_key_id" max:"256"`
	// The access key itself; better given as SCRIBE_STORAGE_S3_SECRET_ACCESS_KEY. Default none.
	SecretAccessKey string `toml:"secret_access_key" max:"256" hidden:"true"`
	// Whether the bucket stands in the path and not in the host name. Default false.
	PathStyle bool `toml:"path_style"`
	// Folder in the bucket, such as "ledgers/prod": all keys begin with it. Clusters
	// may share one, each has a folder of its own in there. Default none.
	Prefix string `toml:"prefix" max:"512"`
	// Seconds of silence after which a request is given up; a transfer may go on at
	// 256 KiB a second. Default 30.
	TimeoutSecs int64 `toml:"timeout_secs" min:"1" max:"3600"`
	// How often a request is tried again. Default 3.
	MaxRetries int64 `toml:"max_retries" min:"0" max:"100"`
	// Connections kept open. Default 10.
	PoolSize int64 `toml:"pool_size" min:"1" max:"1024"`
	// GOVERNANCE or COMPLIANCE: objects are put with Object Lock, for that many days
	// from then on; the bucket must have it. Default none.
	ObjectLockMode string `toml:"object_lock_mode" max:"16"`
	ObjectLockDays int64  `toml:"object_lock_days" min:"0" max:"36500"`
}

// tieringConfig is [storage.tiering]: when segments go to the bucket, and when their
// local copies go. Whoever leads archives, each node drops copies of its own.
type tieringConfig struct {
	// Seconds after sealing before a local copy may go. Default 604800, a week.
	AgeThresholdSecs int64 `toml:"age_threshold_secs" min:"0" max:"3153600000"`
	// Bytes of local segments above which the oldest archived ones go, read ones
	// last. Default 0: no limit.
	LocalMaxBytes int64 `toml:"local_max_bytes" min:"0" max:"9223372036854775807"`
	// gzip level of archived objects. Default 6.
	CompressionLevel int64 `toml:"compression_level" min:"1" max:"9"`
	// Whether sealed segments are archived without being asked; POST /cluster/archive
	// asks. Default true.
	EnableAutoArchival bool `toml:"enable_auto_archival"`
	// Seconds between two looks for work, and the longest wait before a bucket that
	// does not answer is asked again. Default 60.
	ArchivalCheckIntervalSecs int64 `toml:"archival_check_interval_secs" min:"1" max:"86400"`
}

// consensusConfig is [consensus]: Raft's timing, in milliseconds. All nodes of
// a cluster should have the same.
type consensusConfig struct {
	// With election_timeout_max this sets the base of Raft's timers: the smaller
	// of this and a third of that. Default 600.
	ElectionTimeoutMin int64 `toml:"election_timeout_min" min:"50" max:"60000"`
	// Silence after which a follower has stood for election at the latest: each
	// waits a random time from one to three times the base. At least
	// election_timeout_min. Default 1200, so that a killed leader is replaced
	// within two seconds; pre-votes keep a slow fsync from unseating one.
	ElectionTimeoutMax int64 `toml:"election_timeout_max" min:"50" max:"120000"`
	// Time between two heartbeats at most; Raft sends one every tenth to fifth of
	// the base. Less than half of election_timeout_min. Default 100.
	HeartbeatIntervalMS int64 `toml:"heartbeat_interval_ms" min:"5" max:"10000"`
}

// clusterConfig is [cluster]: which cluster the node belongs to.
type clusterConfig struct {
	// Name that all nodes of the cluster share: letters, digits, '.', '_', '-'.
	// Nodes refuse peers of another name. Default scribe.
	Name string `toml:"name" min:"1" max:"64"`
	// How many nodes form the first cluster, once; 1 = alone. Default
	// len(seed_peers)+1; none when discovery alone finds the others, for then a
	// node that was told nothing would be a cluster of its own.
	Expect int64 `toml:"expect" min:"1" max:"99"`
	// Text that nodes prove to each other that they know. Default none.
	Secret string `toml:"secret" max:"256" hidden:"true"`
	// Whether raft_port may be on an address that is not loopback although
	// nothing encrypts it. Default false.
	Insecure bool `toml:"insecure"`
	// Whether the node votes; false makes it a learner, which has everything and
	// serves reads, and forms no cluster. Default true.
	Voter bool `toml:"voter"`
	// Silence after which the leader takes a node out of the cluster, as long as
	// most of those left are alive: a duration such as "30m". The leader's value
	// counts. Default 0s: never; else 10s to 8760h.
	RemoveDeadAfter time.Duration `toml:"remove_dead_after"`
}

// discoveryConfig is [discovery]: finding the other nodes of cluster.name by UDP.
// They are asked as those in seed_peers are; nobody is a member because it was
// heard. Announcements are signed with cluster.secret: without one anybody on
// the network can make them up, though no more than waste connections with them.
type discoveryConfig struct {
	// Whether nodes announce themselves and listen. Default false: seed_peers is enough.
	Enabled bool `toml:"enabled"`
	// UDP port, the same on all nodes; those on one host share it. Default 17946.
	DiscoveryPort int64 `toml:"discovery_port" min:"1" max:"65535"`
	// IPv4 address that announcements go to; they go to the hosts in seed_peers
	// too. Default 255.255.255.255, the network that node.address is on. For a
	// node at a loopback address it is 127.255.255.255, all nodes on this host.
	BroadcastAddr string `toml:"broadcast_addr" min:"1" max:"64"`
	// Milliseconds between two announcements. Nodes form a cluster with peers
	// only after listening for two of them. Default 500.
	HeartbeatIntervalMS int64 `toml:"heartbeat_interval_ms" min:"10" max:"60000"`
	// Milliseconds of silence after which a peer is dead; more than
	// heartbeat_interval_ms, and halfway between both it is suspect. Default 1500.
	FailureTimeoutMS int64 `toml:"failure_timeout_ms" min:"20" max:"600000"`
}

// apiConfig is [api]: what clients get.
type apiConfig struct {
	// Consistency of a read that does not name one: linearizable or stale.
	// Default linearizable: no surprise for who did not read the manual.
	ReadConsistency string `toml:"read_consistency" oneof:"linearizable stale"`
	// Seconds a write may take before its outcome is reported as unknown. Default 30.
	WriteTimeoutSecs int64 `toml:"write_timeout_secs" min:"1" max:"3600"`
	// Seconds a read may wait for the leader or for min_seq. Default 10.
	ReadTimeoutSecs int64 `toml:"read_timeout_secs" min:"1" max:"3600"`
	// Whether DELETE may append tombstones. Default true; history stays either way.
	AllowDelete bool `toml:"allow_delete"`
}

// witnessConfig is [witness]: who watches the ledger and cosigns its checkpoints.
// Whoever leads asks them, so all nodes should have the same list.
type witnessConfig struct {
	// The witnesses, each "<vkey> <url>": its verifier key, for cosignatures, and
	// the http:// or https:// URL that add-checkpoint stands below. Default none.
	Targets []string `toml:"targets" max:"16"`
	// Seconds between two rounds; in a round each witness that has not cosigned
	// the newest checkpoint is asked to. Default 10.
	IntervalSecs int64 `toml:"interval_secs" min:"1" max:"86400"`
	// Seconds a round may take. Default 5.
	TimeoutSecs int64 `toml:"timeout_secs" min:"1" max:"300"`
}

// logConfig is [log]: what goes to standard error.
type logConfig struct {
	// trace, debug, info, warn or error. Default info.
	Level string `toml:"level" oneof:"trace debug info warn error"`
	// text, json, or auto: text on a terminal, else json. Default auto.
	Format string `toml:"format" oneof:"auto text json"`
}

// defaultConfig returns the configuration of a node that was told nothing.
func defaultConfig() *config {
	return &config{
		Node:    nodeConfig{ID: 1, Address: "127.0.0.1", DataDir: "./data"},
		Network: networkConfig{ClientPort: 8001, RaftPort: 9001},
		Storage: storageConfig{
			SegmentSize:  64 << 20,
			SealAfter:    10 * time.Minute,
			MaxCacheSize: 256 << 20,
			MaxValueSize: 32 << 20,
			ScrubRate:    4 << 20,
			S3:           s3Config{Region: "us-east-1", TimeoutSecs: 30, MaxRetries: 3, PoolSize: 10},
			Tiering: tieringConfig{AgeThresholdSecs: 604800, CompressionLevel: 6,
				EnableAutoArchival: true, ArchivalCheckIntervalSecs: 60},
		},
		Consensus: consensusConfig{ElectionTimeoutMin: 600, ElectionTimeoutMax: 1200, HeartbeatIntervalMS: 100},
		Cluster:   clusterConfig{Name: "scribe", Voter: true},
		Discovery: discoveryConfig{DiscoveryPort: 17946, BroadcastAddr: "255.255.255.255",
			HeartbeatIntervalMS: 500, FailureTimeoutMS: 1500},
		API:     apiConfig{ReadConsistency: "linearizable", WriteTimeoutSecs: 30, ReadTimeoutSecs: 10, AllowDelete: true},
		Witness: witnessConfig{IntervalSecs: 10, TimeoutSecs: 5},
		Log:     logConfig{Level: "info", Format: "auto"},
	}
}

// loadConfig returns the defaults, overridden by the file (if one is named),
// then by SCRIBE_* variables of env, then by flags. Its error is a
// configError that holds every fault of all of them.
func loadConfig(file string, env []string, flags []setting, bootstrap bool) (*config, error) {
	c := defaultConfig()
	c.bootstrap = bootstrap
	l := newConfigLoader(c)
	if file != "" {
		data, err := os.ReadFile(file)
		if err != nil {
			l.faults = append(l.faults, fault{origin{source: sourceFile, name: file}, "reading the configuration: " + reason(err)})
		} else {
			l.assignAll(l.readTOML(file, data))
		}
	}
	l.assignAll(l.readEnv(env))
	l.assignAll(flags)
	c.settleExpect()
	l.validate()
	if len(l.faults) > 0 {
		return nil, l.report()
	}
	return c, nil
}

// settleExpect gives cluster.expect the value that was left open.
func (c *config) settleExpect() {
	switch {
	case c.bootstrap:
		c.Cluster.Expect = 1
	case c.Cluster.Expect == 0 && (len(c.seeds()) > 0 || !c.Discovery.Enabled):
		c.Cluster.Expect = int64(len(c.seeds())) + 1
	}
}

// clientAddr is the host:port to listen on for clients.
func (c *config) clientAddr() string {
	if c.Network.ListenAddr != "" {
		return c.Network.ListenAddr
	}
	return net.JoinHostPort(c.Node.Address, strconv.FormatInt(c.Network.ClientPort, 10))
}

// raftListen is the host:port to listen on for other nodes.
func (c *config) raftListen() string {
	return net.JoinHostPort(c.Node.Address, strconv.FormatInt(c.Network.RaftPort, 10))
}

// raftAddr is the host:port that other nodes are told.
func (c *config) raftAddr() string {
	return net.JoinHostPort(c.host(), strconv.FormatInt(c.Network.RaftPort, 10))
}

// host is node.address, or loopback in place of one that stands for all interfaces.
func (c *config) host() string {
	if unspecified(c.Node.Address) {
		return "127.0.0.1"
	}
	return c.Node.Address
}

// broadcast is where announcements go. What leaves a loopback address reaches
// this host only, and there 127.255.255.255 reaches every node.
func (c *config) broadcast() netip.Addr {
	if loopback(c.Node.Address) || loopback(c.Discovery.BroadcastAddr) {
		return netip.AddrFrom4([4]byte{127, 255, 255, 255})
	}
	addr, _ := netip.ParseAddr(c.Discovery.BroadcastAddr) // validate has looked at it
	return addr.Unmap()
}

// endpoints are the hosts of seed_peers, once each.
func (c *config) endpoints() []string {
	var hosts []string
	for _, s := range c.seeds() {
		if host, _, err := net.SplitHostPort(s); err == nil && !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
	}
	return hosts
}

// httpURL is where others reach the client port, whose number is port: a
// listener on all interfaces is reached at node.address.
func (c *config) httpURL(port int) string {
	host, _, err := net.SplitHostPort(c.clientAddr())
	if err != nil || unspecified(host) {
		host = c.host()
	}
	return "http://" + net.JoinHostPort(host, strconv.Itoa(port))
}

// seeds is seed_peers without this node itself.
func (c *config) seeds() []string {
	self := c.raftAddr()
	return slices.DeleteFunc(slices.Clone(c.Network.SeedPeers), func(s string) bool { return s == self })
}

// validate adds the faults that need more than one key, or more than a range,
// to be seen. A key that is already at fault is not judged again.
func (l *configLoader) validate() {
	c := l.config
	alone := c.Cluster.Expect <= 1 && len(c.Network.SeedPeers) == 0 && !c.Discovery.Enabled
	l.check(validHost(c.Node.Address) && (alone || !unspecified(c.Node.Address)), c.Node.Address,
		"an IP address or host name at which other nodes reach this one", "node.address")
	l.validatePorts()
	l.validateSeeds()
	l.check(c.Storage.SealAfter >= 100*time.Millisecond && c.Storage.SealAfter <= 720*time.Hour, c.Storage.SealAfter,
		"a duration from 100ms to 720h", "storage.seal_after")
	l.validateTiming()
	l.validateWitnesses()
	l.check(c.Cluster.Voter || !c.bootstrap, c.Cluster.Voter, "true with --bootstrap: a learner forms no cluster", "cluster.voter")
	after := c.Cluster.RemoveDeadAfter
	l.check(after == 0 || after >= 10*time.Second && after <= 8760*time.Hour, after, "0s or a duration from 10s to 8760h", "cluster.remove_dead_after")
	l.check(validName(c.Cluster.Name), c.Cluster.Name,
		"letters, digits, '.', '_' and '-'", "cluster.name")
	l.check(c.Cluster.Insecure || loopback(c.Node.Address), c.Node.Address,
		"a loopback address, or cluster.insecure = true: nothing encrypts raft_port in this version", "node.address")

	l.validateS3()
	l.validateDiscovery()
}

// validateS3 checks what can be told of the bucket without asking it.
func (l *configLoader) validateS3() {
	s3 := l.config.Storage.S3
	l.check(s3.Bucket == "" || validName(s3.Bucket) && strings.Trim(s3.Bucket, ".") != "", s3.Bucket,
		"the name of a bucket: letters, digits, '.', '_' and '-'", "storage.s3.bucket")
	l.check(s3.Endpoint == "" || validEndpoint(s3.Endpoint), s3.Endpoint,
		"a URL such as https://host:port", "storage.s3.endpoint")
	l.check((s3.AccessKeyID == "") == (s3.SecretAccessKey == ""), "one of them",
		"access_key_id and secret_access_key both or neither", "storage.s3.access_key_id", "storage.s3.secret_access_key")
	l.check(s3.Region == "" || validName(s3.Region), s3.Region, "a name such as eu-central-1", "storage.s3.region")
	l.check(!strings.ContainsFunc(s3.AccessKeyID, unicode.IsControl), fmt.Sprintf("%q", s3.AccessKeyID), "no control characters", "storage.s3.access_key_id")
	prefix := strings.Trim(s3.Prefix, "/")
	l.check(!strings.ContainsFunc(prefix, unicode.IsControl), fmt.Sprintf("%q", s3.Prefix), "no control characters", "storage.s3.prefix")
	l.check(prefix == "" || fs.ValidPath(prefix), s3.Prefix, "names with one slash between them, none of them . or ..", "storage.s3.prefix")
	known := slices.Contains([]string{"", "GOVERNANCE", "COMPLIANCE"}, s3.ObjectLockMode)
	l.check(known, s3.ObjectLockMode, `"", GOVERNANCE or COMPLIANCE`, "storage.s3.object_lock_mode")
	l.check(!known || (s3.ObjectLockMode == "") == (s3.ObjectLockDays == 0), "one of them",
		"object_lock_mode and object_lock_days both or neither", "storage.s3.object_lock_mode", "storage.s3.object_lock_days")
}

// validateDiscovery checks what finds the other nodes.
func (l *configLoader) validateDiscovery() {
	c := l.config
	ip := net.ParseIP(c.Discovery.BroadcastAddr)
	l.check(ip.To4() != nil && !ip.IsMulticast() && !ip.IsUnspecified(), c.Discovery.BroadcastAddr,
		"an IPv4 address, such as 255.255.255.255", "discovery.broadcast_addr")
	l.check(c.Discovery.FailureTimeoutMS > c.Discovery.HeartbeatIntervalMS, c.Discovery.FailureTimeoutMS,
		fmt.Sprintf("more than heartbeat_interval_ms = %d", c.Discovery.HeartbeatIntervalMS),
		"discovery.failure_timeout_ms", "discovery.heartbeat_interval_ms")
	l.check(c.Cluster.Expect > 0, c.Cluster.Expect,
		"the number of nodes that form the first cluster: seed_peers does not tell it", "cluster.expect", "discovery.enabled")
	l.check(!c.Discovery.Enabled || c.Cluster.Secret != "" || c.Cluster.Insecure || loopback(c.Node.Address), `""`,
		"a text that announcements are signed with, or cluster.insecure = true", "cluster.secret", "discovery.enabled")
}

// validatePorts checks the client's listener and that the two ports differ.
func (l *configLoader) validatePorts() {
	c := l.config
	host, port, err := splitAddr(c.clientAddr(), 0)
	if c.Network.ListenAddr != "" {
		l.check(err == nil && (host == "" || validHost(host)), c.Network.ListenAddr,
			"host:port with a port up to 65535", "network.listen_addr")
	}
	if err != nil {
		return
	}
	clash := port == c.Network.RaftPort && (host == c.Node.Address || unspecified(host) || unspecified(c.Node.Address))
	l.check(!clash, c.Network.RaftPort,
		"a port that clients do not use already (listen_addr, client_port)",
		"network.raft_port", "network.client_port", "network.listen_addr", "node.address")
}

// validateSeeds checks each address of seed_peers, and that there are some when needed.
func (l *configLoader) validateSeeds() {
	c := l.config
	var wrong []string
	for i, s := range c.Network.SeedPeers {
		if host, _, err := splitAddr(s, 1); err != nil || !validHost(host) || unspecified(host) {
			wrong = append(wrong, strconv.Quote(s))
		} else if slices.Contains(c.Network.SeedPeers[:i], s) {
			wrong = append(wrong, strconv.Quote(s)+" twice")
		}
	}
	l.check(len(wrong) == 0, strings.Join(wrong, ", "),
		"host:raft_port of each other node, once", "network.seed_peers")
	l.check(c.Cluster.Expect <= 1 || len(c.seeds()) > 0 || c.Discovery.Enabled, c.Cluster.Expect,
		"1, or addresses of other nodes in network.seed_peers", "cluster.expect", "network.seed_peers")
}

// validateTiming checks Raft's time-outs against each other.
func (l *configLoader) validateTiming() {
	k := l.config.Consensus
	l.check(k.ElectionTimeoutMax >= k.ElectionTimeoutMin, k.ElectionTimeoutMax,
		fmt.Sprintf("at least election_timeout_min = %d", k.ElectionTimeoutMin),
		"consensus.election_timeout_max", "consensus.election_timeout_min")
	l.check(k.HeartbeatIntervalMS < k.ElectionTimeoutMin/2, k.HeartbeatIntervalMS,
		fmt.Sprintf("less than half of election_timeout_min = %d", k.ElectionTimeoutMin),
		"consensus.heartbeat_interval_ms", "consensus.election_timeout_min")
}

// validateWitnesses checks each of witness.targets.
func (l *configLoader) validateWitnesses() {
	var wrong []string
	seen := make(map[string]bool)
	for _, target := range l.config.Witness.Targets {
		key, _, err := splitWitness(target)
		if err != nil {
			wrong = append(wrong, fmt.Sprintf("%.300q (%v)", target, err))
		} else if vkey := key.String(); seen[vkey] {
			wrong = append(wrong, fmt.Sprintf("%s twice", vkey))
		} else {
			seen[vkey] = true
		}
	}
	l.check(len(wrong) == 0, strings.Join(wrong, ", "),
		`"<vkey> <url>" of each witness, once`, "witness.targets")
}

// splitWitness reads one of witness.targets: a key for cosignatures and a URL.
func splitWitness(target string) (noteVerifier, string, error) {
	vkey, prefix, _ := strings.Cut(target, " ")
	prefix = strings.TrimRight(strings.TrimSpace(prefix), "/")
	key, err := parseVerifier(vkey)
	switch {
	case err != nil:
		return noteVerifier{}, "", err
	case key.kind != sigCosignature:
		return noteVerifier{}, "", fmt.Errorf("key of type %#02x, a witness has %#02x", key.kind, sigCosignature)
	case !validEndpoint(prefix) || strings.ContainsAny(prefix, "?# "):
		return noteVerifier{}, "", fmt.Errorf("%.200q is not a URL such as https://host:port/path", prefix)
	}
	return key, prefix, nil
}

// splitAddr splits host:port and checks that the port is a number from lowest to 65535.
func splitAddr(addr string, lowest int64) (host string, port int64, err error) {
	host, text, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, err
	}
	port, err = strconv.ParseInt(text, 10, 32)
	if err == nil && (port < lowest || port > math.MaxUint16) {
		err = fmt.Errorf("port %d, want %d to %d", port, lowest, math.MaxUint16)
	}
	return host, port, err
}

// validHost reports whether s is an IP address or has the form of a host name.
func validHost(s string) bool {
	if net.ParseIP(s) != nil {
		return true
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(s, "."), ".") {
		if label == "" || len(label) > 63 || !validName(label) || strings.Trim(label, "-") != label {
			return false
		}
	}
	// A last label of digits only is an IP address gone wrong.
	return strings.Trim(s[strings.LastIndexByte(s, '.')+1:], "0123456789") != "" || !strings.Contains(s, ".")
}

// validName reports whether s is made of letters, digits, '.', '_' and '-'.
func validName(s string) bool {
	return s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == ""
}

// validEndpoint reports whether s is the URL of an HTTP server.
func validEndpoint(s string) bool {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return false
	}
	port, err := strconv.ParseUint(cmp.Or(u.Port(), "443"), 10, 16)
	return err == nil && port > 0
}

// unspecified reports whether host stands for all interfaces.
func unspecified(host string) bool {
	ip := net.ParseIP(host)
	return host == "" || ip != nil && ip.IsUnspecified()
}

// loopback reports whether host can be reached from this machine only. A name
// other than localhost is not looked up: what it means may change.
func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
