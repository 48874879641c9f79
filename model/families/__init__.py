"""The published families: names of their weights and content of their files, a file a family."""
