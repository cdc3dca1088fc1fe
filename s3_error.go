package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// What goes wrong with a bucket comes out as one *s3Error, which says what was
// asked for, what came back, and what an operator can do about it. It wraps
// fs.ErrNotExist for an object that is not there, fs.ErrExist for one that was not
// to be there, or the error of the network or of the caller's context.

const (
	maxErrorBody = 64 << 10 // bytes of an error that are read
	maxErrorText = 300      // bytes of a server's words that are shown
)

// Codes of errors that are made here, not by a server.
const (
	codeBare      = "HTTP"      // an answer without a code of its own
	codeNetwork   = "Network"   // no answer, or half of one
	codeTimeout   = "Timeout"   // no answer in time
	codeNotS3     = "NotS3"     // an answer that S3 does not give
	codeRedirect  = "Redirect"  // an answer that names another place
	codeNoKeys    = "NoKeys"    // no credentials
	codeCanceled  = "Canceled"  // the caller's context ended
	codeBadObject = "BadObject" // the object is not what was asked for
	codeBadCall   = "BadCall"   // the caller asked for something that cannot be
)

// s3Error is a request to a bucket that did not succeed.
type s3Error struct {
	op, bucket, key string // what was asked for; key "" = the bucket
	status          int    // of the answer; 0 = there was none
	code, message   string // of the server, or code… and words of this program
	request         string // the server's name for the request
	region          string // that the server says the bucket is in
	tries           int
	hint            string // what to do about it; "" = nothing more to say
	cause           error  // fs.ErrNotExist, fs.ErrExist, of the network or nil
}

// Error is one line.
func (e *s3Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "s3: %s %s", e.op, e.bucket)
	if e.key != "" {
		fmt.Fprintf(&b, "/%s", clipped(e.key))
	}
	fmt.Fprintf(&b, ": %s", clipped(e.code))
	if e.status != 0 {
		fmt.Fprintf(&b, " (HTTP %d)", e.status)
	}
	if e.message != "" {
		fmt.Fprintf(&b, ": %s", clipped(e.message))
	}
	if e.hint != "" {
		fmt.Fprintf(&b, "; %s", e.hint)
	}
	if e.tries > 1 {
		fmt.Fprintf(&b, "; tried %d times", e.tries)
	}
	if e.request != "" {
		fmt.Fprintf(&b, "; request %s", clipped(e.request))
	}
	return b.String()
}

func (e *s3Error) Unwrap() error { return e.cause }

// clipped returns a server's words on one line of bounded length.
func clipped(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > maxErrorText {
		s = strings.ToValidUTF8(s[:maxErrorText], "") + "…"
	}
	return s
}

// temporary reports whether the same request may succeed a moment later.
func (e *s3Error) temporary() bool {
	switch e.code {
	case codeNetwork, codeTimeout, codeNotS3,
		"SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "OperationAborted", "ConditionalRequestConflict",
		"BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "IncompleteBody":
		return true
	}
	return e.status == http.StatusTooManyRequests || e.status >= 500 && e.status != http.StatusNotImplemented
}

// refusedKeys reports whether other credentials might do.
func (e *s3Error) refusedKeys() bool {
	switch e.code {
	case "ExpiredToken", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId", "XAdminUserNotFound", "SignatureDoesNotMatch":
		return true
	}
	return false
}

// result returns how a try ended, for the metrics; nil is success.
func (e *s3Error) result() int {
	switch {
	case e == nil:
		return s3OK
	case errors.Is(e.cause, fs.ErrNotExist):
		return s3Absent
	case errors.Is(e.cause, fs.ErrExist):
		return s3Exists
	case e.code == codeNetwork, e.code == codeTimeout, e.code == codeCanceled:
		return s3Silent
	case e.temporary():
		return s3Failed
	}
	return s3Refused
}

// Results of a try, in the order of s3ResultLabels.
const (
	s3OK = iota
	s3Absent
	s3Exists
	s3Refused
	s3Failed
	s3Silent
)

