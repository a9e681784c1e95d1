"""A relay worker process: `python -m ztunnel.relay.worker --fd K`, started by ambit-ztunnel."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Before anything loads OpenSSL, which reads this once: TLS 1.3 with AES-128-GCM first, for which
# Python 3.11's ssl has no call.
os.environ["OPENSSL_CONF"] = str(Path(__file__).with_name("openssl.cnf"))

import argparse
import gc
import logging
import resource
import signal
import socket

from mesh.errors import ConfigError
from ztunnel.relay.capture import EBPF, NFTABLES, Capture, NftCapture
from ztunnel.relay.context import Settings
from ztunnel.relay.control import Control
from ztunnel.relay.loop import Loop

log = logging.getLogger("ambit.relay")


def serve(fd: int, captures: dict[int, Capture], settings: Settings) -> None:
    """Relay until the control process closes its end or a drain is over."""
    # The control process decides when workers end; a terminal's Ctrl-C reaches both.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # Connections hold no cycles that would need collecting while bytes wait: what start-up made
    # is never looked at again, and the rest rarely.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    loop = Loop()
    Control(loop, socket.socket(fileno=fd), settings, captures)
    loop.run()


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python -m ztunnel.relay.worker",
        description="Relay worker of ambit-ztunnel. Started by it, not by hand.",
    )
    parser.add_argument("--fd", type=int, required=True, help="socket to the control process")
    parser.add_argument("--log-level", default="INFO", help="DEBUG, INFO, WARNING or ERROR")
    args = parser.parse_args(argv)
    logging.basicConfig(
        level=args.log_level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    try:
        settings = Settings.of_process()
    except ConfigError as e:
        log.error("%s", e)
        return 2
    serve(args.fd, {EBPF: Capture(), NFTABLES: NftCapture()}, settings)
    return 0


if __name__ == "__main__":
    sys.exit(main())
