"""Floor 1: frames, page tables and the pager. It decides; it never copies a byte."""
