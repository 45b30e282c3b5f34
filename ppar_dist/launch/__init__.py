"""Starting the ranks of a machine, and what each rank reports to the command that started it."""
