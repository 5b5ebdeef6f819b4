"""The training loop, the trainer that all backends share, and what a training starts from."""
