"""Bundle, model card, registry, promotion on evidence."""
