"""Object storage: where data and checkpoints lie that no file system holds."""
