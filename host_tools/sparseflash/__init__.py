"""Sparseflash: language models on small devices, reading only the weights each token needs."""

__version__ = "0.1.0"
