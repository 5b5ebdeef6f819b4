"""HTTP service for trained models: the Open Inference Protocol, images as they are, metrics and a page."""
