"""The network as data: its shapes, its weights, and how an image becomes its input."""
