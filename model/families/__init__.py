"""How each published family names its weights, and what its files tell; one family per file."""
