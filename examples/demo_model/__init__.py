"""Demo model: a small Llama trained on the Python standard library, and the scripts that make it."""
