"""``python -m sparseflash.cli``."""

from sparseflash.cli import main

main()
