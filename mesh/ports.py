"""Every port, mark and well-known name Ambit uses, in one table.

The numbers are Istio ambient's, so that NetworkPolicies, dashboards and habits keep working.
"""

from typing import Final

# Inside each enrolled pod's network namespace.
OUTBOUND: Final = 15001  # captured outbound TCP
INBOUND_PLAIN: Final = 15006  # captured inbound TCP that is not HBONE
INBOUND_HBONE: Final = 15008  # HTTP/2 CONNECT over mutual TLS

# Inside ztunnel's own namespace.
ZTUNNEL_ADMIN: Final = 15000  # loopback only
ZTUNNEL_METRICS: Final = 15020
ZTUNNEL_READY: Final = 15021

# Control plane.
XDS_CA_TLS: Final = 15012  # xDS and CA, gRPC over TLS
CONTROL_PLANE_METRICS: Final = 15014

# Node agent.
AGENT_HEALTH: Final = 8000
AGENT_METRICS: Final = 15014

PACKET_MARK: Final = 0x539  # 1337: on the proxy's own sockets, used by the nftables fallback

# Private setsockopt(SOL_IP) a relay uses to tell the kernel hooks who the real client is.
SO_REAL_SOURCE: Final = 0x5A17
SO_ORIGINAL_DST: Final = 80  # linux/netfilter_ipv4.h, same number for IPv6

ROOT_NAMESPACE: Final = "istio-system"
DEFAULT_TRUST_DOMAIN: Final = "cluster.local"
CLUSTER_DOMAIN: Final = "cluster.local"
DEFAULT_CLUSTER_ID: Final = "Kubernetes"

LABEL_DATAPLANE_MODE: Final = "istio.io/dataplane-mode"  # ambient | none
ANNOTATION_REDIRECTION: Final = "ambient.istio.io/redirection"  # enabled | pending

ZDS_SOCKET: Final = "/var/run/ztunnel/ztunnel.sock"
TOKEN_AUDIENCE: Final = "istio-ca"

# Enrolment proof: connections to these never carry user traffic. A captured pod's connect() to a
# documentation address (RFC 5737, RFC 3849) succeeds only through the hooks; a connect() to a
# captured pod's PROBE_PORT, where nothing listens, succeeds only through inbound steering. The
# relay closes both at once, without a log line or a metric.
PROBE_V4: Final = "192.0.2.1"
PROBE_V6: Final = "2001:db8::1"
PROBE_PORT: Final = 15011
