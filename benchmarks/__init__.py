"""Measurements: every figure of the docs comes from one of these commands."""
