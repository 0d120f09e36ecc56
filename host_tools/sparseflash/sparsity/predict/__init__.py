"""What tells the mask early, and its training."""
