package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// TestMutations damages receipts, notes, tree heads and proofs at random and
// wants none of them accepted. SCRIBE_MUTATIONS=1000000 makes it a million.
func TestMutations(t *testing.T) {
	t.Parallel()
	total := 12_000
	if s := os.Getenv("SCRIBE_MUTATIONS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		total = n
	}
	const workers = 4
	seed := rand.Uint64()
	t.Logf("seed %d, %d mutations", seed, total)
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() {
			m := newMutator(t, rand.New(rand.NewPCG(seed, uint64(i))))
			for range total / workers {
				if what := m.accepted(); what != "" {
					t.Errorf("worker %d: accepted %s", i, what)
					return
				}
			}
		})
	}
	wg.Wait()
}

// mutator has good texts and proofs to damage.
type mutator struct {
	rand         *rand.Rand
	log, witness noteVerifier
	receipts     []string // of all entries of two ledgers of the same name
	good         map[string]bool
	tree         memTree
	roots        []hash
}

// newMutator returns a mutator with the published eight leaves' receipts, those
// of another tree with other keys, and a tree of 130.
func newMutator(t *testing.T, r *rand.Rand) *mutator {
	m := &mutator{rand: r, log: mustVerifier(t, goldenLogKey), witness: mustVerifier(t, goldenWitnessKey), good: make(map[string]bool), tree: newMemTree(130)}
	for seq := range uint64(8) {
		m.receipts = append(m.receipts, publishedReceipt(t, seq).String())
		m.good[m.receipts[seq]] = true
	}
	m.receipts = append(m.receipts, foreignReceipts(m.tree)...)
	m.roots = []hash{emptyRoot}
	for size := uint64(1); size <= 130; size++ {
		root, _ := rootAt(size, m.tree.upTo(size))
		m.roots = append(m.roots, root)
	}
	return m
}

// foreignReceipts returns good receipts of another ledger that took our name.
func foreignReceipts(tree memTree) []string {
	log, _ := newNoteSigner("example.com/scribe-test", sigEd25519, []byte(strings.Repeat("f", 32)))
	witness, _ := newNoteSigner("witness.example/w1", sigCosignature, []byte(strings.Repeat("g", 32)))
	root, _ := rootAt(100, tree.upTo(100))
	body := treeHead{origin: log.name, size: 100, root: root}.body()
	head := note{body, []noteSignature{log.sign(body, 0), witness.sign(body, 1700000000)}}
	var texts []string
	for seq := range uint64(100) {
		proof, _ := inclusionProof(seq, 100, tree.upTo(100))
		texts = append(texts, receipt{[]byte{byte(seq), 0}, seq, proof, head}.String())
	}
	return texts
}

// accepted damages one thing and returns what it is if it still passes.
func (m *mutator) accepted() string {
	switch m.rand.IntN(5) {
	case 0, 1:
		return m.receipt()
	case 2:
		return m.note()
	case 3:
		return m.inclusion()
	default:
		return m.consistency()
	}
}

// receipt tries a damaged receipt, or one put together from two.
func (m *mutator) receipt() string {
	ours := m.receipts[m.rand.IntN(8)]
	text := m.damage(ours)
	if m.rand.IntN(4) == 0 {
		text = m.splice(ours, m.receipts[m.rand.IntN(len(m.receipts))])
	}
	if !m.good[text] && receiptAccepted(text, m.log, m.witness) {
		return fmt.Sprintf("receipt %q", text)
	}
	return ""
}

// note tries a damaged checkpoint, or a damaged tree head under good signatures.
func (m *mutator) note() string {
	text := m.damage(goldenNote)
	if m.rand.IntN(2) == 0 {
		text = m.damage(goldenHead) + "\n" + goldenLogLine + goldenCosigLine
	}
	n, err := parseNote(text)
	if err != nil || text == goldenNote {
		return ""
	}
	_, err1 := openTreeHead(n, m.log)
	signed, unix, err2 := n.check(m.witness)
	if err1 == nil && signed && unix == 1700000000 && err2 == nil {
		return fmt.Sprintf("note %q", text)
	}
	return ""
}

