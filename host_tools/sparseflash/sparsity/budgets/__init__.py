"""Ways to share a budget over layers and sites."""
