"""The ModelZoo's command lines: old flags in, old log lines out, resnext-run underneath."""
