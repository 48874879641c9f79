"""The state of a running command: its job, and its stages with their times."""
