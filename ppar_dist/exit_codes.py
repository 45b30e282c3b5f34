"""Exit codes: one contract for the trainer, batch scripts and Kubernetes policies."""

DONE = 0
INTERNAL = 70  # a bug in this program; a retry may or may not help
RESUME = 75  # run the same command again: it resumes from the newest whole checkpoint
CONFIG = 78  # configuration or data wrong; a retry fails in the same way
INTERRUPTED = 130  # by the user
