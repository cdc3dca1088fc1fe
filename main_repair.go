package main

import (
	"context"
	"fmt"
)

// repair sets the state of a node that must not or cannot start aside, so that
// it comes back empty and fetches everything from the others.
func (p *program) repair(ctx context.Context, args []string) error {
	flags, file := nodeFlags("repair")
	c, err := p.nodeConfig(flags, file, args)
	if err != nil {
		return err
	}
	aside, err := repairNode(ctx, nodeOptionsFrom(c, "", p.newLogger(c.Log), newMetrics()))
	if err != nil {
		return fmt.Errorf("repairing node %d: %w", c.Node.ID, err)
	}
	fmt.Fprintf(p.stdout, "the state of node %d is in %s now; start the node: it fetches everything from the others\n", c.Node.ID, aside)
	return nil
}
