"""The flash image: grids, writer and checked reader, integer reference."""