// inclusion tries a proof for another leaf, place, root or of other hashes. The
// size stays: no proof binds it, only the signature under size and root does.
func (m *mutator) inclusion() string {
	size := 1 + m.rand.Uint64N(130)
	seq := m.rand.Uint64N(size)
	proof, _ := inclusionProof(seq, size, m.tree.upTo(size))
	leaf, root, place, good := m.tree[0][seq], m.roots[size], seq, slices.Clone(proof)
	switch m.rand.IntN(4) {
	case 0:
		leaf = m.otherHash(leaf)
	case 1:
		root = m.otherHash(root)
	case 2:
		place = m.rand.Uint64N(size + 2)
	default:
		proof = m.otherProof(proof)
	}
	same := leaf == m.tree[0][seq] && root == m.roots[size] && place == seq && slices.Equal(proof, good)
	if !same && checkInclusion(leaf, place, size, proof, root) == nil {
		return fmt.Sprintf("entry %d in %d: leaf %s, root %s, proof %s", place, size, leaf, root, proof)
	}
	return ""
}

// consistency tries a proof for another root or of other hashes.
func (m *mutator) consistency() string {
	to := 1 + m.rand.Uint64N(130)
	from := 1 + m.rand.Uint64N(to)
	proof, _ := consistencyProof(from, to, m.tree.upTo(to))
	older, newer, good := m.roots[from], m.roots[to], slices.Clone(proof)
	switch m.rand.IntN(3) {
	case 0:
		older = m.otherHash(older)
	case 1:
		newer = m.otherHash(newer)
	default:
		proof = m.otherProof(proof)
	}
	same := older == m.roots[from] && newer == m.roots[to] && slices.Equal(proof, good)
	if !same && checkConsistency(from, to, proof, older, newer) == nil {
		return fmt.Sprintf("%d to %d: roots %s and %s, proof %s", from, to, older, newer, proof)
	}
	return ""
}

// otherHash returns h with a bit flipped, or a hash of the same tree.
func (m *mutator) otherHash(h hash) hash {
	switch m.rand.IntN(3) {
	case 0:
		return flipped(h, m.rand.UintN(256))
	case 1:
		return m.roots[m.rand.IntN(len(m.roots))]
	default:
		level := m.tree[m.rand.IntN(len(m.tree))]
		return level[m.rand.IntN(len(level))]
	}
}

// otherProof replaces, removes, inserts or swaps hashes.
func (m *mutator) otherProof(proof []hash) []hash {
	proof = slices.Clone(proof)
	i := m.rand.IntN(len(proof) + 1)
	if i == len(proof) || m.rand.IntN(4) == 0 {
		return slices.Insert(proof, i, m.otherHash(hash{}))
	}
	switch j := m.rand.IntN(len(proof)); m.rand.IntN(3) {
	case 0:
		proof[i] = m.otherHash(proof[i])
	case 1:
		proof = slices.Delete(proof, min(i, j), max(i, j)+1)
	default:
		proof[i], proof[j] = proof[j], proof[i]
	}
	return proof
}

// damage changes, removes, inserts or swaps a few bytes, or cuts the text.
func (m *mutator) damage(text string) string {
	b := []byte(text)
	for range 1 + m.rand.IntN(3) {
		i, j := m.rand.IntN(len(b)), m.rand.IntN(len(b))
		switch m.rand.IntN(7) {
		case 0:
			b[i] ^= 1 << m.rand.IntN(8)
		case 1:
			b[i] = byte(m.rand.Uint32())
		case 2:
			b = slices.Insert(b, i, b[j])
		case 3:
			b[i], b[j] = b[j], b[i]
		case 4:
			b[i] = b[j]
		case 5:
			b = slices.Delete(b, i, min(len(b), i+1+m.rand.IntN(4)))
		default:
			b = b[:i]
		}
		if len(b) == 0 {
			break
		}
	}
	return string(b)
}

// splice takes each line of a or of b, at their common places.
func (m *mutator) splice(a, b string) string {
	lines := slices.Collect(strings.Lines(a))
	other := slices.Collect(strings.Lines(b))
	for range 1 + m.rand.IntN(3) {
		i := m.rand.IntN(min(len(lines), len(other)))
		if m.rand.IntN(2) == 0 {
			lines[i] = other[i]
		} else {
			lines[len(lines)-1-i] = other[len(other)-1-i]
		}
	}
	return strings.Join(lines, "")
}
