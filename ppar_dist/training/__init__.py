"""A rank from start to exit code: build, step, save, record."""
