"""One file per question; each prints a table and, with --json FILE, writes its figures."""
