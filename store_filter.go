package main

// The Bloom filter of a run; its bits are described in store_run.go. Twelve
// bits a key, not ten: a wrong answer costs a block read, and in an index of 20
// runs an absent key has 20 chances of one. All bits of a key lie in one cache
// line, because asking a large filter costs cache misses and little else.

// Part of the file format; never change, add a version.
const (
	filterBitsPerKey = 12
	filterGroup      = 64 // bytes: one cache line, so a look-up costs one miss
	filterProbes     = 7
)

// keyFilter is the filter section: it tells for certain that a key is not in
// the run, and errs on the other side for about one absent key in 200.
type keyFilter []byte

// filterSize returns the bytes of the filter for so many keys.
func filterSize(keys uint64) uint64 {
	const group = filterGroup * 8
	groups := keys/group*filterBitsPerKey + (keys%group*filterBitsPerKey+group-1)/group
	return max(1, groups) * filterGroup
}

// keyHash is what filters know of a key; a look-up computes it once for all runs.
type keyHash struct{ group, bits uint64 }

// hashKey returns the keyHash of key.
func hashKey(key []byte) keyHash { return spreadHash(hash64(key)) }

// hash64 returns FNV-1a of key, mixed so that all its bits count.
func hash64(key []byte) uint64 {
	h := uint64(14695981039346656037)
	for _, b := range key {
		h = (h ^ uint64(b)) * 1099511628211
	}
	return mix64(h)
}

// spreadHash makes a keyHash of its 64 bits.
func spreadHash(h uint64) keyHash { return keyHash{h >> 32, mix64(h)} }

// mix64 is the finaliser of splitmix64.
func mix64(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// group returns the part of f that knows of h.
func (f keyFilter) group(h keyHash) *[filterGroup]byte {
	g := h.group * uint64(len(f)/filterGroup) >> 32
	return (*[filterGroup]byte)(f[g*filterGroup:])
}

// add makes has(h) true.
func (f keyFilter) add(h keyHash) {
	g := f.group(h)
	for i := 0; i < 9*filterProbes; i += 9 {
		g[h.bits>>(i+3)&63] |= 1 << (h.bits >> i & 7)
	}
}

// has reports false only if no key with hash h was added.
func (f keyFilter) has(h keyHash) bool {
	g := f.group(h)
	for i := 0; i < 9*filterProbes; i += 9 {
		if g[h.bits>>(i+3)&63]&(1<<(h.bits>>i&7)) == 0 {
			return false
		}
	}
	return true
}
