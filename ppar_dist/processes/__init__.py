"""Processes of this machine: what the kernel knows of them, signals, the log of each rank."""
