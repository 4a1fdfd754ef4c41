"""A seeded simulator of a cluster: the real policies, and the engine's rules about acknowledgements as a model."""
