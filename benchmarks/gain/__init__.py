"""Gains of the method, and how they are measured."""
