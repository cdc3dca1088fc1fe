package main

import (
	"fmt"
)

// What lies where in a bucket, or in a folder that is as good: below
// <prefix>/<cluster id, 32 hex digits>/
//
//	segments/<packedName>   packed segments (segment_gzip.go); the manifest in Raft
//	                        has these names, without what is in front: the bucket
//	                        may be copied, and the copy found under another prefix
//	manifests/<ledger size, 20 digits>-<SHA-256 of the object>   (below)
//	live                    who leads the cluster, and since when nobody said so
//
// Nothing but live is ever replaced.

const (
	segmentsFolder  = "segments/"
	manifestsFolder = "manifests/"
	liveName        = "live"
)

// bucketFolder returns how the keys of a cluster begin; prefix is "" or has a slash
// at its end.
func bucketFolder(prefix string, cluster clusterID) string { return prefix + cluster.String() + "/" }

// segmentKey returns the key of the packed segment of that name.
func segmentKey(folder, name string) string { return folder + segmentsFolder + name }

// bucketManifestKey returns the key of the signed manifest of a ledger of that size.
func bucketManifestKey(folder string, size uint64, sum hash) string {
	return fmt.Sprintf("%s%s%020d-%s", folder, manifestsFolder, size, sum)
}
