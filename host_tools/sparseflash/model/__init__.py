"""A model in memory: architecture, loaders, tokenizer, recipes, the float model."""
