"""A service that judges requests for Envoy, and an issuer of tokens: `authz_server.py JWKS`.

8000  HTTP: 200 if the request it is told of has `x-pass: yes`, else 401; GET /keys is the JWKS
9000  gRPC (envoy.service.auth.v3.Authorization): the same, with 402
Consent carries the header x-user: who called, by x-forwarded-client-cert.
"""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from envoy.config.core.v3 import base_pb2
from envoy.service.auth.v3 import external_auth_pb2, external_auth_pb2_grpc
from google.rpc import code_pb2

CALLER = "x-forwarded-client-cert"


class Http(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        keys = self.path == "/keys"
        ok = keys or self.headers.get("x-pass") == "yes"
        body = sys.argv[1].encode() if keys else b""
        self.send_response(200 if ok else 401)
        self.send_header("x-user", self.headers.get(CALLER, ""))
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


class Grpc(external_auth_pb2_grpc.AuthorizationServicer):  # type: ignore[misc]
    def Check(self, request: Any, context: Any) -> Any:
        headers = request.attributes.request.http.headers
        answer = external_auth_pb2.CheckResponse()
        if headers.get("x-pass") == "yes":
            option = base_pb2.HeaderValueOption()
            option.header.key, option.header.value = "x-user", headers.get(CALLER, "")
            answer.ok_response.headers.append(option)
        else:
            answer.status.code = code_pb2.PERMISSION_DENIED
            answer.denied_response.status.code = 402
        return answer


def main() -> None:
    server = grpc.server(ThreadPoolExecutor(4))
    external_auth_pb2_grpc.add_AuthorizationServicer_to_server(Grpc(), server)
    server.add_insecure_port("[::]:9000")
    server.start()
    http = ThreadingHTTPServer(("0.0.0.0", 8000), Http)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
