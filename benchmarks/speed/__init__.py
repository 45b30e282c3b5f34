"""Costs of a step, a batch, a save and a resume."""
