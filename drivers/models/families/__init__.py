"""Model families: how each one's config is read, its parts, and what it computes."""
