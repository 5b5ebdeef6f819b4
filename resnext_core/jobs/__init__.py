"""One module a job: what the command line and the Python API both call."""
