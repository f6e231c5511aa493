"""Floor 4: the system calls, one gRPC handler per verb."""
