package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// AWS Signature Version 4 in the Authorization header, as S3 has it. Three texts
// follow from each other; this is "GET Object" of AWS's documentation.
//
// The canonical request, of which no byte may be left to taste:
//
//	GET
//	/test.txt
//
//	host:examplebucket.s3.amazonaws.com
//	range:bytes=0-9
//	x-amz-content-sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
//	x-amz-date:20130524T000000Z
//
//	host;range;x-amz-content-sha256;x-amz-date
//	e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
//
// that is: method, path, query, one line a header, an empty line, the names of
// those headers, and the SHA-256 of the body. The string to sign has its hash:
//
//	AWS4-HMAC-SHA256
//	20130524T000000Z
//	20130524/us-east-1/s3/aws4_request
//	7344ae5b7ee6c3e7e6b0fe0640412a37625d1fbfff95c48bbb2dc43964946972
//
// The signature is the HMAC of that under a key that is good for one day, region
// and service:
//
//	f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41
//
// S3 differs from the other services in the path: it is percent-encoded once,
// and nothing in it is cleaned: "//" and ".." are parts of a key.

const (
	signAlgorithm = "AWS4-HMAC-SHA256"
	signTime      = "20060102T150405Z"
	signService   = "s3"
	emptySHA256   = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
)

// signRequest signs r, all of whose headers are there and whose path and query
// are in canonical form. The body has the given SHA-256, in hex.
func signRequest(r *http.Request, as s3Credentials, region, bodyHash string, now time.Time) {
	at := now.UTC().Format(signTime)
	r.Header.Set("X-Amz-Date", at)
	r.Header.Set("X-Amz-Content-Sha256", bodyHash)
	if as.token != "" {
		r.Header.Set("X-Amz-Security-Token", as.token)
	}
	headers, names := canonicalHeaders(r.Host, r.Header)
	request := canonicalRequest(r.Method, r.URL.EscapedPath(), r.URL.RawQuery, headers, names, bodyHash)
	scope := signScope(at, region, signService)
	r.Header.Set("Authorization", signAlgorithm+" Credential="+as.id+"/"+scope+
		",SignedHeaders="+names+",Signature="+signature(as.secret, scope, stringToSign(at, scope, request)))
}

// canonicalRequest returns the text that says all of a request that is signed.
func canonicalRequest(method, path, query, headers, names, bodyHash string) string {
	return method + "\n" + path + "\n" + query + "\n" + headers + "\n" + names + "\n" + bodyHash
}

// canonicalPath returns the path of key, with every byte but letters, digits and
// "-._~/" percent-encoded. Go's own encoding leaves "$&+:=@" as they are.
func canonicalPath(key string) string { return "/" + percentEncode(key, "-._~/") }

// canonicalQuery returns the query in order of encoded name, then value; a name
// without a value keeps its "=".
func canonicalQuery(query url.Values) string {
	var pairs []string
	for name, values := range query {
		for _, value := range values {
			pairs = append(pairs, percentEncode(name, "-._~")+"="+percentEncode(value, "-._~"))
		}
	}
	// "=" sorts behind "-" and ".", so names are compared before values.
	slices.SortFunc(pairs, func(a, b string) int {
		an, av, _ := strings.Cut(a, "=")
		bn, bv, _ := strings.Cut(b, "=")
		if an != bn {
			return strings.Compare(an, bn)
		}
		return strings.Compare(av, bv)
	})
	return strings.Join(pairs, "&")
}

// percentEncode encodes every byte but letters, digits and those of keep.
func percentEncode(s, keep string) string {
	const digits = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte(keep, c) >= 0 {
			b.WriteByte(c)
			continue
		}
		b.Write([]byte{'%', digits[c>>4], digits[c&15]})
	}
	return b.String()
}

// canonicalHeaders returns one line a header, in order of their names in lower
// case, with runs of spaces made one; and the names. All of h is signed.
func canonicalHeaders(host string, h http.Header) (lines, names string) {
	values := map[string]string{"host": host}
	list := []string{"host"}
	for name, all := range h {
		trimmed := make([]string, len(all))
		for i, v := range all {
			trimmed[i] = strings.Join(strings.Fields(v), " ")
		}
		name = strings.ToLower(name)
		values[name] = strings.Join(trimmed, ",")
		list = append(list, name)
	}
	slices.Sort(list)
	for _, name := range list {
		lines += name + ":" + values[name] + "\n"
	}
	return lines, strings.Join(list, ";")
}

// signScope returns what a signing key is good for: one day, region and service.
func signScope(at, region, service string) string {
	return at[:len("20130524")] + "/" + region + "/" + service + "/aws4_request"
}

// stringToSign returns the text that is signed in place of the canonical request.
func stringToSign(at, scope, request string) string {
	sum := sha256.Sum256([]byte(request))
	return signAlgorithm + "\n" + at + "\n" + scope + "\n" + hex.EncodeToString(sum[:])
}

// signature returns the signature of text, in hex. The key comes from the secret
// through the parts of the scope, one after the other.
func signature(secret, scope, text string) string {
	key := []byte("AWS4" + secret)
	for part := range strings.SplitSeq(scope, "/") {
		key = hmacSHA256(key, part)
	}
	return hex.EncodeToString(hmacSHA256(key, text))
}

// hmacSHA256 returns the HMAC of text under key.
func hmacSHA256(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}
