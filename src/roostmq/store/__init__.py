"""What a cluster agrees on: a registry of few small entries that only compare-and-set changes."""
