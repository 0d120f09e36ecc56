"""Training: distillation to fewer bytes, and models of our own. Needs torch; a GPU is wanted."""
