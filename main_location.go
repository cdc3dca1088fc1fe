package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// location is where a user says that an archived ledger lies: in a bucket,
// s3://bucket/prefix, or in a folder, as backup makes it.
type location struct {
	objects objectStore
	prefix  string // "" or with a slash at its end
	close   func() error
}

// isBucket tells whether name means a bucket.
func isBucket(name string) bool { return strings.HasPrefix(name, "s3://") }

// locationOf opens the place of that name; file is a configuration, "" for none.
func (p *program) locationOf(name, file string) (*location, error) {
	c, err := loadConfig(file, p.env, nil, false)
	if err != nil {
		return nil, &exitError{exitUnusable, err}
	}
	return openLocation(name, c)
}

// openLocation opens the place of that name. How a bucket is reached, c says.
func openLocation(name string, c *config) (*location, error) {
	if !isBucket(name) {
		return openBackup(name)
	}
	s3 := c.Storage.S3
	s3.Bucket, s3.Prefix, _ = strings.Cut(strings.TrimPrefix(name, "s3://"), "/")
	if s3.Bucket == "" {
		return nil, unusable("%q: want s3://bucket or s3://bucket/prefix", name)
	}
	objects, err := bucketFrom(s3, newMetrics())
	if err != nil {
		return nil, &exitError{exitUnusable, err}
	}
	return &location{objects, prefixFrom(s3), func() error { return nil }}, nil
}

// openBackup opens a backup: its folder, or the one in it of a cluster.
func openBackup(dir string) (*location, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	prefix := ""
	if base := filepath.Base(dir); isClusterFolder(dir) {
		prefix, dir = base+"/", filepath.Dir(dir)
	}
	folder, err := openFolder(dir)
	if err != nil {
		return nil, &exitError{exitUnusable, fmt.Errorf("folder %s: %w", dir, err)}
	}
	return &location{folder, prefix, folder.close}, nil
}

// isClusterFolder tells whether dir is what a backup has of one cluster.
func isClusterFolder(dir string) bool {
	if _, err := parseClusterHex(filepath.Base(dir)); err != nil {
		return false
	}
	info, err := os.Stat(filepath.Join(dir, manifestsFolder))
	return err == nil && info.IsDir()
}

// isBackupFolder tells whether dir holds a backup, and not a node or bare segments.
func isBackupFolder(dir string) bool {
	if isClusterFolder(dir) {
		return true
	}
	below, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	for _, e := range below {
		if isClusterFolder(filepath.Join(dir, e.Name())) {
			return true
		}
	}
	return false
}
