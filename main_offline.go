package main

import "flag"

// What the commands about a node that does not run have in common.

// nodeFlags returns the flags of such a command.
func nodeFlags(name string) (flags *flag.FlagSet, file *string) {
	flags = flag.NewFlagSet(name, flag.ContinueOnError)
	file = flags.String("config", "", "TOML `file` to read, that of the node")
	flags.String("node-id", "", "`number` of the node, wins over node.id")
	return flags, file
}

// nodeConfig reads the command line and the configuration of the node.
func (p *program) nodeConfig(flags *flag.FlagSet, file *string, args []string) (*config, error) {
	if _, err := p.parse(flags, args, 0, 0); err != nil {
		return nil, err
	}
	c, err := loadConfig(*file, p.env, flagSettings(flags), false)
	if err != nil {
		return nil, &exitError{exitUnusable, err}
	}
	return c, nil
}
