"""Wire codecs: bytes in, values out, and back; no sockets, no clocks."""

from mesh.compiled import choose

choose()
