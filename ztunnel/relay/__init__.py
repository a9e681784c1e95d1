"""The relay workers: captured connections in, HBONE or plain TCP out, and back."""

from mesh.compiled import choose

choose()
