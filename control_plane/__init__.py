"""Ambit."""
