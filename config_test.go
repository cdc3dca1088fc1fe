package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// writeConfig writes a configuration file and returns its path.
func writeConfig(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "node.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// flagText returns the setting that a flag gives.
func flagText(flag, key, value string) setting {
	return setting{key, origin{source: sourceFlag, name: flag}, textValue(value), `"` + value + `"`}
}

// faultsOf loads a configuration and returns its faults, with the path of the file as FILE.
func faultsOf(t *testing.T, text string, env []string, flags ...setting) []string {
	t.Helper()
	path := writeConfig(t, text)
	_, err := loadConfig(path, env, flags, false)
	if err == nil {
		return nil
	}
	var all configError
	if !errors.As(err, &all) {
		t.Fatalf("error is a %T: %v", err, err)
	}
	return strings.Split(strings.ReplaceAll(err.Error(), path, "FILE"), "\n")
}

func TestConfigDefaults(t *testing.T) {
	c, err := loadConfig("", []string{"HOME=/root", "SCRIBE_URL=http://x", "SCRIBE_SERVICE_HOST=10.0.0.1"}, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, check := range []struct{ name, got, want string }{
		{"client address", c.clientAddr(), "127.0.0.1:8001"},
		{"raft address", c.raftAddr(), "127.0.0.1:9001"},
		{"URL", c.httpURL(8001), "http://127.0.0.1:8001"},
		{"data directory", c.Node.DataDir, "./data"},
	} {
		if check.got != check.want {
			t.Errorf("%s is %q, want %q", check.name, check.got, check.want)
		}
	}
	if c.Node.ID != 1 || c.Cluster.Expect != 1 || c.Storage.MaxValueSize != 32<<20 || c.Storage.SealAfter != 10*time.Minute {
		t.Errorf("defaults are %+v", c)
	}
}

func TestConfigPrecedence(t *testing.T) {
	path := writeConfig(t, `
[node]
id = 2
address = "127.0.0.2"
data_dir = "file"
[storage]
seal_after = "1m"
s3 = { bucket = "b", path_style = true }
[log]
level = "warn"
[tls]
`)
	env := []string{"SCRIBE_NODE_ID=3", "SCRIBE_NODE_DATA_DIR=env", "SCRIBE_NETWORK_SEED_PEERS=127.0.0.1:9002, 127.0.0.1:9003",
		"SCRIBE_STORAGE_S3_BUCKET=c", "SCRIBE_API_ALLOW_DELETE=false", "SCRIBE_STORAGE_SEAL_AFTER=90s"}
	c, err := loadConfig(path, env, []setting{flagText("--node-id", "node.id", "4")}, false)
	if err != nil {
		t.Fatal(err)
	}
	want := defaultConfig()
	want.Node = nodeConfig{ID: 4, Address: "127.0.0.2", DataDir: "env"}
	want.Network.SeedPeers = []string{"127.0.0.1:9002", "127.0.0.1:9003"}
	want.Storage.SealAfter = 90 * time.Second
	want.Storage.S3.Bucket = "c"
	want.Storage.S3.PathStyle = true
	want.Cluster.Expect = 3
	want.API.AllowDelete = false
	want.Log.Level = "warn"
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
}

const (
	witnessVKey = "witness.example/w1+0ad7d35e+BIqI4910CfGV/VLbLTy6XXLKZwm/HZQSG/N0iAG0D29c"
	ledgerVKey  = "example.com/scribe-test+406a2823+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"
)

func TestConfigFaults(t *testing.T) {
	for _, test := range []struct {
		text string
		want string // how each fault begins after "FILE:", with '|' between them
	}{
		{"[node]\nid = 0", "2: node.id: want a whole number from 1 to 9007199254740991, got 0"},
		{"[node]\nid = 1.5", "2: node.id: want a whole number from 1 to 9007199254740991, got 1.5"},
		{"[node]\nid = '1'", "2: node.id: want a whole number from 1 to 9007199254740991, got '1'"},
		{"[node]\naddress = ''", "2: node.address: want a string of 1 to 253 bytes, got ''"},
		{"[node]\naddress = 'http://x'\n[cluster]\ninsecure = true", "2: node.address: want an IP address or host name at which other nodes reach this one, got http://x"},
		{"[node]\naddress = '0.0.0.0'\n[cluster]\ninsecure = true\nexpect = 3\n[network]\nseed_peers = ['10.0.0.2:9001']", "2: node.address: want an IP address or host name at which other nodes reach this one, got 0.0.0.0"},
		{"[node]\naddress = '10.0.0.1'", "2: node.address: want a loopback address, or cluster.insecure = true: nothing encrypts raft_port in this version, got 10.0.0.1"},
		{"[node]\naddress = 'example.com'", "2: node.address: want a loopback address, or cluster.insecure = true: nothing encrypts raft_port in this version, got example.com"},
		{"[node]\ndata_dir = ''", "2: node.data_dir: want a string of 1 to 4096 bytes, got ''"},
		{"[node]\nregion = 5", "2: node.region: want a string of 0 to 64 bytes, got 5"},
		{"[node]\ncolour = 'red'", "2: unknown key node.colour"},
		{"\"node.id\" = 5", `1: unknown key "node.id"`},
		{"id = 5", "1: unknown key id"},
		{"node = 5", "1: node: want a table"},
		{"[[node]]\nid = 1", "1: node: want one table, written [node]"},
		{"[node.id]\nx = 1", "1: unknown section [node.id]"},
		{"[nodes]\nid = 1\nx = 2", "1: unknown section [nodes]"},
		{"[node]\nid = 1\nid = 2", "3: node.id: set a second time, the first is on line 2"},
		{"node.id = 1\n[node]\nname = 2", "2: table node already exists|3: unknown key node.name"},
		{"[node]\nid = 1\n[log]\n[node]", "4: table node already exists"},
		{"[node\nid = 1", "1: expected"},
		{"[node]\nid = 01", "2: integers cannot have leading zeroes"},
		{"[network]\nlisten_addr = '127.0.0.1'", "2: network.listen_addr: want host:port with a port up to 65535, got 127.0.0.1"},
		{"[network]\nlisten_addr = '127.0.0.1:70000'", "2: network.listen_addr: want host:port with a port up to 65535, got 127.0.0.1:70000"},
		{"[network]\nclient_port = 0", "2: network.client_port: want a whole number from 1 to 65535, got 0"},
		{"[network]\nclient_port = true", "2: network.client_port: want a whole number from 1 to 65535, got true"},
		{"[network]\nraft_port = 8001", "2: network.raft_port: want a port that clients do not use already (listen_addr, client_port), got 8001"},
		{"[network]\nclient_port = 9001", "2: network.raft_port: want a port that clients do not use already (listen_addr, client_port), got 9001"},
		{"[network]\nlisten_addr = ':9001'", "2: network.raft_port: want a port that clients do not use already (listen_addr, client_port), got 9001"},
		{"[network]\nseed_peers = 'a:1'", "2: network.seed_peers: want a list of at most 98 strings, got 'a:1'"},
		{"[network]\nseed_peers = [1, 2]", "2: network.seed_peers: want a list of at most 98 strings, got a list with other values"},
		{"[network]\nseed_peers = ['a', 'b:0', 'c:1', 'c:1', '0.0.0.0:3', 'd e:4', '1.2.3:5']",
			`2: network.seed_peers: want host:raft_port of each other node, once, got "a", "b:0", "c:1" twice, "0.0.0.0:3", "d e:4", "1.2.3:5"`},
		{"[storage]\nsegment_size = 65535", "2: storage.segment_size: want a whole number from 65536 to 1073741824, got 65535"},
		{"[storage]\nmax_value_size = 1_073_741_825", "2: storage.max_value_size: want a whole number from 1024 to 1073741824, got 1_073_741_825"},
		{"[storage]\nmax_cache_size = -1", "2: storage.max_cache_size: want a whole number from 0 to 1099511627776, got -1"},
		{"[storage]\nseal_after = 'soon'", `2: storage.seal_after: want a duration such as "90s" or "10m", got 'soon'`},
		{"[storage]\nseal_after = 600", `2: storage.seal_after: want a duration such as "90s" or "10m", got 600`},
		{"[storage]\nseal_after = '1ms'", "2: storage.seal_after: want a duration from 100ms to 720h, got 1ms"},
		{"[storage.s3]\nendpoint = 'minio:9000'", "2: storage.s3.endpoint: want a URL such as https://host:port, got minio:9000"},
		{"[storage.s3]\nendpoint = 'http://minio:99999'", "2: storage.s3.endpoint: want a URL such as https://host:port, got http://minio:99999"},
		{"[storage.s3]\nendpoint = 'http://minio:0'", "2: storage.s3.endpoint: want a URL such as https://host:port, got http://minio:0"},
		{"[storage.s3]\nendpoint = 'http://minio?x=1'", "2: storage.s3.endpoint: want a URL such as https://host:port, got http://minio?x=1"},
		{"[storage.s3]\nendpoint = 'http://minio#f'", "2: storage.s3.endpoint: want a URL such as https://host:port, got http://minio#f"},
		{"[storage.s3]\nregion = 'eu west'", "2: storage.s3.region: want a name such as eu-central-1, got eu west"},
		{"[storage.s3]\nbucket = '..'", "2: storage.s3.bucket: want the name of a bucket: letters, digits, '.', '_' and '-', got .."},
		{"[storage.s3]\nprefix = \"a\\u0000b\"", `2: storage.s3.prefix: want no control characters, got "a\x00b"`},
		{"[storage.s3]\naccess_key_id = \"a\\nb\"\nsecret_access_key = 's'", `2: storage.s3.access_key_id: want no control characters, got "a\nb"`},
		{"[storage.s3]\naccess_key_id = 'x'", "2: storage.s3.access_key_id: want access_key_id and secret_access_key both or neither, got one of them"},
		{"[storage.s3]\nbucket = 'a/b'", "2: storage.s3.bucket: want the name of a bucket: letters, digits, '.', '_' and '-', got a/b"},
		{"[storage.s3]\nprefix = 'a//b'", "2: storage.s3.prefix: want names with one slash between them, none of them . or .., got a//b"},
		{"[storage.s3]\nprefix = '../b'", "2: storage.s3.prefix: want names with one slash between them, none of them . or .., got ../b"},
		{"[storage.s3]\nobject_lock_mode = 'WORM'", "2: storage.s3.object_lock_mode: want \"\", GOVERNANCE or COMPLIANCE, got WORM"},
		{"[storage.s3]\nobject_lock_mode = 'GOVERNANCE'", "2: storage.s3.object_lock_mode: want object_lock_mode and object_lock_days both or neither, got one of them"},
		{"[storage.s3]\nbuckets = 'x'", "2: unknown key storage.s3.buckets"},
		{"[storage.tiering]\ncompression_level = 10", "2: storage.tiering.compression_level: want a whole number from 1 to 9, got 10"},
		{"[consensus]\nelection_timeout_max = 599", "2: consensus.election_timeout_max: want at least election_timeout_min = 600, got 599"},
		{"[consensus]\nheartbeat_interval_ms = 300", "2: consensus.heartbeat_interval_ms: want less than half of election_timeout_min = 600, got 300"},
		{"[consensus]\nelection_timeout_min = 200", "2: consensus.heartbeat_interval_ms: want less than half of election_timeout_min = 200, got 100"},
		{"[cluster]\nname = 'a b'", "2: cluster.name: want letters, digits, '.', '_' and '-', got a b"},
		{"[cluster]\nexpect = 100", "2: cluster.expect: want a whole number from 1 to 99, got 100"},
		{"[cluster]\nexpect = 0", "2: cluster.expect: want a whole number from 1 to 99, got 0"},
		{"[cluster]\nexpect = 3", "2: cluster.expect: want 1, or addresses of other nodes in network.seed_peers, got 3"},
		{"[cluster]\nsecret = 12345", "2: cluster.secret: want a string of 0 to 256 bytes, got another (not shown)"},
		{"[cluster]\ninsecure = 'yes'", "2: cluster.insecure: want true or false, got 'yes'"},
		{"[discovery]\nfailure_timeout_ms = 500", "2: discovery.failure_timeout_ms: want more than heartbeat_interval_ms = 500, got 500"},
		{"[discovery]\nbroadcast_addr = 'all'", "2: discovery.broadcast_addr: want an IPv4 address, such as 255.255.255.255, got all"},
		{"[api]\nread_consistency = 'maybe'", "2: api.read_consistency: want linearizable or stale, got 'maybe'"},
		{"[api]\nwrite_timeout_secs = 0", "2: api.write_timeout_secs: want a whole number from 1 to 3600, got 0"},
		{"[witness]\ntargets = 'x'", "2: witness.targets: want a list of at most 16 strings, got 'x'"},
		{"[witness]\ntargets = ['x', '" + witnessVKey + "', '" + witnessVKey + " ftp://x', '" + witnessVKey + " http://x', '" + witnessVKey + "  https://y/', '" + ledgerVKey + " http://x']",
			`2: witness.targets: want "<vkey> <url>" of each witness, once, got "x" (malformed key "x": want name+id+base64), "` + witnessVKey + `" ("" is not a URL such as https://host:port/path), "` +
				witnessVKey + ` ftp://x" ("ftp://x" is not a URL such as https://host:port/path), ` + witnessVKey + ` twice, "` + ledgerVKey + ` http://x" (key of type 0x01, a witness has 0x04)`},
		{"[witness]\ninterval_secs = 0\ntimeout_secs = 301", "2: witness.interval_secs: want a whole number from 1 to 86400, got 0|3: witness.timeout_secs: want a whole number from 1 to 300, got 301"},
		{"[log]\nlevel = 'loud'", "2: log.level: want trace or debug or info or warn or error, got 'loud'"},
		{"[log]\nformat = { a = 1 }", "2: log.format: want auto or text or json, got a table"},
		{"[tls]\ncert = 'x'", "2: tls.cert: section [tls] is not served by this version; leave it out or empty"},
		{"[auth]\nx = 1", "2: auth.x: section [auth] is not served by this version; leave it out or empty"},
		{"rate_limit = { a = 1 }", "1: rate_limit.a: section [rate_limit] is not served by this version; leave it out or empty"},
		{"[region.peer]\nx = 1", "1: region.peer: section [region] is not served by this version; leave it out or empty"},
	} {
		got := faultsOf(t, test.text, nil)
		want := strings.Split(test.want, "|")
		if len(got) != len(want) {
			t.Errorf("%q:\n got %q\nwant %q", test.text, got, want)
			continue
		}
		for i := range got {
			if !strings.HasPrefix(got[i], "FILE:"+want[i]) {
				t.Errorf("%q:\n got %q\nwant FILE:%s", test.text, got[i], want[i])
			}
		}
	}
}

func TestConfigAccepts(t *testing.T) {
	for _, text := range []string{
		"", "# nothing\n", "[tls]\n[auth]\n[rate_limit]\n[audit]\n[region]\n[log]\n", "tls = {}",
		"[node]\naddress = '::1'",
		"[node]\naddress = 'localhost'",
		"[node]\naddress = '0.0.0.0'\n[cluster]\ninsecure = true",
		"[node]\naddress = 'node1.example'\n[cluster]\ninsecure = true\n[network]\nseed_peers = ['node2.example:9001', '[::1]:9003']",
		"[network]\nlisten_addr = ':0'",
		"[network]\nlisten_addr = '127.0.0.2:9001'",
		"node = { id = 7, region = 'eu' }\nnetwork.client_port = 0x1F90",
		"[cluster]\nexpect = 3\nvoter = false\n[discovery]\nenabled = true",
		"[consensus]\nelection_timeout_min = 1000\nelection_timeout_max = 1000\nheartbeat_interval_ms = 499",
	} {
		if faults := faultsOf(t, text, nil); faults != nil {
			t.Errorf("%q: %q", text, faults)
		}
	}
}

// TestConfigReportsAllFaults: the file, the environment and the flags, in this order, each with its place.
func TestConfigReportsAllFaults(t *testing.T) {
	got := faultsOf(t, `# a comment
[network]
raft_port = 99999
[node]
id = "one"
colour = "red"
[consensus]
election_timeout_min = 900
election_timeout_max = 300
[tls]
cert = "x"
[storage]
segment_size = 1
segment_size = 2
[cluster]
expect = `, // cut off here
		[]string{"SCRIBE_NETWORK_CLIENT_PORT=many", "SCRIBE_AUTH_TOKEN=x", "SCRIBE_NODE_COLOUR=red", "SCRIBE_STORAGE_S3_BUKET=b",
			"SCRIBE_API_ALLOW_DELETE=1", "SCRIBE_CLUSTER_SECRET=" + strings.Repeat("x", 300)},
		flagText("--node-id", "node.id", "zero"), flagText("--log-level", "log.level", "loud"))
	want := []string{
		"FILE:3: network.raft_port: want a whole number from 1 to 65535, got 99999",
		`FILE:5: node.id: want a whole number from 1 to 9007199254740991, got "one"`,
		"FILE:6: unknown key node.colour",
		"FILE:9: consensus.election_timeout_max: want at least election_timeout_min = 900, got 300",
		"FILE:11: tls.cert: section [tls] is not served by this version; leave it out or empty",
		"FILE:13: storage.segment_size: want a whole number from 65536 to 1073741824, got 1",
		"FILE:14: storage.segment_size: set a second time, the first is on line 13",
		`SCRIBE_AUTH_TOKEN: auth.token: section [auth] is not served by this version; leave it out or empty`,
		`SCRIBE_NODE_COLOUR: unknown key node.colour`,
		`SCRIBE_STORAGE_S3_BUKET: unknown key storage.s3.buket`,
		`SCRIBE_NETWORK_CLIENT_PORT: network.client_port: want a whole number from 1 to 65535, got "many"`,
		`SCRIBE_API_ALLOW_DELETE: api.allow_delete: want true or false, got "1"`,
		`SCRIBE_CLUSTER_SECRET: cluster.secret: want a string of 0 to 256 bytes, got another (not shown)`,
		`--node-id: node.id: want a whole number from 1 to 9007199254740991, got "zero"`,
		`--log-level: log.level: want trace or debug or info or warn or error, got "loud"`,
	}
	if len(got) > 7 && strings.HasPrefix(got[7], "FILE:16: ") {
		got = append(got[:7:7], got[8:]...) // go-toml's words for the line that is cut off
	} else {
		t.Errorf("no fault for line 16")
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestConfigFileCannotBeRead(t *testing.T) {
	for _, path := range []string{filepath.Join(t.TempDir(), "none.toml"), t.TempDir()} {
		_, err := loadConfig(path, nil, nil, false)
		if err == nil || !strings.HasPrefix(err.Error(), path+": reading the configuration: ") {
			t.Errorf("%s: got %v", path, err)
		}
	}
}

func TestConfigExpect(t *testing.T) {
	const seeds = "[network]\nseed_peers = ['127.0.0.1:9001', '127.0.0.1:9002', '127.0.0.1:9003']\n"
	for _, test := range []struct {
		text      string
		bootstrap bool
		want      int64
	}{
		{"", false, 1},
		{seeds, false, 3}, // 127.0.0.1:9001 is the node itself
		{seeds, true, 1},
		{seeds + "[cluster]\nexpect = 5", false, 5},
		{seeds + "[cluster]\nexpect = 5", true, 1},
		{"[cluster]\nexpect = 3", true, 1},
	} {
		c, err := loadConfig(writeConfig(t, test.text), nil, nil, test.bootstrap)
		if err != nil {
			t.Errorf("%q: %v", test.text, err)
		} else if c.Cluster.Expect != test.want || c.bootstrap != test.bootstrap {
			t.Errorf("%q: expect is %d, want %d", test.text, c.Cluster.Expect, test.want)
		}
	}
}

func TestConfigAddresses(t *testing.T) {
	for _, test := range []struct{ text, client, url, raft, raftListen string }{
		{"", "127.0.0.1:8001", "http://127.0.0.1:8001", "127.0.0.1:9001", "127.0.0.1:9001"},
		{"[node]\naddress = '::1'", "[::1]:8001", "http://[::1]:8001", "[::1]:9001", "[::1]:9001"},
		{"[network]\nlisten_addr = '0.0.0.0:8001'", "0.0.0.0:8001", "http://127.0.0.1:8001", "127.0.0.1:9001", "127.0.0.1:9001"},
		{"[node]\naddress = 'n1'\n[cluster]\ninsecure = true\n[network]\nlisten_addr = ':80'", ":80", "http://n1:8001", "n1:9001", "n1:9001"},
		{"[node]\naddress = '0.0.0.0'\n[cluster]\ninsecure = true", "0.0.0.0:8001", "http://127.0.0.1:8001", "127.0.0.1:9001", "0.0.0.0:9001"},
	} {
		c, err := loadConfig(writeConfig(t, test.text), nil, nil, false)
		if err != nil {
			t.Errorf("%q: %v", test.text, err)
			continue
		}
		got := []string{c.clientAddr(), c.httpURL(8001), c.raftAddr(), c.raftListen()}
		if want := []string{test.client, test.url, test.raft, test.raftListen}; !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %q, want %q", test.text, got, want)
		}
	}
}

// apiKeys are the keys that API.md promises.
const apiKeys = `
node: id address data_dir region
network: listen_addr client_port raft_port seed_peers
storage: segment_size seal_after max_cache_size max_value_size scrub_rate
storage.s3: bucket region endpoint access_key_id secret_access_key path_style prefix timeout_secs max_retries pool_size object_lock_mode object_lock_days
storage.tiering: age_threshold_secs local_max_bytes compression_level enable_auto_archival archival_check_interval_secs
consensus: election_timeout_min election_timeout_max heartbeat_interval_ms
cluster: name expect secret insecure voter remove_dead_after
discovery: enabled discovery_port broadcast_addr heartbeat_interval_ms failure_timeout_ms
api: read_consistency write_timeout_secs read_timeout_secs allow_delete
witness: targets interval_secs timeout_secs
log: level format`

// TestConfigKeys: the keys are those of API.md, scrub_rate and those of Object Lock, each has a variable of its own
// that reaches it, and its tags allow its default.
func TestConfigKeys(t *testing.T) {
	l := newConfigLoader(defaultConfig())
	known, variables := len(l.fields), make(map[string]string)
	for line := range strings.Lines(strings.TrimSpace(apiKeys)) {
		section, names, _ := strings.Cut(strings.TrimSpace(line), ": ")
		for name := range strings.FieldsSeq(names) {
			key := section + "." + name
			if _, ok := l.fields[key]; !ok {
				t.Errorf("key %s is missing", key)
			}
			known--
			if other, taken := variables[envName(key)]; taken {
				t.Errorf("%s and %s share the variable %s", key, other, envName(key))
			}
			variables[envName(key)] = key
			for _, s := range l.readEnv([]string{envName(key) + "=zzz"}) {
				if s.key != key {
					t.Errorf("%s sets %s, want %s", envName(key), s.key, key)
				}
			}
		}
	}
	if known != 0 {
		t.Errorf("there are %d keys that the list does not name", known)
	}
	for key, f := range l.fields {
		if want := f.set(f.value.Interface()); want != "" && f.value.Type() != reflect.TypeFor[time.Duration]() && key != "cluster.expect" {
			t.Errorf("%s: default is %v, want %s", key, f.value.Interface(), want)
		}
	}
}

func TestShippedConfigFiles(t *testing.T) {
	c, err := loadConfig("config.toml", nil, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	alone := defaultConfig()
	alone.Cluster.Expect, alone.Network.SeedPeers = 1, []string{}
	if !reflect.DeepEqual(c, alone) {
		t.Errorf("config.toml is %+v, not the defaults %+v", c, alone)
	}
	ports := make(map[string]bool)
	var nodes []*config
	for _, file := range []string{"config-node1.toml", "config-node2.toml", "config-node3.toml"} {
		c, err := loadConfig(file, nil, nil, false)
		if err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, c)
		ports[c.clientAddr()], ports[c.raftAddr()], ports[c.Node.DataDir] = true, true, true
	}
	if len(ports) != 9 {
		t.Errorf("the three nodes share ports or directories: %v", ports)
	}
	for i, c := range nodes {
		if c.Node.ID != int64(i+1) || c.Cluster.Expect != 3 || len(c.seeds()) != 2 {
			t.Errorf("node %d is %+v", i+1, c)
		}
		for _, seed := range c.seeds() {
			if !ports[seed] {
				t.Errorf("node %d has the seed %s, which is no node", i+1, seed)
			}
		}
	}
}

// TestConfigCut: a file cut anywhere is read or refused, never more.
func TestConfigCut(t *testing.T) {
	data, err := os.ReadFile("config-node1.toml")
	if err != nil {
		t.Fatal(err)
	}
	for n := range data {
		l := newConfigLoader(defaultConfig())
		l.assignAll(l.readTOML("x", data[:n]))
		flipped := bytes.Clone(data)
		flipped[n] ^= 0x20
		l.assignAll(l.readTOML("x", flipped))
	}
}

func FuzzConfig(f *testing.F) {
	for _, name := range []string{"config.toml", "config-node1.toml"} {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("a.b.\"c\" = { x = [1, 'two', { y = 3 }] }\n[[node]]\n[log]\nlevel = 'info'\nlevel = 1979-05-27\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		l := newConfigLoader(defaultConfig())
		l.assignAll(l.readTOML("x", data))
		l.config.settleExpect()
		l.validate()
		for _, fault := range l.report() {
			if fault.origin.name == "" {
				t.Errorf("fault without a place: %s", fault.text)
			}
		}
	})
}
