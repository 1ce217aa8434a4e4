"""What was served and turned out to be true: read, joined, kept within bounds, and handed on as labelled data."""
