"""A gRPC server of every method, and calls to it.

python grpc_echo.py serve PORT VERSION       answers any call with its version and what it saw
python grpc_echo.py call HOST:PORT METHOD    prints the answer, or the name of the call's status
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc


class Echo(grpc.GenericRpcHandler):
    """Answers every unary call with JSON."""

    def __init__(self, version: str) -> None:
        self._version = version

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            seen = {k: str(v) for k, v in details.invocation_metadata or ()}
            said = {"version": self._version, "method": details.method, "metadata": seen}
            return json.dumps(said).encode()

        return grpc.unary_unary_rpc_method_handler(answer)


def serve(port: int, version: str) -> None:
    """Serve until killed."""
    server = grpc.server(ThreadPoolExecutor(8), handlers=[Echo(version)])
    server.add_insecure_port(f"[::]:{port}")
    server.start()
    server.wait_for_termination()


def call(target: str, method: str) -> str:
    """Make one call."""
    with grpc.insecure_channel(target) as channel:
        try:
            answer: Any = channel.unary_unary(method)(b"", timeout=5)
        except grpc.RpcError as e:
            return str(e.code().name)
        return bytes(answer).decode()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]), sys.argv[3])
    else:
        print(call(sys.argv[2], sys.argv[3]))
