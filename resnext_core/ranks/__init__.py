"""Several processes: who they are, how they start and stop, and what they tell each other."""
