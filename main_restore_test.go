package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// inBucket puts the archive of h below a prefix of a bucket and returns it.
func (h *honest) inBucket(t *testing.T, prefix string) *s3Server {
	t.Helper()
	s := newS3Server(t)
	s.mayChange = func(string) bool { return true }
	o := newFolder(t)
	h.archiveTo(o, prefix)
	for _, key := range keysOf(t, o, "") {
		s.set(key, []byte(textOf(t, o, key)))
	}
	return s
}

// s3Config is the part of a configuration that names the bucket.
func s3ConfigFor(s *s3Server, prefix string) string {
	return fmt.Sprintf("[storage.s3]\nbucket = %q\nregion = %q\nendpoint = %q\naccess_key_id = \"AKIDTEST\"\nsecret_access_key = %q\npath_style = true\nprefix = %q\nmax_retries = 0\n",
		s.bucket, s.region, s.http.URL, s.keys["AKIDTEST"].secret, prefix)
}

// TestRestoreFromBucket restores a node from nothing but its configuration and a
// bucket: the segments stay there.
func TestRestoreFromBucket(t *testing.T) {
	t.Parallel()
	h := sealedLedger(t)
	s := h.inBucket(t, "p/q/")
	c := newNodes(t, 1)
	c.unformed = true
	config := configFor(t, &c.nodes[0].o, s3ConfigFor(s, "p/q"))
	exits(t, "", 0, "audited    3 segments, 640 entries", "audit", "--url", "s3://"+s.bucket+"/p/q", "--config", config)
	exits(t, "", 0, "audited    3 segments, 640 entries", "audit", "--url", "s3://"+s.bucket+"/p/q/"+h.cluster.String()+"/", "--config", config)
	out := exits(t, "", 0, "restored   640 entries in 3 segments", "restore", "--config", config)
	for _, want := range []string{"from       s3://" + s.bucket + "/p/q/" + h.cluster.String() + "/manifests/00000000000000000640-", "root       " + h.head(640).root.String(),
		"nobody: no key was given or pinned"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %s", want, out)
		}
	}
	client := newS3Test(t, s, func(o *s3Options) { o.pathStyle = true })
	c.nodes[0].o.objects, c.nodes[0].o.objectPrefix, c.nodes[0].o.archiveEvery = bucketStore{client}, "p/q/", time.Hour
	c.start(0)
	c.leader()
	c.wantCold(3)
	if files := segmentFiles(t, c.nodes[0].o.dataDir); len(files) != 0 {
		t.Errorf("%d segments are on the disk", len(files))
	}
	for seq := uint64(0); seq < 640; seq += 13 {
		e, err := c.nodes[0].store.entryAt(seq)
		if err != nil || valueOf(t, &e) != string(h.entries[seq].value) {
			t.Fatalf("entry %d: %v", seq, err)
		}
	}
	c.put(0, "new", "1")
}