// s3ErrorBody is the body of an error:
//
//	<?xml version="1.0" encoding="UTF-8"?>
//	<Error>
//	  <Code>RequestTimeTooSkewed</Code>
//	  <Message>The difference between the request time and the current time is too large.</Message>
//	  <RequestTime>20261122T204500Z</RequestTime>
//	  <ServerTime>2026-11-22T21:46:11Z</ServerTime>
//	  <MaxAllowedSkewMilliseconds>900000</MaxAllowedSkewMilliseconds>
//	  <RequestId>4442587FB7D0A2F9</RequestId>
//	</Error>
type s3ErrorBody struct {
	XMLName    xml.Name `xml:"Error"`
	Code       string
	Message    string
	RequestID  string `xml:"RequestId"`
	Region     string // AuthorizationHeaderMalformed: where the bucket is
	Endpoint   string // PermanentRedirect: where to ask
	ServerTime string // RequestTimeTooSkewed
}

// parseErrorBody reads the body of an error.
func parseErrorBody(b []byte) (*s3ErrorBody, error) {
	var e s3ErrorBody
	if err := xml.Unmarshal(b, &e); err != nil {
		return nil, fmt.Errorf("no S3 error: %w", err)
	}
	if e.Code == "" {
		return nil, errors.New("no S3 error: it has no code")
	}
	return &e, nil
}

// answerError returns the error of an answer that is no success, and reads it.
func (c *s3Client) answerError(call *s3Call, resp *http.Response) *s3Error {
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	e := c.newError(call, codeBare, "")
	e.status, e.request, e.region = resp.StatusCode, resp.Header.Get("X-Amz-Request-Id"), resp.Header.Get("X-Amz-Bucket-Region")
	body, parseErr := parseErrorBody(b)
	switch {
	case parseErr == nil:
		e.code, e.message = body.Code, body.Message
		e.request, e.region = orElse(body.RequestID, e.request), orElse(body.Region, e.region)
	case err != nil:
		e.code, e.message, e.cause = codeNetwork, "the answer broke off: "+err.Error(), err
	case len(b) > 0:
		e.message = "a body that is no S3 error: " + firstLine(b)
	default:
		e.message = http.StatusText(resp.StatusCode)
	}
	if body == nil {
		body = &s3ErrorBody{}
	}
	c.explain(e, call, resp, body)
	return e
}

// orElse returns a, or b if a is empty.
func orElse(a, b string) string {
	if a == "" {
		return b
	}
	return a
}

// firstLine returns how b begins, quoted.
func firstLine(b []byte) string { return fmt.Sprintf("%.80q", bytes.TrimSpace(b)) }

// explain adds the cause that callers look for and the words an operator needs.
func (c *s3Client) explain(e *s3Error, call *s3Call, resp *http.Response, body *s3ErrorBody) {
	switch {
	case resp.StatusCode == http.StatusNotFound && (e.code == "NoSuchKey" || e.code == "NoSuchVersion"):
		e.cause = fs.ErrNotExist
	case call.absent && (resp.StatusCode == http.StatusPreconditionFailed || resp.StatusCode == http.StatusNotModified):
		e.cause = fs.ErrExist
	case resp.StatusCode == http.StatusPreconditionFailed:
		e.code, e.hint = codeBadObject, "the object was replaced while it was read"
	case resp.StatusCode/100 == 3:
		e.hint = "the bucket is to be asked " + elsewhere(resp, body, e.region)
		if e.code == codeBare && call.method != http.MethodHead {
			e.code = codeRedirect
		}
	case e.region != "" && e.region != c.o.region:
		e.hint = fmt.Sprintf("the bucket is in region %s and not in %s: set storage.s3.region", clipped(e.region), c.o.region)
	case e.code == "RequestTimeTooSkewed":
		e.hint = c.skew(orElse(body.ServerTime, resp.Header.Get("Date")))
	default:
		e.hint = c.advice(e.code, call)
	}
}

// elsewhere says where a redirect points. It is not followed: the signature is
// made for one host, and another one might be anybody's.
func elsewhere(resp *http.Response, body *s3ErrorBody, region string) string {
	var to []string
	if at := orElse(body.Endpoint, hostOf(resp.Header.Get("Location"))); at != "" {
		to = append(to, "at "+clipped(at)+" (storage.s3.endpoint)")
	}
	if region != "" {
		to = append(to, "in region "+clipped(region)+" (storage.s3.region)")
	}
	if len(to) == 0 {
		return "elsewhere, but the answer does not say where"
	}
	return strings.Join(to, ", ")
}

