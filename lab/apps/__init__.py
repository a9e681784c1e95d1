"""Small programs that pods of the examples run."""
