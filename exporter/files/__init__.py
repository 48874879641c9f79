"""Files of an export: a directory that appears whole or not at all, and its manifest."""
