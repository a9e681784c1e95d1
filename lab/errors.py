"""What the lab raises on purpose."""

from mesh.errors import MeshError


class LabError(MeshError):
    """The lab cannot do what was asked; the message names the object and the next step."""
