"""What the model's values become on the channel: themselves, and no door for anything else."""

from __future__ import annotations

import enum
import io
import pickle
import pickletools

import pytest

from mesh import model
from mesh.errors import BadInput
from mesh.model import Action, Authorization, Scope
from ztunnel import channel

ENUMS = [
    c
    for name in model.__all__
    if isinstance(c := getattr(model, name), type) and issubclass(c, enum.Enum)
]


def unpickled(value: object) -> object:
    """Through the channel's own pickler and its restricted unpickler."""
    out = io.BytesIO()
    channel._Pickler(out, protocol=5).dump(value)
    names = [arg for op, arg, _ in pickletools.genops(out.getvalue()) if op.name == "GLOBAL"]
    assert not any("getattr" in str(n) for n in names)
    return channel._Unpickler(io.BytesIO(out.getvalue())).load()


@pytest.mark.parametrize("member", [m for c in ENUMS for m in c], ids=str)
def test_every_enum_member_of_the_model_arrives(member: enum.Enum) -> None:
    """As the same member of the same class."""
    arrived = unpickled(member)
    assert arrived is member


def test_a_policy_arrives_whole() -> None:
    """A worker that cannot read a policy ends, and with it every connection of its pods."""
    policy = Authorization(
        name="deny", namespace="shop", scope=Scope.WORKLOAD_SELECTOR, action=Action.DENY
    )
    arrived = unpickled(policy)
    assert arrived == policy
    assert isinstance(arrived, Authorization)
    assert arrived.action is Action.DENY


def test_getattr_stays_refused() -> None:
    """What a plain pickle of an enum calls on Python 3.11 would open everything."""
    with pytest.raises(BadInput, match="getattr"):
        channel.decode_untrusted(pickle.dumps(getattr))
