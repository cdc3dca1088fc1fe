package main

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// s3Example is a request of AWS's documentation: "Signature Calculations for the
// Authorization Header: Transferring Payload in a Single Chunk".
type s3Example struct {
	name, method, key, query, body string
	headers                        http.Header
	canonical                      string // "" = compared by its hash
	canonicalHash, signature       string
}

var s3Examples = []s3Example{
	{name: "GET Object", method: "GET", key: "test.txt", headers: http.Header{"Range": {"bytes=0-9"}},
		canonical: "GET\n/test.txt\n\nhost:examplebucket.s3.amazonaws.com\nrange:bytes=0-9\n" +
			"x-amz-content-sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\nx-amz-date:20130524T000000Z\n\n" +
			"host;range;x-amz-content-sha256;x-amz-date\ne3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
		canonicalHash: "7344ae5b7ee6c3e7e6b0fe0640412a37625d1fbfff95c48bbb2dc43964946972",
		signature:     "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"},
	{name: "PUT Object", method: "PUT", key: "test$file.text", body: "Welcome to Amazon S3.",
		headers:       http.Header{"Date": {"Fri, 24 May 2013 00:00:00 GMT"}, "X-Amz-Storage-Class": {"REDUCED_REDUNDANCY"}},
		canonicalHash: "9e0e90d9c76de8fa5b200d8c849cd5b8dc7a3be3951ddb7f6a76b4158342019d",
		signature:     "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"},
	{name: "GET Bucket Lifecycle", method: "GET", query: "lifecycle",
		canonicalHash: "9766c798316ff2757b517bc739a67f6213b4ab36dd5da2f94eaebf79c77395ca",
		signature:     "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"},
	{name: "GET Bucket (List Objects)", method: "GET", query: "prefix=J&max-keys=2",
		canonicalHash: "df57d21db20da04d7fa30298dd4488ba3a2b47ca3a489c74750e0f1e7df1b9b7",
		signature:     "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"},
}