// hostOf returns scheme and host of a URL, or "".
func hostOf(location string) string {
	u, err := url.Parse(location)
	if err != nil || u.Host == "" {
		return ""
	}
	return u.Scheme + "://" + u.Host
}

// skew names both clocks.
func (c *s3Client) skew(server string) string {
	mine := c.o.now().UTC()
	at, err := time.Parse(time.RFC3339, server)
	if err != nil {
		at, err = http.ParseTime(server)
	}
	if err != nil {
		return "the clock here says " + mine.Format(time.RFC3339) + ", the server's is more than 15 minutes off"
	}
	return fmt.Sprintf("the clock here says %s, the server's %s: a difference of %s", mine.Format(time.RFC3339),
		at.UTC().Format(time.RFC3339), mine.Sub(at).Abs().Round(time.Second))
}

// advice returns what an operator can do about an error with that code.
func (c *s3Client) advice(code string, call *s3Call) string {
	switch code {
	case "NoSuchBucket":
		return fmt.Sprintf("%s has no bucket %s: check storage.s3.bucket and endpoint, or make it", c.base.Host, c.o.bucket)
	case "SignatureDoesNotMatch":
		return fmt.Sprintf("the secret does not belong to access key %s, or something on the way changes requests", c.keyInUse())
	case "InvalidAccessKeyId", "XAdminUserNotFound": // the second is versitygw's
		return fmt.Sprintf("the server does not know access key %s", c.keyInUse())
	case "ExpiredToken", "InvalidToken", "TokenRefreshRequired":
		return fmt.Sprintf("the session of access key %s is over or unknown: renew it", c.keyInUse())
	case "AccessDenied", "AllAccessDisabled", "UnauthorizedAccess":
		return fmt.Sprintf("access key %s may not %s here", c.keyInUse(), call.op)
	case "InvalidObjectState":
		return "the object lies in a storage class that must be restored before it can be read"
	case "BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch":
		return "the bytes changed on the way"
	}
	if call.locked && code == "InvalidRequest" {
		return "retention is configured, and the bucket may lack Object Lock"
	}
	return ""
}

// keyInUse names the access key for messages.
func (c *s3Client) keyInUse() string {
	keys, err := c.keys.get()
	if err != nil {
		return "none"
	}
	return keys.String()
}

// networkError returns the error of a request that got no whole answer. ctx is
// the caller's, not the one of a try.
func (c *s3Client) networkError(ctx context.Context, call *s3Call, err error) *s3Error {
	e := c.newError(call, codeNetwork, "")
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err // url.Error repeats the URL
	}
	e.message = err.Error()
	if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrExist) && !errors.Is(err, io.ErrUnexpectedEOF) {
		e.cause = err // else it would pass for what an object is, or where it ends
	}
	var dns *net.DNSError
	var late net.Error
	var record tls.RecordHeaderError
	var cert *tls.CertificateVerificationError
	switch {
	case ctx.Err() != nil:
		e.code, e.message, e.cause = codeCanceled, context.Cause(ctx).Error(), context.Cause(ctx)
	case errors.Is(err, errS3Body):
		e.code = codeBadCall
	case errors.As(err, &dns):
		e.hint = "the name cannot be resolved: check storage.s3.endpoint and region"
	case errors.Is(err, errS3Slow), errors.As(err, &late) && late.Timeout():
		e.code = codeTimeout
		e.hint = fmt.Sprintf("%s did not answer, or stopped in the middle, for %s (storage.s3.timeout_secs)", c.base.Host, c.o.timeout)
	case errors.As(err, &record), strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		e.hint = "the port speaks no TLS: storage.s3.endpoint should perhaps begin with http://"
	case errors.As(err, &cert):
		e.hint = "the certificate is not trusted here, or is for another name"
	}
	return e
}

// newError returns an error about call.
func (c *s3Client) newError(call *s3Call, code, message string) *s3Error {
	return &s3Error{op: call.op.String(), bucket: c.o.bucket, key: call.key, code: code, message: message}
}
