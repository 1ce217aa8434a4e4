"""One of k classes for each image."""
