"""Certificates as a proxy gets them: key and request made here, signed by the mesh's CA."""
