"""The page that compares every method."""
