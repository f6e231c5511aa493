"""The disk tier: the page file, and who moves pages between it and the host tier."""
