package main

import (
	"context"
	"flag"
	"fmt"
)

// repair sets the state of a node that must not or cannot start aside, so that
// it comes back empty and fetches everything from the others.
func (p *program) repair(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("repair", flag.ContinueOnError)
	file := flags.String("config", "", "TOML `file` to read, that of the node")
	flags.String("node-id", "", "`number` of the node, wins over node.id")
	if _, err := p.parse(flags, args, 0, 0); err != nil {
		return err
	}
	c, err := loadConfig(*file, p.env, flagSettings(flags), false)
	if err != nil {
		return &exitError{exitUnusable, err}
	}
	aside, err := repairNode(ctx, nodeOptionsFrom(c, "", p.newLogger(c.Log), newMetrics()))
	if err != nil {
		return fmt.Errorf("repairing node %d: %w", c.Node.ID, err)
	}
	fmt.Fprintf(p.stdout, "the state of node %d is in %s now; start the node: it fetches everything from the others\n", c.Node.ID, aside)
	return nil
}
