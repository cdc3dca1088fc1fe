package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Credentials come from the configuration, else from the environment, else from
// the file that the AWS tools share:
//
//	# comments begin with # or ; at the start of a line
//	[default]
//	aws_access_key_id     = AKIAIOSFODNN7EXAMPLE
//	aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY
//
//	[archive]
//	aws_access_key_id        = ASIAIOSFODNN7EXAMPLE
//	aws_secret_access_key    = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY
//	aws_session_token        = AQoDYXdzEJr...
//	x_security_token_expires = 2026-11-22T23:00:00Z
//
// Environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and
// AWS_CREDENTIAL_EXPIRATION; AWS_SHARED_CREDENTIALS_FILE (default
// ~/.aws/credentials) and AWS_PROFILE (default "default") choose from the file.

const (
	maxCredentialsFile = 1 << 20 // bytes
	credentialsMargin  = time.Minute
)

// errNoCredentials is wrapped by errors that say why there are no credentials.
var errNoCredentials = errors.New("no S3 credentials")

// s3Credentials are an access key.
type s3Credentials struct {
	id, secret string
	token      string    // of a session; "" for lasting keys
	expires    time.Time // zero: not known
	source     string    // for messages: where they come from
}

// String names the access key, never its secret.
func (c s3Credentials) String() string { return c.id + " from " + c.source }

// s3Keychain holds the credentials in use and finds new ones when they expire or
// are refused: whoever renews a session writes the file, and nobody restarts us.
type s3Keychain struct {
	// immutable
	fixed s3Credentials // of the configuration; none if its id is ""
	env   func(string) string
	now   func() time.Time

	mu      sync.Mutex // guards the rest; held while the file is read, so that it is read once
	current s3Credentials
}

// get returns credentials that are not known to have expired, or, if those that
// are found have, the expired ones: the server is the judge.
func (k *s3Keychain) get() (s3Credentials, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c := k.current
	if c.id != "" && (c.expires.IsZero() || k.now().Add(credentialsMargin).Before(c.expires)) {
		return c, nil
	}
	c, err := k.find()
	if err != nil {
		return s3Credentials{}, err
	}
	k.current = c
	return c, nil
}

// refused looks for other credentials than c, which a server refused, and
// reports whether there are any.
func (k *s3Keychain) refused(c s3Credentials) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.current != c {
		return true // another request found them meanwhile
	}
	found, err := k.find()
	if err != nil || found == c {
		return false
	}
	k.current = found
	return true
}

// find reads the first source that has credentials.
func (k *s3Keychain) find() (s3Credentials, error) {
	if k.fixed.id != "" {
		c := k.fixed
		c.source = "the configuration"
		return c, nil
	}
	if c := (s3Credentials{id: k.env("AWS_ACCESS_KEY_ID"), secret: k.env("AWS_SECRET_ACCESS_KEY"),
		token: k.env("AWS_SESSION_TOKEN"), source: "the environment"}); c.id != "" && c.secret != "" {
		c.expires, _ = time.Parse(time.RFC3339, k.env("AWS_CREDENTIAL_EXPIRATION"))
		return c, nil
	}
	return k.readFile()
}

// readFile reads the shared file. Its errors only quote those of the file: a
// file that is not there must not pass for an object that is not there.
func (k *s3Keychain) readFile() (s3Credentials, error) {
	name, profile := k.env("AWS_SHARED_CREDENTIALS_FILE"), k.env("AWS_PROFILE")
	if name == "" {
		name = filepath.Join(k.env("HOME"), ".aws", "credentials")
	}
	if profile == "" {
		profile = "default"
	}
	info, err := os.Stat(name)
	if err != nil {
		return s3Credentials{}, fmt.Errorf("%w in the configuration, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or %s: %v", errNoCredentials, name, err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxCredentialsFile {
		return s3Credentials{}, fmt.Errorf("%w: %s is no file of at most %d bytes", errNoCredentials, name, maxCredentialsFile)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return s3Credentials{}, fmt.Errorf("%w: %v", errNoCredentials, err)
	}
	c, err := parseCredentials(b, profile)
	if err != nil {
		return s3Credentials{}, fmt.Errorf("%w: %s: %w", errNoCredentials, name, err)
	}
	c.source = name
	return c, nil
}

// parseCredentials returns the credentials of a profile in a shared file. Its
// errors show no line of the file: it may be a secret.
func parseCredentials(b []byte, profile string) (s3Credentials, error) {
	var c s3Credentials
	var expires string
	fields := map[string]*string{"aws_access_key_id": &c.id, "aws_secret_access_key": &c.secret,
		"aws_session_token": &c.token, "x_security_token_expires": &expires}
	found, here := false, false
	lines := bufio.NewScanner(bytes.NewReader(bytes.TrimPrefix(b, []byte("\ufeff"))))
	lines.Buffer(nil, maxCredentialsFile)
	for lines.Scan() {
		line := lines.Text()
		if name, ok := sectionName(line); ok {
			here = name == profile
			found = found || here
		} else if name, value, ok := strings.Cut(line, "="); ok && here && !strings.ContainsAny(line[:1], " \t#;") {
			if f := fields[strings.ToLower(strings.TrimSpace(name))]; f != nil {
				*f = strings.TrimSpace(value)
			}
		}
	}
	if err := lines.Err(); err != nil {
		return s3Credentials{}, err
	}
	if !found {
		return s3Credentials{}, fmt.Errorf("it has no profile %.80q", profile)
	}
	if err := c.check(expires); err != nil {
		return s3Credentials{}, err
	}
	return c, nil
}

// sectionName returns the name in a line such as "[default]".
func sectionName(line string) (string, bool) {
	rest, ok := strings.CutPrefix(line, "[")
	if !ok {
		return "", false
	}
	name, _, ok := strings.Cut(rest, "]")
	return strings.TrimSpace(name), ok
}

// check reads the time at which c expires and reports what no key can be.
func (c *s3Credentials) check(expires string) error {
	if c.id == "" || c.secret == "" {
		return errors.New("the profile lacks aws_access_key_id or aws_secret_access_key")
	}
	for _, s := range []string{c.id, c.secret, c.token} {
		if strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return errors.New("a key of the profile has characters that no key has")
		}
	}
	if expires == "" {
		return nil
	}
	at, err := time.Parse(time.RFC3339, expires)
	if err != nil {
		return errors.New("x_security_token_expires of the profile is no RFC 3339 time")
	}
	c.expires = at
	return nil
}
