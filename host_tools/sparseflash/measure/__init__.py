"""What the C computes, measured in this process: perplexity and statistics."""