// TestRestoreNamesWhatIsWrong: each bad input ends a restore with one line, and
// leaves an empty directory.
func TestRestoreNamesWhatIsWrong(t *testing.T) {
	t.Parallel()
	h := sealedLedger(t)
	folder := bucketFolder("p/", h.cluster)
	name, _ := h.packed(h.segments[1])
	live := func(http string, at time.Time) []byte {
		b, err := json.Marshal(liveObject{h.cluster.String(), 3, http, at.UnixMilli(), 100})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	answers := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"cluster_id":%q}`, h.cluster.String())
	}))
	t.Cleanup(answers.Close)
	stranger := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, `{"cluster_id":"ab"}`) }))
	t.Cleanup(stranger.Close)
	other := newHonest(t, 2)
	other.fill(3)
	other.seal()
	foreign := newFolder(t)
	other.archiveTo(foreign, "p/")
	for _, x := range []struct {
		about  string
		change func(s *s3Server)
		config func(string) string
		args   []string
		code   int
		want   string
	}{
		{about: "all is well", want: "restored   640 entries"},
		{about: "missing bucket", config: replacing("ledger-test", "nowhere"), code: 1, want: "NoSuchBucket"},
		{about: "wrong secret", config: replacing("secret/with", "secret/without"), code: 1, want: "the secret does not belong to access key AKIDTEST"},
		{about: "empty prefix", config: replacing(`prefix = "p"`, `prefix = "other"`), code: 2, want: "no archived ledger: s3://ledger-test/other/ has no manifest of any cluster"},
		{about: "no bucket", config: replacing(`bucket = "ledger-test"`, ""), code: 2, want: "name a backup with --from"},
		{about: "no such folder", args: []string{"--from", "/nowhere"}, code: 2, want: "folder /nowhere: "},
		{about: "not a bucket", args: []string{"--from", "s3://"}, code: 2, want: "want s3://bucket"},
		{about: "other name", config: replacing(`name = "test"`, `name = "prod"`), code: 2, want: `a cluster named "test", the configuration says "prod"`},
		{about: "learner", config: replacing("[cluster]", "[cluster]\nvoter = false"), code: 2, want: "cluster.voter is false"},
		{about: "wrong key", args: []string{"--key", signerOf(t, h.signer.name, sigEd25519, 9).String()}, code: 1, want: "3 manifests, none that can be believed"},
		{about: "no key", args: []string{"--key", "x+y"}, code: 2, want: "key"},
		{about: "two clusters", change: func(s *s3Server) {
			for _, key := range keysOf(t, foreign, "") {
				s.set(key, []byte(textOf(t, foreign, key)))
			}
		}, code: 2, want: "has several clusters, name one with --cluster: " + h.cluster.String() + ", " + other.cluster.String()},
		{about: "one of them", change: func(s *s3Server) { s.set(bucketFolder("p/", other.cluster)+manifestsFolder+"x", nil) },
			args: []string{"--cluster", h.cluster.String()}, want: "restored   640 entries"},
		{about: "segment gone", change: func(s *s3Server) { s.remove(folder + segmentsFolder + name) }, code: 1, want: folder + segmentsFolder + name + ": entries 30 to 629"},
		{about: "segment wrong", change: func(s *s3Server) { s.object(folder + segmentsFolder + name)[200] ^= 1 }, code: 1, want: name},
		{about: "manifest wrong", change: func(s *s3Server) {
			for key := range s.objects {
				if strings.Contains(key, manifestsFolder+"00000000000000000640") {
					s.object(key)[20] ^= 1
				}
			}
		}, want: "restored   630 entries"},
		{about: "bucket busy for a moment", change: func(s *s3Server) { s.fault(s3Get, folder+segmentsFolder, "503", 2) }, want: "restored   640 entries"},
		{about: "bucket away", change: func(s *s3Server) { s.fault(s3Get, folder+segmentsFolder, "503", -1) }, code: 1, want: "SlowDown"},
		{about: "it lives", change: func(s *s3Server) { s.set(folder+liveName, live(answers.URL, time.Now())) }, code: 1, want: "answers at " + answers.URL},
		{about: "it is led", change: func(s *s3Server) {
			s.set(folder+liveName, live("http://127.0.0.1:1", time.Now()))
			time.AfterFunc(time.Second, func() { s.set(folder+liveName, live("http://127.0.0.1:1", time.Now())) })
		}, code: 1, want: "was written again, there is a leader"},
		{about: "it was led", change: func(s *s3Server) { s.set(folder+liveName, live(stranger.URL, time.Now())) }, want: "restored   640 entries"},
		{about: "by another clock", change: func(s *s3Server) { s.set(folder+liveName, live("http://127.0.0.1:1", time.Now().Add(time.Hour))) }, want: "restored   640 entries"},
		{about: "nobody knows", change: func(s *s3Server) { s.set(folder+liveName, []byte("{")) }, code: 1, want: "nobody knows"},
		{about: "it lived", change: func(s *s3Server) { s.set(folder+liveName, live(answers.URL, time.Now().Add(-time.Minute))) }, want: "restored   640 entries"},
		{about: "a person knows better", change: func(s *s3Server) { s.set(folder+liveName, live(answers.URL, time.Now())) }, args: []string{"--force"}, want: "restored   640 entries"},
	} {
		t.Run(x.about, func(t *testing.T) {
			t.Parallel()
			s := h.inBucket(t, "p/")
			if x.change != nil {
				x.change(s)
			}
			c := newNodes(t, 1)
			c.unformed = true
			text := readFile(t, configFor(t, &c.nodes[0].o, s3ConfigFor(s, "p")))
			if x.config != nil {
				text = []byte(x.config(string(text)))
			}
			code, out, errs := runHere(t, "", append([]string{"restore", "--config", write(t, string(text))}, x.args...)...)
			if code != x.code || !strings.Contains(out+errs, x.want) {
				t.Fatalf("exit %d, want %d and %q in:\n%s%s", code, x.code, x.want, out, errs)
			}
			if code != 0 && strings.Count(errs, "scribe-ledger: ") != 1 {
				t.Errorf("more than one line:\n%s", errs)
			}
			if x.about == "it was led" && !strings.Contains(out, "waiting 5s") {
				t.Errorf("nobody is told what is waited for:\n%s", out)
			}
			if x.about == "manifest wrong" && !strings.Contains(out, "so what follows is of an older one") {
				t.Errorf("nobody is told of the damaged manifest:\n%s", out)
			}
		})
	}
}

// replacing returns what changes a part of a configuration.
func replacing(old, by string) func(string) string {
	return func(s string) string { return strings.Replace(s, old, by, 1) }
}
