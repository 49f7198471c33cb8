"""Statistics over seeds (to come)."""
