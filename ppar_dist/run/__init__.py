"""A run on disk: who may use it, where it stands, what it consumed."""
