"""Become a process of a pod or a node: `launch.py SPEC COMMAND...`, SPEC being JSON.

    {"netns": path or null, "cgroup": path, "mounts": {target: source}, "cwd": path or null,
     "env": {name: text}, "log": path or null, "session": bool}

A program of its own that imports next to nothing: it runs once for every process of the lab, and
what it changes (namespaces, control group, mounts) it changes in itself, then it becomes COMMAND.
The descriptor in LAB_STARTED_FD, if there is one, reaches its end of file when that has happened;
when it could not, a byte comes first.
Exits 127 when COMMAND is not found, 126 when it or its place cannot be used.
"""

import ctypes
import json
import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_CLONE_NEWNS = 0x20000  # linux/sched.h
_CLONE_NEWNET = 0x40000000
_MS_BIND, _MS_REC, _MS_SLAVE = 0x1000, 0x4000, 0x80000  # linux/mount.h

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)


def _mount(source: "str | None", target: str, flags: int) -> None:
    raw = source.encode() if source else None
    _check(_libc.mount(raw, target.encode(), None, ctypes.c_ulong(flags), None), target)


def enter(spec: "dict[str, Any]") -> None:
    """Move into the place that SPEC names; raises OSError."""
    if spec.get("session"):
        os.setsid()
    if spec.get("log"):
        fd = os.open(str(spec["log"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        os.close(fd)
    with open(os.path.join(str(spec["cgroup"]), "cgroup.procs"), "w") as group:
        group.write("0")
    if spec.get("netns"):
        fd = os.open(str(spec["netns"]), os.O_RDONLY)
        _check(_libc.setns(fd, _CLONE_NEWNET), str(spec["netns"]))
        os.close(fd)
    mounts = spec.get("mounts")
    if isinstance(mounts, dict) and mounts:
        _check(_libc.unshare(_CLONE_NEWNS), "unshare")
        # Slave: later mounts of the machine (a new /run/netns/NAME) still show up here.
        _mount(None, "/", _MS_REC | _MS_SLAVE)
        for target, source in mounts.items():
            _mount(source, os.path.realpath(target), _MS_BIND)
    if spec.get("cwd"):
        os.chdir(str(spec["cwd"]))


def main() -> None:
    """Do it."""
    spec, command = json.loads(sys.argv[1]), sys.argv[2:]
    started = int(os.environ.get("LAB_STARTED_FD", "-1"))
    if started >= 0:
        os.set_inheritable(started, False)
    code, why = _become(spec, command)
    sys.stderr.write(f"{why}\n")
    if started >= 0:
        os.write(started, b"x")
    sys.exit(code)


def _become(spec: "dict[str, Any]", command: "list[str]") -> "tuple[int, str]":
    """Turn into the command, or say why not, and the exit code for it."""
    if not command:
        return 126, "no command: the container needs `command` (no image is pulled)"
    try:
        enter(spec)
    except OSError as error:
        return 126, f"cannot start {command[0]}: {error}"
    # The interpreter ignores these; the program it becomes should not start so.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        os.execvpe(command[0], command, spec["env"])
    except FileNotFoundError:
        return 127, f"{command[0]}: not found in PATH {spec['env'].get('PATH', '')}"
    except OSError as error:
        return 126, f"{command[0]}: {error.strerror}"


if __name__ == "__main__":
    main()
