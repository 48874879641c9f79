"""This machine: what it is, how fast, how busy, how much memory."""
