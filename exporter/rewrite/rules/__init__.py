"""The rewrites, one a file: a variant of a module, and the rule that puts it into a model."""
