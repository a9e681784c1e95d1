"""A CA in files: a root made once and kept in the data folder, or one that the operator plugs in.

Files are read again when they change. What does not fit together (or not yet: a key is replaced
before its certificate) is said, and what signed until then goes on.
"""

from __future__ import annotations

import datetime
import logging
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Final

from control_plane.ca.root import (
    CA_CERT,
    CA_KEY,
    CERT_CHAIN,
    ROOT_CERT,
    Piece,
    SigningCa,
    key_pem,
    new_root,
    pem,
    read_ca,
)
from mesh.errors import ConfigError

log = logging.getLogger(__name__)

_ROOT_KEY: Final = "root-key.pem"
_Stamp = tuple[int, int, int] | None  # st_mtime_ns, st_ino, st_size


def write_atomic(path: Path, data: bytes, mode: int) -> None:
    """Replace a file as a whole, on disk before it is seen; never readable with a wider mode."""
    tmp = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        tmp.rename(path)
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise


def _read(path: Path) -> Piece:
    try:
        return Piece(str(path), path.read_bytes())
    except OSError as e:
        raise ConfigError(f"{path}: {e.strerror}") from e


def _read_key(path: Path) -> Piece:
    if path.exists() and path.stat().st_mode & 0o077:
        try:
            path.chmod(0o600)
            log.warning("%s was readable by others; set to 0600", path)
        except OSError as e:  # a mounted Secret
            log.warning("%s is readable by others: %s", path, e.strerror)
    return _read(path)


def _create(data: Path, organization: str, now: datetime.datetime) -> None:
    made = new_root(organization, now)
    # The key first: a certificate without its key would be worse than none.
    write_atomic(data / _ROOT_KEY, key_pem(made.key), 0o600)
    write_atomic(data / ROOT_CERT, pem(made.certificate), 0o644)
    log.info("made a new root certificate, %s, valid 10 years", data / ROOT_CERT)


def load_or_create(data: Path, organization: str, now: datetime.datetime) -> SigningCa:
    """Load the self-signed root of a data folder, making one the first time.

    root-cert.pem may hold more certificates, which peers are told to trust too.
    """
    cert_path, key_path = data / ROOT_CERT, data / _ROOT_KEY
    lost = "{} is missing beside {}: restore it, or remove {} to start a new root"
    if not key_path.exists():
        if cert_path.exists():
            raise ConfigError(
                lost.format(key_path, cert_path, cert_path)
                + " (every proxy must then be given the new one)"
            )
        _create(data, organization, now)
    elif not cert_path.exists():
        raise ConfigError(
            lost.format(cert_path, key_path, key_path)
            + " (every proxy must then be given the new one)"
        )
    cert = _read(cert_path)
    return read_ca(cert, _read_key(key_path), cert, None, now)


def load_plugged(folder: Path, data: Path, now: datetime.datetime) -> SigningCa:
    """Load an operator's CA: ca-cert.pem, ca-key.pem, root-cert.pem, and cert-chain.pem if need be.

    The names are those of Istio's `cacerts` secret. The roots are copied to the data folder, where
    proxies are given them from.
    """
    chain_path = folder / CERT_CHAIN
    ca = read_ca(
        _read(folder / CA_CERT),
        _read_key(folder / CA_KEY),
        _read(folder / ROOT_CERT),
        _read(chain_path) if chain_path.exists() else None,
        now,
    )
    write_atomic(data / ROOT_CERT, ca.root_pem, 0o644)
    return ca


class FolderCa:
    """The CA of files, kept current. Raises ConfigError when it cannot be had at first."""

    def __init__(
        self,
        data: Path,
        ca_dir: Path | None,
        organization: str,
        clock: Callable[[], datetime.datetime],
    ) -> None:
        self._data = data
        self._ca_dir = ca_dir
        self._organization = organization
        self._clock = clock
        try:
            data.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.ca = self._load()
        except OSError as e:
            raise ConfigError(f"--data {data}: {e.strerror or e}") from e
        self._stamps = self._look()

    def _load(self) -> SigningCa:
        if self._ca_dir is not None:
            return load_plugged(self._ca_dir, self._data, self._clock())
        return load_or_create(self._data, self._organization, self._clock())

    def _look(self) -> list[_Stamp]:
        if self._ca_dir is not None:
            names = (CA_CERT, CA_KEY, ROOT_CERT, CERT_CHAIN)
            return [_stamp(self._ca_dir / name) for name in names]
        return [_stamp(self._data / name) for name in (ROOT_CERT, _ROOT_KEY)]

    def reload(self) -> SigningCa | None:
        """Read again what changed; returns the new CA when there is one."""
        stamps = self._look()
        if stamps == self._stamps:
            return None
        self._stamps = stamps
        where = self._ca_dir or self._data
        try:
            # In use already, a root is never made anew because its files are gone for a moment.
            if self._ca_dir is None and None in stamps:
                raise ConfigError(f"{where}: {ROOT_CERT} or {_ROOT_KEY} is missing: restore it")
            new = self._load()
        except (ConfigError, OSError) as e:
            log.error("%s changed and cannot be used: %s; signing goes on as before", where, e)
            return None
        if new == self.ca:
            return None
        self.ca = new
        log.info("%s changed and was read again", where)
        return new


def _stamp(path: Path) -> _Stamp:
    try:
        st = path.stat()
    except OSError:
        return None
    return st.st_mtime_ns, st.st_ino, st.st_size
