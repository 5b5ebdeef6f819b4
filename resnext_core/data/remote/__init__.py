"""Data that is not on the local disk: object stores and web servers through fsspec, with a cache on the local disk."""
