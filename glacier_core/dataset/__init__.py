"""What a network sees: slices, splits, statistics."""
