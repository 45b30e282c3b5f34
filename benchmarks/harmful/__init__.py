"""Sources that do harm, and how much of it the method takes away."""
