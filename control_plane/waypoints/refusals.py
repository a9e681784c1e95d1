"""What a waypoint's Envoys refuse, and what they are served instead: what worked before. Pure.

Envoy keeps what it had when it refuses something; but a new pod has nothing to keep, and the
listener that all services share would not move any more for the sake of one. So what is refused is
served as it was accepted last, until it is another. Where the listener is refused, its new parts
are tried in halves, in a second listener that nothing is sent to, until the bad one is alone; it
is left as it was, and the others go on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mesh.manifest import Key
from mesh.xds.delta import Resource

Name = tuple[str, str]  # type, name
Parts = Mapping[Key, Any]  # of a listener, by what they are for
_REMEMBERED: Final = 8  # listeners that may be answered for yet


class Refusals:
    """Of one waypoint: resources that stand alone."""

    def __init__(self) -> None:
        self._accepted: dict[Name, Resource] = {}
        self._refused: dict[Name, tuple[str, str]] = {}  # version, error

    def accept(self, resource: Resource) -> None:
        """An Envoy has taken something."""
        self._accepted[resource.type_url, resource.name] = resource

    def refuse(self, resource: Resource, error: str) -> bool:
        """An Envoy has refused something; returns whether that is news."""
        name = resource.type_url, resource.name
        accepted = self._accepted.get(name)
        if accepted is not None and accepted.version == resource.version:
            return False  # another Envoy took it
        if name in self._refused and self._refused[name][0] == resource.version:
            return False
        self._refused[name] = (resource.version, error)
        return True

    def serve(self, wanted: dict[str, dict[str, Resource]]) -> None:
        """Put what was accepted in the place of what is refused.

        What was never accepted stays: it is not sent again to those who refused it, and taking it
        away could take what they have kept.
        """
        for name, (version, _) in list(self._refused.items()):
            here = wanted.get(name[0], {})
            there = here.get(name[1])
            if there is None or there.version != version:
                del self._refused[name]
            elif name in self._accepted:
                here[name[1]] = self._accepted[name]
        for name in [n for n in self._accepted if n[1] not in wanted.get(n[0], {})]:
            del self._accepted[name]

    @property
    def errors(self) -> Mapping[Name, str]:
        """What is refused now, and why."""
        return {name: error for name, (_, error) in self._refused.items()}


@dataclass(slots=True)
class Trial:
    """The parts of the shared listener, and the search for a bad one among them."""

    bad: dict[Key, tuple[Any, str]] = field(default_factory=dict)  # part, error
    _good: Parts = field(default_factory=dict)  # what the last accepted listener is made of
    _made: dict[str, Parts] = field(default_factory=dict)  # by version
    _base: Parts | None = None  # of the trial: known to be good; None: there is no trial
    _tested: list[Key] = field(default_factory=list)
    _waiting: list[list[Key]] = field(default_factory=list)
    _step: str = ""  # version of the trial's present listener

    @property
    def active(self) -> bool:
        """Whether a bad part is looked for."""
        return self._base is not None

    def choose(self, parts: Parts) -> Parts:
        """Choose what the listener is made of: a bad part stays as it was good, or away."""
        for key in [k for k, (value, _) in self.bad.items() if parts.get(k) != value]:
            del self.bad[key]
        chosen = {k: self._good.get(k) if k in self.bad else v for k, v in parts.items()}
        return {k: v for k, v in chosen.items() if v is not None}

    def choose_trial(self, parts: Parts) -> Parts:
        """Choose what the second listener is made of, while there is a trial."""
        tested = {k: parts[k] for k in self._tested if k in parts}
        return {**(self._base or {}), **tested}

    def made(self, version: str, parts: Parts, trial: bool) -> None:
        """Take note of what a listener of that version is made of."""
        if trial:
            self._step = version
        self._made.pop(version, None)
        self._made[version] = parts
        for old in list(self._made)[:-_REMEMBERED]:
            del self._made[old]

    def accept(self, version: str, trial: bool) -> bool:
        """It was taken; returns whether there is something else to serve."""
        parts = self._made.get(version)
        if parts is None:
            return False
        if not trial:
            self._good = parts
            return False
        if not self.active or version != self._step:
            return False
        self._base = parts
        self._next()
        return True

    def refuse(self, version: str, error: str, trial: bool) -> bool:
        """It was refused; returns whether there is something else to serve."""
        parts = self._made.get(version)
        if parts is None or trial != self.active or (trial and version != self._step):
            return False
        base = self._base if self._base is not None else self._good
        suspects = [k for k, v in sorted(parts.items()) if base.get(k) != v]
        if not suspects:
            return False
        if len(suspects) == 1:
            self.bad[suspects[0]] = (parts[suspects[0]], error)
            if self.active:
                self._next()
            return True
        half = len(suspects) // 2
        self._base = base
        self._tested, rest = suspects[:half], suspects[half:]
        self._waiting.insert(0, rest)
        return True

    def _next(self) -> None:
        """Try the next group; the end of the trial, if there is none."""
        if self._waiting:
            self._tested = self._waiting.pop(0)
        else:
            self._base, self._tested = None, []
