"""One thin module a DVC stage: each reads files, calls pure functions, writes files."""
