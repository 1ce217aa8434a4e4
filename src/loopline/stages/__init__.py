"""One thin module for each DVC stage: it reads files, calls pure functions and writes files."""
