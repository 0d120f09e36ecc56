"""Training of models of our own; needs torch, and a GPU for more than a rehearsal."""
