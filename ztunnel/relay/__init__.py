"""The byte path: compiled by mypyc where a compiler is there, the same source where not."""