// TestS3SignExamples signs the documented requests in one go, as the client does.
func TestS3SignExamples(t *testing.T) {
	as := s3Credentials{id: "AKIAIOSFODNN7EXAMPLE", secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"}
	now := time.Date(2013, 5, 24, 2, 0, 0, 0, time.FixedZone("", 2*3600))
	for _, x := range s3Examples {
		query, err := url.ParseQuery(x.query)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256([]byte(x.body))
		bodyHash := hex.EncodeToString(sum[:])
		u := &url.URL{Host: "examplebucket.s3.amazonaws.com", Path: "/" + x.key, RawPath: canonicalPath(x.key), RawQuery: canonicalQuery(query)}
		r := &http.Request{Method: x.method, URL: u, Host: u.Host, Header: x.headers}
		if r.Header == nil {
			r.Header = http.Header{}
		}
		signRequest(r, as, "us-east-1", bodyHash, now)
		auth := r.Header.Get("Authorization")
		r.Header.Del("Authorization")

		headers, names := canonicalHeaders(r.Host, r.Header)
		canonical := canonicalRequest(r.Method, canonicalPath(x.key), canonicalQuery(query), headers, names, bodyHash)
		if x.canonical != "" && canonical != x.canonical {
			t.Errorf("%s: canonical request is\n%s\nwant\n%s", x.name, canonical, x.canonical)
		}
		want := "AWS4-HMAC-SHA256\n20130524T000000Z\n20130524/us-east-1/s3/aws4_request\n" + x.canonicalHash
		if got := stringToSign("20130524T000000Z", signScope("20130524T000000Z", "us-east-1", "s3"), canonical); got != want {
			t.Errorf("%s: string to sign is\n%s\nwant\n%s", x.name, got, want)
		}
		want = "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,SignedHeaders=" + names + ",Signature=" + x.signature
		if auth != want {
			t.Errorf("%s: Authorization is\n%s\nwant\n%s", x.name, auth, want)
		}
	}
}

// TestS3SignSuite holds the parts to AWS's own suite (aws-sig-v4-test-suite), in
// those cases whose rules are those of S3: a path that is not normalised, and
// header values in the order in which they come.
func TestS3SignSuite(t *testing.T) {
	const at, secret = "20150830T123600Z", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
	for _, x := range []struct {
		name, method, path, query, body string
		headers                         http.Header
		signature                       string
	}{
		{name: "get-vanilla", signature: "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"},
		{name: "post-vanilla", method: "POST", signature: "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"},
		{name: "get-unreserved", path: "-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
			signature: "07ef7494c76fa4850883e2b006601f940f8a34d404d0cfa977f52a65bbf5f24f"},
		{name: "get-utf8", path: "\u1234", signature: "8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85"},
		{name: "get-vanilla-query-order-key-case", query: "Param2=value2&Param1=value1",
			signature: "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500"},
		{name: "get-vanilla-query-order-value", query: "Param1=value2&Param1=value1",
			signature: "5772eed61e12b33fae39ee5e7012498b51d56abc0abb7c60486157bd471c4694"},
		{name: "get-vanilla-utf8-query", query: "\u1234=bar",
			signature: "2cdec8eed098649ff3a119c94853b13c643bcf08f8b0a1d91e12c9027818dd04"},
		{name: "get-header-key-duplicate", headers: http.Header{"My-Header1": {"value2", "value2", "value1"}},
			signature: "c9d5ea9f3f72853aea855b47ea873832890dbdd183b4468f858259531a5138ea"},
		{name: "get-header-value-order", headers: http.Header{"My-Header1": {"value4", "value1", "value3", "value2"}},
			signature: "08c7e5a9acfcfeb3ab6b2185e75ce8b1deb5e634ec47601a50643f830c755c01"},
		{name: "get-header-value-trim", headers: http.Header{"My-Header1": {" value1"}, "My-Header2": {`"a   b   c"`}},
			signature: "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736"},
		{name: "post-x-www-form-urlencoded", method: "POST", body: "Param1=value1",
			headers:   http.Header{"Content-Type": {"application/x-www-form-urlencoded"}},
			signature: "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a"},
		{name: "get-vanilla-with-session-token",
			headers:   http.Header{"X-Amz-Security-Token": {"6e86291e8372ff2a2260956d9b8aae1d763fbf315fa00fa31553b73ebf194267"}},
			signature: "07ec1639c89043aa0e3e2de82b96708f198cceab042d4a97044c66dd9f74e7f8"},
	} {
		if x.headers == nil {
			x.headers = http.Header{}
		}
		x.headers.Set("X-Amz-Date", at)
		query, err := url.ParseQuery(x.query)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256([]byte(x.body))
		headers, names := canonicalHeaders("example.amazonaws.com", x.headers)
		request := canonicalRequest(orElse(x.method, "GET"), canonicalPath(x.path), canonicalQuery(query), headers, names, hex.EncodeToString(sum[:]))
		scope := signScope(at, "us-east-1", "service")
		if got := signature(secret, scope, stringToSign(at, scope, request)); got != x.signature {
			t.Errorf("%s: signature is %s, want %s; request:\n%s", x.name, got, x.signature, request)
		}
	}
}

func TestS3CanonicalPathAndQuery(t *testing.T) {
	for _, x := range [][2]string{
		{"", "/"}, {"/", "//"}, {"a//b/../c/.", "/a//b/../c/."}, {"a b+c", "/a%20b%2Bc"},
		{"$&+,:;=@!'()*[]", "/%24%26%2B%2C%3A%3B%3D%40%21%27%28%29%2A%5B%5D"}, {"100%25?#", "/100%2525%3F%23"},
		{"ключ", "/%D0%BA%D0%BB%D1%8E%D1%87"}, {"-._~", "/-._~"}, {"a\x00\x7f", "/a%00%7F"},
	} {
		if got := canonicalPath(x[0]); got != x[1] {
			t.Errorf("path of %q is %s, want %s", x[0], got, x[1])
		}
	}
	query := url.Values{"a-b": {"1"}, "a": {"2", "", "1/ +"}, "A": {"="}, "list-type": {"2"}}
	if got, want := canonicalQuery(query), "A=%3D&a=&a=1%2F%20%2B&a=2&a-b=1&list-type=2"; got != want {
		t.Errorf("query is %s, want %s", got, want)
	}
}

// FuzzS3Canonical: what is sent is what was meant, in one way of writing only.
func FuzzS3Canonical(f *testing.F) {
	f.Add("a//b/../c $&+:=@", "prefix", "a b&c=d")
	f.Add("\xff\x00/", "", "%")
	f.Fuzz(func(t *testing.T, key, name, value string) {
		path := canonicalPath(key)
		if back, err := url.PathUnescape(path); err != nil || back != "/"+key {
			t.Errorf("path %s of %q is %q, error %v", path, key, back, err)
		}
		u := url.URL{Path: "/" + key, RawPath: path}
		if u.EscapedPath() != path {
			t.Errorf("Go would send %s, signed is %s", u.EscapedPath(), path)
		}
		query := canonicalQuery(url.Values{name: {value, ""}, "z": {key}})
		back, err := url.ParseQuery(query)
		if err != nil || len(back) > 2 || back.Get("z") == "" && key != "" && name != "z" || canonicalQuery(back) != query {
			t.Errorf("query %s is %q, error %v", query, back, err)
		}
		if strings.ContainsAny(path+query, " +:$@\r\n") {
			t.Errorf("path %s and query %s have plain characters", path, query)
		}
	})
}
