"""The per-node L4 proxy: one control process, N relay workers that only relay."""
