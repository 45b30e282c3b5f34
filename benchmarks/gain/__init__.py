"""What the method gains, and how it is measured."""
