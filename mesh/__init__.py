"""The vocabulary every part of Ambit shares. Imports no other room."""

__version__ = "0.1.0"
