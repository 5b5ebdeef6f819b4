"""What programs with a command line are built from: core's own and those of plugins."""
