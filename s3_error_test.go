package main

import (
	"encoding/xml"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// goldenError is what AWS sends to a clock that is off, as documented.
const goldenError = `<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>RequestTimeTooSkewed</Code><Message>The difference between the request time and the current time is too large.</Message>` +
	`<RequestTime>20261122T204500Z</RequestTime><ServerTime>2026-11-22T21:46:11Z</ServerTime>` +
	`<MaxAllowedSkewMilliseconds>900000</MaxAllowedSkewMilliseconds><RequestId>4442587FB7D0A2F9</RequestId><HostId>x/y+z=</HostId></Error>`

// goldenList is the example at the head of s3_list.go.
const goldenList = `<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>examplebucket</Name><Prefix>scribe/</Prefix><EncodingType>url</EncodingType>` +
	`<IsTruncated>true</IsTruncated><NextContinuationToken>1ueGcxLPRx1Tr/XYExHnhbYLgveDs2J/wm36Hy4vbOwM=</NextContinuationToken>` +
	`<Contents><Key>scribe/a+b%25.seg.gz</Key><LastModified>2026-11-22T21:00:00.000Z</LastModified><ETag>&quot;599bab3ed2c697f1d26842727561fd94&quot;</ETag>` +
	`<Size>857</Size><StorageClass>STANDARD</StorageClass></Contents></ListBucketResult>`

// goldenCredentials is the example at the head of s3_credentials.go, with what
// other tools leave in such files.
const goldenCredentials = "\ufeff# comments begin with # or ; at the start of a line\r\n[default]\naws_access_key_id     = AKIAIOSFODNN7EXAMPLE\n" +
	"aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY==\n; aws_session_token = no\ns3 =\n  aws_session_token = no\n\n" +
	"[ archive ]\nAWS_ACCESS_KEY_ID=ASIAIOSFODNN7EXAMPLE\naws_secret_access_key=wJalr\naws_session_token=AQoDYXdzEJr\n" +
	"x_security_token_expires = 2026-11-22T23:00:00Z\nregion = eu-west-1\n[empty]\n[broken]\naws_access_key_id=a\naws_secret_access_key=b c\n" +
	"[late]\naws_access_key_id=a\naws_secret_access_key=b\nx_security_token_expires=soon\n"

func TestS3ErrorGolden(t *testing.T) {
	e, err := parseErrorBody([]byte(goldenError))
	want := s3ErrorBody{XMLName: xml.Name{Local: "Error"}, Code: "RequestTimeTooSkewed",
		Message:    "The difference between the request time and the current time is too large.",
		ServerTime: "2026-11-22T21:46:11Z", RequestID: "4442587FB7D0A2F9"}
	if err != nil || *e != want {
		t.Errorf("error is %+v, %v", e, err)
	}
	for _, body := range []string{"", "<html><body>", "<Error></Error>", "<Error><Code></Code></Error>", "<ListBucketResult/>", "{}", "<Error><Code>x</Code>"} {
		if e, err := parseErrorBody([]byte(body)); err == nil {
			t.Errorf("%q is %+v", body, e)
		}
	}
}

// TestS3ErrorText: one line, of bounded length, whatever a server says.
func TestS3ErrorText(t *testing.T) {
	e := &s3Error{op: "get", bucket: "b", key: "k\nk", status: 500, code: strings.Repeat("é", 1000), message: "a\r\x1b[31m\xff", tries: 2, request: "R"}
	if s := e.Error(); len(s) > 2000 || strings.ContainsAny(s, "\r\n\x1b") || !utf8.ValidString(s) || !strings.HasSuffix(s, "(HTTP 500): a  [31m?; tried 2 times; request R") {
		t.Errorf("error is %q", s)
	}
}

func TestS3ListGolden(t *testing.T) {
	page, err := parseListPage([]byte(goldenList))
	if err != nil {
		t.Fatal(err)
	}
	want := s3Listed{"scribe/a b%.seg.gz", 857, `"599bab3ed2c697f1d26842727561fd94"`, time.Date(2026, 11, 22, 21, 0, 0, 0, time.UTC)}
	if len(page.objects) != 1 || page.objects[0] != want || page.next != "1ueGcxLPRx1Tr/XYExHnhbYLgveDs2J/wm36Hy4vbOwM=" {
		t.Errorf("page is %+v", page)
	}
	if err := page.check("scribe/", "scribe/", ""); err != nil {
		t.Error(err)
	}
	plain, err := parseListPage([]byte(strings.Replace(goldenList, "<EncodingType>url</EncodingType>", "", 1)))
	if err != nil || plain.objects[0].key != "scribe/a+b%25.seg.gz" {
		t.Errorf("without encoding: %+v, %v", plain, err)
	}
}

// TestS3ListRefused: a listing that does not go forward, or is of other keys, is
// an error and no endless loop.
func TestS3ListRefused(t *testing.T) {
	page, err := parseListPage([]byte(goldenList))
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range [][3]string{{"other/", "", ""}, {"", "scribe/b", ""}, {"", "scribe/a b%.seg.gz", ""}, {"", "", page.next}} {
		if err := page.check(x[0], x[1], x[2]); err == nil {
			t.Errorf("taken for prefix %q after %q with token %q", x[0], x[1], x[2])
		}
	}
	if err := (&s3Page{next: "more"}).check("", "", ""); err == nil {
		t.Error("an empty page that is not the last was taken")
	}
	for old, bad := range map[string]string{"true": "false", "857": "-1", "%25": "%2", "scribe/a+b%25.seg.gz": "", "2026-11": "2026-13", "</Contents>": "", "UTF-8": "latin1"} {
		if page, err := parseListPage([]byte(strings.Replace(goldenList, old, bad, 1))); err == nil {
			t.Errorf("%q in place of %q: %+v", bad, old, page)
		}
	}
}

// TestS3XMLCut: half an answer is never a whole one.
func TestS3XMLCut(t *testing.T) {
	for size := range len(goldenList) {
		if page, err := parseListPage([]byte(goldenList[:size])); err == nil {
			t.Errorf("listing cut to %d bytes: %+v", size, page)
		}
	}
	for size := range len(goldenError) {
		if e, err := parseErrorBody([]byte(goldenError[:size])); err == nil {
			t.Errorf("error cut to %d bytes: %+v", size, e)
		}
	}
	for i := range len(goldenList) { // never a panic; what still parses is for check
		b := []byte(goldenList)
		b[i] ^= 0x15
		parseListPage(b)
	}
}

func TestS3CredentialsGolden(t *testing.T) {
	for profile, want := range map[string]s3Credentials{
		"default": {id: "AKIAIOSFODNN7EXAMPLE", secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY=="},
		"archive": {id: "ASIAIOSFODNN7EXAMPLE", secret: "wJalr", token: "AQoDYXdzEJr", expires: time.Date(2026, 11, 22, 23, 0, 0, 0, time.UTC)},
	} {
		if got, err := parseCredentials([]byte(goldenCredentials), profile); err != nil || got != want {
			t.Errorf("%s: %#v, %v", profile, got, err)
		}
	}
	for profile, want := range map[string]string{
		"none": `it has no profile "none"`, "empty": "lacks aws_access_key_id", "broken": "characters that no key has", "late": "no RFC 3339 time",
	} {
		got, err := parseCredentials([]byte(goldenCredentials), profile)
		if err == nil || !strings.Contains(err.Error(), want) || got != (s3Credentials{}) {
			t.Errorf("%s: %#v, %v", profile, got, err)
		}
	}
}

// TestS3Keychain: the configuration goes before the environment, that before the
// file; a file is read again when what it said has expired.
func TestS3Keychain(t *testing.T) {
	env := map[string]string{"HOME": t.TempDir()}
	now := time.Date(2026, 11, 22, 22, 0, 0, 0, time.UTC)
	k := &s3Keychain{env: func(name string) string { return env[name] }, now: func() time.Time { return now }}
	if c, err := k.get(); err == nil {
		t.Fatalf("found %v", c)
	}
	file := filepath.Join(env["HOME"], ".aws", "credentials")
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	var ids []string
	get := func() {
		t.Helper()
		c, err := k.get()
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, c.id)
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(goldenCredentials)
	env["AWS_PROFILE"] = "archive"
	get()
	write(strings.Replace(goldenCredentials, "ASIAIOSFODNN7EXAMPLE", "ASIANEW", 1))
	get() // good for another hour
	now = now.Add(59*time.Minute + time.Second)
	get() // less than a minute left: read again
	env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"] = "ENV", "s"
	get() // still expired
	get() // kept
	k.fixed = s3Credentials{id: "CONFIG", secret: "s"}
	if c, err := k.get(); err != nil || !k.refused(c) || k.refused(k.current) {
		t.Error("refused credentials were not replaced, once")
	}
	get()
	if want := []string{"ASIAIOSFODNN7EXAMPLE", "ASIAIOSFODNN7EXAMPLE", "ASIANEW", "ENV", "ENV", "CONFIG"}; !slices.Equal(ids, want) {
		t.Errorf("keys are %q, want %q", ids, want)
	}
}

func FuzzS3Error(f *testing.F) {
	f.Add([]byte(goldenError))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := parseErrorBody(b)
		if (err == nil) != (e != nil && e.Code != "") {
			t.Errorf("%+v, %v", e, err)
		}
		if err == nil {
			text := (&s3Error{op: "get", bucket: "b", code: e.Code, message: e.Message, request: e.RequestID}).Error()
			if len(text) > 4*maxErrorText || strings.ContainsAny(text, "\r\n\x00") {
				t.Errorf("text is %q", text)
			}
		}
	})
}

func FuzzS3List(f *testing.F) {
	f.Add([]byte(goldenList), "scribe/", "")
	f.Fuzz(func(t *testing.T, b []byte, prefix, after string) {
		page, err := parseListPage(b)
		if err != nil {
			return
		}
		if page.check(prefix, after, "") != nil {
			return
		}
		for _, o := range page.objects {
			if !strings.HasPrefix(o.key, prefix) || o.key <= after || o.size < 0 {
				t.Errorf("object %+v after %q with prefix %q", o, after, prefix)
			}
			after = o.key
		}
	})
}

func FuzzS3Credentials(f *testing.F) {
	f.Add([]byte(goldenCredentials), "archive")
	f.Fuzz(func(t *testing.T, b []byte, profile string) {
		c, err := parseCredentials(b, profile)
		if err == nil && (c.id == "" || c.secret == "" || strings.ContainsAny(c.id+c.secret+c.token, "\r\n\t ")) {
			t.Errorf("credentials are %#v", c)
		}
		// A secret of the file is in no error.
		if err != nil && (c.secret != "" || strings.Contains(err.Error(), "wJalr") && !strings.Contains(profile, "wJalr")) {
			t.Errorf("error is %v", err)
		}
	})
}
