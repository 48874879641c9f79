"""What a machine does with an export: prove it, time it, build its engine, note what it found."""
