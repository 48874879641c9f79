"""Proof that a runtime computes the model: truth, floor, verdict, and the search for a fault."""
