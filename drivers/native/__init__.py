"""Inner loops in C, each beside the Python that it must agree with, and the builder that compiles them where there is a compiler."""
