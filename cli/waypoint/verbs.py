"""What `ambit waypoint` does: looks at a World, changes it, waits, says what is in the way."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Final

from cli.cluster.checks import WARN, Check
from cli.cluster.console import Console
from cli.output import STRUCTURED, printable, structured
from cli.waypoint import shape
from cli.waypoint.shape import View
from cli.waypoint.world import World
from mesh.errors import ConfigError, NotFound
from mesh.ports import LABEL_DATAPLANE_MODE
from waypoint.config.binding import USE

NOT_READY: Final = 3  # exit code: applied, and not ready in time
_TURN: Final = 0.3  # seconds between looks


def generate(options: argparse.Namespace) -> int:
    """Print a waypoint's Gateway."""
    made = shape.manifest(options.name, options.namespace or "", options.traffic)
    print(structured(made, "yaml"))
    return 0


def apply(world: World, options: argparse.Namespace) -> int:
    """Make or change a waypoint, wait for it, have its namespace use it."""
    namespace, name, console = options.namespace, shape.check_name(options.name), Console()
    space = _namespace(world, namespace)
    present = next((o for o in world.gateways(namespace) if o["metadata"]["name"] == name), None)
    classes = world.classes()
    made = shape.manifest(name, namespace, options.traffic, shape.choose_class(classes))
    if present is not None:
        if not shape.select([present], classes, namespace, ()):
            raise ConfigError(f"{shape.not_a_waypoint(present)}; choose another --name")
        made["spec"]["gatewayClassName"] = present["spec"]["gatewayClassName"]
    labels: dict[str, str | None] = {}
    if options.enroll:
        labels = shape.enrolment(space, name, options.overwrite)
        if not shape.is_ambient(space):
            label = f"{LABEL_DATAPLANE_MODE}=ambient"
            what = f"namespace {namespace} is not labelled {label}: only pods that are themselves"
            what += " are in the mesh"
            next_step = world.label_command("namespace", "", namespace, label)
            console.check(Check(WARN, what, next_step))
    console.done(f"waypoint {namespace}/{name} {world.apply(made, options.overwrite)}")
    if options.wait:
        begun = time.monotonic()
        (found,) = _wait(world, namespace, [name], options.timeout, console)
        if not found.ready:
            _explain(world, found, console)
            kept = f"; namespace {namespace} was not labelled" if labels else ""
            console.line(f"Not ready within {options.timeout:.0f} s. What was applied stays{kept}.")
            return NOT_READY
        console.done(f"waypoint {namespace}/{name} is ready", time.monotonic() - begun)
    if labels:
        world.label_namespace(namespace, labels)
        console.done(f"namespace {namespace} labelled {USE}={name}")
        if not options.wait:
            console.line("    until the waypoint is ready, its traffic is refused")
    return 0


def list_(world: World, options: argparse.Namespace) -> int:
    """List waypoints."""
    views = _views(world, options, ())
    if options.output in STRUCTURED:
        print(structured([v.structured() for v in views], options.output))
    elif views:
        print(shape.listing(views, options.everywhere))
    else:
        _none(options)
    return 0


def status(world: World, options: argparse.Namespace) -> int:
    """Say whether waypoints are ready, and why not; 0 when all are."""
    names = [options.waypoint] if options.waypoint else []
    if names and options.everywhere:
        raise ConfigError(f"{options.waypoint} -A: a name belongs to one namespace: give -n")
    views = _views(world, options, names)
    if not views:
        if options.output in STRUCTURED:
            print(structured([], options.output))
        else:
            _none(options)
        return 0
    if options.wait and not all(v.settled for v in views):
        place = "" if options.everywhere else options.namespace
        views = _wait(world, place, names, options.timeout, Console(sys.stderr))
    wrong = {v.key: _reasons(world, v) for v in views if not v.ready}
    if options.output in STRUCTURED:
        shown = [{**v.structured(), "details": wrong.get(v.key, [])} for v in views]
        print(structured(shown, options.output))
        return 1 if wrong else 0
    print(shape.statuses(views, options.everywhere))
    for key, lines in wrong.items():
        print("\n".join(printable(line) for line in ["", f"WRONG: {key}", *lines]))
    return 1 if wrong else 0


def delete(world: World, options: argparse.Namespace) -> int:
    """Delete waypoints, having said whose traffic will be refused then."""
    if bool(options.names) == options.all:
        raise ConfigError("name the waypoints to delete, or give --all for those of the namespace")
    namespace, console = options.namespace, Console()
    _namespace(world, namespace)
    found = shape.select(world.gateways(namespace), world.classes(), namespace, options.names)
    if not found:
        _none(options)
        return 0
    names = [o["metadata"]["name"] for o in found]
    for name in names:
        console.line(f"  - Gateway {namespace}/{name}, and all that was made of it")
        _warn_of(world, shape.uses(world.users(name), namespace, name), name, console)
    if not options.yes and not console.ask("Go on?"):
        console.line("Nothing was changed.")
        return 1
    for name in names:
        gone = world.delete(namespace, name)
        console.done(f"waypoint {namespace}/{name} {'deleted' if gone else 'was gone already'}")
    return 0


def _warn_of(world: World, using: list[shape.Object], name: str, console: Console) -> None:
    """Say whose traffic will be refused without a waypoint."""
    if using:
        what = f"these are labelled to use {name}, and their traffic will be refused: "
        what += shape.some([shape.called(obj) for obj in using])
        meta, kind = using[0]["metadata"], using[0]["kind"].lower()
        step = world.label_command(kind, meta.get("namespace") or "", meta["name"], f"{USE}-")
        console.check(Check(WARN, what, step))


# ---- looking ---------------------------------------------------------------------------------


def _namespace(world: World, name: str) -> shape.Object:
    found = world.namespace(shape.check_namespace(name))
    if found is None:
        raise NotFound(f"there is no namespace {name}; make it with: {world.make_namespace(name)}")
    return found


def _views(world: World, options: argparse.Namespace, names: Sequence[str]) -> list[View]:
    if not options.everywhere:
        _namespace(world, options.namespace)
    return _look(world, "" if options.everywhere else options.namespace, names)


def _look(world: World, namespace: str, names: Sequence[str]) -> list[View]:
    classes = world.classes()
    found = shape.select(world.gateways(namespace), classes, namespace, names)
    return [shape.view(gateway, classes) for gateway in found]


def _wait(
    world: World, namespace: str, names: Sequence[str], timeout: float, console: Console
) -> list[View]:
    """Look until all are settled, for `timeout` seconds at most; returns the last look."""
    deadline = time.monotonic() + timeout
    while True:
        views = _look(world, namespace, names)
        waiting = [v for v in views if not v.settled]
        if not waiting or time.monotonic() >= deadline:
            return views
        console.doing(", ".join(f"{v.key}: {v.message}" for v in waiting))
        time.sleep(_TURN)


def _reasons(world: World, found: View) -> list[str]:
    """Lines on why it is not ready, and the next step."""
    lines = [f"  {found.reason}: {found.message}"]
    if found.accepted == "False":
        return [*lines, f"      next: correct Gateway {found.key}, or what the message names"]
    return [*lines, *(f"  {line}" for line in world.why(found.namespace, found.name))]


def _explain(world: World, found: View, console: Console) -> None:
    console.line(f"waypoint {found.key} is not ready:")
    for line in _reasons(world, found):
        console.line(line)


def _none(options: argparse.Namespace) -> None:
    everywhere = getattr(options, "everywhere", False)
    where = "" if everywhere else f" in namespace {options.namespace} (list -A: all)"
    sys.stderr.write(f"no waypoints{where}\n")
