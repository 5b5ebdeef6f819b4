"""Where the images of a data set are: single files, shards, packed files, and what plugins add."""
