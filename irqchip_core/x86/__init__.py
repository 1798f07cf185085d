"""What only x86 has: the chip's extension, state records, and the parts chips are assembled from."""
