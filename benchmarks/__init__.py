"""Measurements: every figure of the README comes from one of these commands."""
