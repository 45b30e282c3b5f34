"""Many runs from one file: variants × values × seeds, and the table of what they score."""
