"""Plan to C, C to firmware, and the size of the result."""
