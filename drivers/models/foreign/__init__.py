"""Architectures that have no family here: computed by their own modules in `transformers`, over our pages and weights."""
