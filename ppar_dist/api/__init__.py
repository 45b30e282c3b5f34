"""The Python interface, as in a notebook: what ``import ppar_dist`` offers (docs/python.md).

Nothing of it sets a signal handler or an environment variable, and a training runs in processes of its own.
"""
