package main

// segmentInfo is one sealed segment in the manifest.
type segmentInfo struct {
	first  uint64 // seq of its first entry
	count  uint64
	size   uint64 // bytes of the segment file
	time   int64  // Unix ms at which it was sealed, by the leader's clock
	root   hash   // RFC 6962 root over its own leaves
	sum    hash   // SHA-256 of the segment file
	object string // key in the bucket; "" while only local
}

// id names the segment: <first seq, 20 digits>-<merkle root>.
func (i segmentInfo) id() string { panic("stub") }

// manifest is the ordered list of sealed segments. Nobody edits one: a change makes a new one.
type manifest struct {
	version  uint64
	segments []segmentInfo
}
