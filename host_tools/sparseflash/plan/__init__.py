"""Decisions for a board: what is resident, what streams, and whether it fits."""
