"""Starting the ranks of a machine, and what a rank does for whoever started it."""
