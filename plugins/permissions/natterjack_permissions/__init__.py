"""Permission guard."""
