"""Floor 3: the kernel: contexts, scheduling, durable state, identity, supervision, recovery."""
