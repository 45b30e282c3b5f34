"""What a run survives, and how soon it ends."""
