"""Every decision, pure: (state, event, now) -> (state, actions). No clock, no I/O, no await, no randomness."""
