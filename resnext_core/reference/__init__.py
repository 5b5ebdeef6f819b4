"""The built-in backend `reference`: slow, obvious NumPy, the oracle that other backends are measured by."""
