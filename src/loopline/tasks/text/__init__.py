"""One of k classes for each text."""
