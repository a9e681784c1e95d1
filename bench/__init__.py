"""What the mesh costs, as ratios of one interleaved run: `python -m bench --help`."""
