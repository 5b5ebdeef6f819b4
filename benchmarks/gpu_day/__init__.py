"""The first minutes on a bare GPU machine: parts in the order of their value, each within a time limit of its own."""
