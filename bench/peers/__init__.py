"""Engines that people could run instead, each in an environment of its own."""
