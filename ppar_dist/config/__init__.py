"""The configuration of a run: its schema, reading it, and the hash that identifies it."""
