"""Clips: files, synthetic ones and labelled sets, as a model takes them."""
