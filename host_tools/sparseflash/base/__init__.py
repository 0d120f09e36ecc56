"""Errors, files that appear whole or not at all, sizes, programs."""
