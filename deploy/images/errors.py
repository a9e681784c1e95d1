"""What can go wrong while images are built, in words for who builds them."""

from __future__ import annotations


class ImageError(Exception):
    """Carries a message that names the object and the next step; the command prints it."""


class Dropped(ImageError):
    """A pinned package can no longer be had."""
