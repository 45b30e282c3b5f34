"""A run on disk: its files, who may use it, its state, the samples it trained on."""
