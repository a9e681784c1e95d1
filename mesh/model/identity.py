"""SPIFFE IDs of Kubernetes service accounts: spiffe://<trust domain>/ns/<ns>/sa/<sa>."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mesh.errors import BadInput

_FORM = re.compile(r"spiffe://([a-z0-9._-]{1,255})/ns/([a-z0-9-]{1,63})/sa/([a-z0-9.-]{1,253})")


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """One workload identity."""

    trust_domain: str
    namespace: str
    service_account: str

    def __str__(self) -> str:
        """Render the URI form."""
        return f"spiffe://{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"

    @property
    def principal(self) -> str:
        """The form AuthorizationPolicy compares: the URI without its scheme."""
        return str(self)[len("spiffe://") :]

    @classmethod
    def parse_untrusted(cls, uri: str) -> SpiffeId:
        """Parse a URI from a certificate, CSR or message; raises BadInput."""
        m = _FORM.fullmatch(uri)
        if m is None:
            raise BadInput(
                f"not a workload identity: {uri[:300]!r}"
                " (expected spiffe://<trust domain>/ns/<ns>/sa/<sa>)"
            )
        return cls(*m.groups())
