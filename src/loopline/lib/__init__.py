"""Small tools without opinions, each once."""
