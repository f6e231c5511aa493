"""Messages of the system calls, generated from `proto/syscalls.proto`."""
