"""From weights or an artefact to logits, counts and comparisons."""
