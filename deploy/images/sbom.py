"""The list of what is in an image, as SPDX 2.3 JSON. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from deploy.images.oci import Image, timestamp

_SCHEMES: Final = {
    "deb": "pkg:deb/debian/{name}@{version}?arch=amd64&distro=debian-12",
    "pypi": "pkg:pypi/{name}@{version}",
    "golang": "pkg:golang/{name}@{version}",
}


@dataclass(frozen=True, slots=True)
class Component:
    """One package in an image; kind: deb, pypi or golang; sha256 of what it came in, if known."""

    kind: str
    name: str
    version: str
    sha256: str = ""

    @property
    def purl(self) -> str:
        """Its package URL, as scanners look it up."""
        version = quote(self.version, safe="~.-")
        return _SCHEMES[self.kind].format(name=quote(self.name, safe="/."), version=version)


def spdx(image: Image, components: Iterable[Component], epoch: int) -> str:
    """The document: the image, and each component as contained in it."""
    name = image.reference.rpartition("/")[2]
    packages = [_package(c) for c in sorted(components, key=lambda c: (c.kind, c.name))]
    root = {
        "SPDXID": "SPDXRef-image",
        "name": name,
        "versionInfo": image.digest,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "primaryPackagePurpose": "CONTAINER",
    }
    document = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": name,
        # A name, not a place: the standard wants a URI that is nobody else's.
        "documentNamespace": f"urn:ambit:image:{image.digest}",
        "creationInfo": {
            "created": timestamp(epoch),
            "creators": ["Tool: deploy.images"],
        },
        "packages": [root, *packages],
        "relationships": [
            _relation("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-image"),
            *(_relation("SPDXRef-image", "CONTAINS", p["SPDXID"]) for p in packages),
        ],
    }
    return json.dumps(document, indent=1) + "\n"


def _package(component: Component) -> dict[str, Any]:
    found: dict[str, Any] = {
        "SPDXID": "SPDXRef-" + re.sub(r"[^A-Za-z0-9.-]", "-", f"{component.kind}-{component.name}"),
        "name": component.name,
        "versionInfo": component.version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "externalRefs": [
            {
                "referenceCategory": "PACKAGE-MANAGER",
                "referenceType": "purl",
                "referenceLocator": component.purl,
            }
        ],
    }
    if component.sha256:
        found["checksums"] = [{"algorithm": "SHA256", "checksumValue": component.sha256}]
    return found


def _relation(one: str, kind: str, other: str) -> dict[str, str]:
    return {"spdxElementId": one, "relationshipType": kind, "relatedSpdxElement": other}
