"""What an attacker tries: `tunnel` dials a pod's 15008 by hand, `csr` asks the CA for an identity.

Prints one line of JSON: how it ended. Uses the h2 library, not the mesh's own codec.
"""

from __future__ import annotations

import json
import socket
import ssl
import sys


def tunnel(address: str, authority: str, ca: str, chain: str, key: str) -> dict[str, object]:
    """TLS to address:15008 with the given client certificate ("-": none), then CONNECT."""
    import h2.config
    import h2.connection
    import h2.events

    context = ssl.create_default_context(cafile=ca)
    context.check_hostname = False
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    if chain != "-":
        context.load_cert_chain(chain, key)
    try:
        raw = socket.create_connection((address, 15008), 5)
        tls = context.wrap_socket(raw)
        h2c = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        h2c.initiate_connection()
        h2c.send_headers(1, [(":method", "CONNECT"), (":authority", authority)])
        tls.sendall(h2c.data_to_send())
        while True:
            data = tls.recv(65536)
            if not data:
                return {"end": "eof"}
            for event in h2c.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived):
                    headers = dict(event.headers)
                    status = headers.get(b":status") or headers.get(":status")
                    return {"end": "status", "status": int(status)}
                if isinstance(event, h2.events.StreamReset):
                    return {"end": "reset", "code": int(event.error_code)}
            tls.sendall(h2c.data_to_send())
    except (ssl.SSLError, OSError) as e:
        return {"end": "refused", "error": str(e)}


def csr(address: str, ca: str, token_file: str, identity: str) -> dict[str, object]:
    """CreateCertificate for identity with the token in token_file ("-": none)."""
    import grpc
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    from mesh.pb import citadel_pb2, citadel_pb2_grpc

    key = ec.generate_private_key(ec.SECP256R1())
    san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)])
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(san, critical=True)
        .sign(key, hashes.SHA256())
    )
    message = citadel_pb2.IstioCertificateRequest(
        csr=request.public_bytes(serialization.Encoding.PEM).decode(), validity_duration=3600
    )
    message.metadata.update({"ImpersonatedIdentity": identity})
    with open(ca, "rb") as f:
        credentials = grpc.ssl_channel_credentials(f.read())
    metadata = [("clusterid", "Kubernetes")]
    if token_file != "-":
        with open(token_file) as t:
            metadata.append(("authorization", f"Bearer {t.read().strip()}"))
    with grpc.secure_channel(f"{address}:15012", credentials) as channel:
        stub = citadel_pb2_grpc.IstioCertificateServiceStub(channel)
        try:
            answer = stub.CreateCertificate(message, metadata=metadata, timeout=10)
        except grpc.RpcError as e:
            return {"end": e.code().name, "error": e.details()}
    leaf = x509.load_pem_x509_certificate(answer.cert_chain[0].encode())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {"end": "OK", "san": [str(n.value) for n in names]}


if __name__ == "__main__":
    verbs = {"tunnel": tunnel, "csr": csr}
    sys.stdout.write(json.dumps(verbs[sys.argv[1]](*sys.argv[2:])) + "\n")
