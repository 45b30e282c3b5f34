"""Faults that a run survives, and how soon a faulty one ends."""
