"""The runtimes a model can run in, one per file behind the protocol of `base`."""
