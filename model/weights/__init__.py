"""Weights of a file -> the model in it: read, find, choose, and join with what is given."""
