"""Processes of this machine: their state, signals, and the log of each rank."""
