"""Errors that cross a room's door.

Split by whose fault it is. A message names the object and the next step. A class exists only
where somebody catches it.
"""


class MeshError(Exception):
    """Root of everything Ambit raises on purpose."""


class BadInput(MeshError):
    """Bytes or objects from outside break their contract; nothing was changed because of them."""


class ConfigError(MeshError):
    """What the operator wrote cannot work; the message says where and what to write instead."""


class Unsupported(MeshError):
    """This kernel or machine lacks something; the message names it, the cause and the way out."""


class NotFound(MeshError):
    """The named object does not exist."""


class Unavailable(MeshError):
    """Somebody who is needed for an answer does not give one now; trying again later may help."""
