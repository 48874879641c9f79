"""Clips in the form that a model takes: from files, from generators, and from labelled sets."""
