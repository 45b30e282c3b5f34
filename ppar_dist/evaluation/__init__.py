"""What a checkpoint is worth, and what it says of an image."""
