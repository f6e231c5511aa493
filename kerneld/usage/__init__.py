"""Usage: what every tenant has used, hour by hour and with a half-life, and what follows from it for its share."""
