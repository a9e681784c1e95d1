"""The folder of a waypoint's sockets: private, this process's alone, gone at its end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from pathlib import Path
from typing import Final

from mesh.errors import ConfigError

_LOCK: Final = "lock"


class RunFolder:
    """Makes the folder; who asks Envoy's socket there gets its key, so nobody else may."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = -1

    def __enter__(self) -> RunFolder:
        """Take it; raises ConfigError where that cannot be."""
        try:
            with contextlib.suppress(FileExistsError):
                self._path.mkdir(0o700, parents=True)
            found = os.lstat(self._path)
            if found.st_uid != os.getuid() or not self._path.is_dir() or self._path.is_symlink():
                raise ConfigError(f"RUN_DIR {self._path} is not a folder of this user's")
            self._path.chmod(0o700)
            self._lock = os.open(self._path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            os.close(self._lock)
            raise ConfigError(
                f"RUN_DIR {self._path} is in use: another ambit-waypoint runs here"
            ) from e
        except OSError as e:
            raise ConfigError(f"RUN_DIR {self._path}: {e.strerror}") from e
        return self

    def __exit__(self, *_: object) -> None:
        """Remove it."""
        shutil.rmtree(self._path, ignore_errors=True)
        os.close(self._lock)
