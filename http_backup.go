package main

// signedManifest answers with the sealed segments as a backup has them: a signed
// bucket manifest (manifest_bucket.go).
func (s *server) signedManifest(c *call) (reply, error) {
	if err := s.prepareRead(c); err != nil {
		return reply{}, err
	}
	b, err := s.node.signedManifest(s.reads.context())
	if err != nil {
		return reply{}, s.unproven(err)
	}
	return textReply(c, string(b)), nil
}
