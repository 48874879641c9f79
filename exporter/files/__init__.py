"""Files of an export: a directory that appears complete or not at all, and its manifest."""
