package main

import (
	"context"
	"fmt"
	"strings"
)

// recoverAlone makes a stopped node whose cluster has lost most of its members
// for good a cluster of its own.
func (p *program) recoverAlone(ctx context.Context, args []string) error {
	flags, file := nodeFlags("recover")
	c, err := p.nodeConfig(flags, file, args)
	if err != nil {
		return err
	}
	cut, err := recoverNode(ctx, nodeOptionsFrom(c, "", p.newLogger(c.Log), newMetrics()))
	if err != nil {
		return fmt.Errorf("recovering node %d: %w", c.Node.ID, err)
	}
	fmt.Fprintf(p.stdout, "node %d is a cluster of its own now, without %s; the entry %q tells of it. Never start the lost nodes on their old data: they would go on with another history\n",
		c.Node.ID, strings.Join(cut.Lost, ", "), cutKey)
	return nil
}
