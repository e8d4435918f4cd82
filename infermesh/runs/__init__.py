"""A run, from its declaration to its last commit."""
