"""Container images, put together from Debian packages and wheels."""
