"""The cluster's CA: Secrets in, what signs out; and, by the leader, roots to every namespace.

Every replica reads the same Secrets and the same record of roots (control_plane.ca.rotation) and
comes to the same conclusion by itself; only the leader writes, in this order: the roots into every
ConfigMap, then that they are there, then the next step of a rotation. Each write is whole, so the
next leader goes on wherever this one stopped.
"""

from __future__ import annotations

import datetime
import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from control_plane.ca.current import CurrentCa
from control_plane.ca.root import SigningCa, fingerprint
from control_plane.ca.rotation import (
    Ledger,
    advance,
    choose_signer,
    overlap_of,
    trusted_roots,
)
from control_plane.kubernetes.events import Events
from control_plane.kubernetes.naming import PLUGGED, SELF_SIGNED
from control_plane.kubernetes.roots import RootMaps
from control_plane.kubernetes.secrets import (
    SelfSigned,
    make_secret,
    next_step,
    read_plugged,
    read_self_signed,
    write_back,
)
from control_plane.kubernetes.source import ObjectCache
from mesh.errors import BadInput, ConfigError, Unavailable
from mesh.kube.api import Api, ApiError
from mesh.kube.kinds import Kind
from mesh.kube.reflector import Observer, Reflector

log = logging.getLogger(__name__)

Object = dict[str, Any]
_KEPT: Final = ("name", "labels", "annotations")  # of a Secret that is put back
_ENDING: Final = datetime.timedelta(days=30)
_LISTING: Final = 0.05  # seconds between looks at whether all is listed
TICK: Final = 2.0  # seconds between looks at the clock; changes are seen at once


@dataclass(frozen=True, slots=True)
class CaSettings:
    """What the operator decides. overlap None: as long as certificates live."""

    namespace: str
    organization: str  # of the self-signed root: the trust domain
    longest: datetime.timedelta
    overlap: datetime.timedelta | None


def _secret(namespace: str, name: str) -> Kind:
    return Kind(
        "Secret", "secrets", namespace=namespace, selector=f"metadata.name={name}", keep=None
    )


class ClusterCa:
    """Keeps a CurrentCa current. One thread; reflectors have their own."""

    def __init__(
        self,
        api: Api,
        settings: CaSettings,
        current: CurrentCa,
        maps: RootMaps,
        events: Events,
        leading: Callable[[], bool],
        observer: Observer,
        clock: Callable[[], datetime.datetime],
        news: threading.Event,
    ) -> None:
        self._api = api
        self._settings = settings
        self._current = current
        self._maps = maps
        self._events = events
        self._leading = leading
        self._clock = clock
        self._news = news  # set by whatever is read here
        self._secrets = {name: ObjectCache(news) for name in (PLUGGED, SELF_SIGNED)}
        self._reflectors = {
            name: Reflector(api, _secret(settings.namespace, name), cache, observer)
            for name, cache in self._secrets.items()
        }
        self._plugged: SigningCa | None = None
        self._own: SelfSigned | None = None
        self._own_secret: Object | None = None  # as last seen: to put it back
        self._previous: SigningCa | None = None
        self._read: dict[str, Object | None] = {}  # what the two above were read from
        self._bad: dict[str, str] = {}  # Secret: what is wrong with it
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ca", daemon=True)
        self._trouble = ""

    @property
    def problems(self) -> list[str]:
        """Say what keeps the CA from being what the Secrets say."""
        reading = [f"{r.name}: {r.problem}" for r in self._reflectors.values() if r.problem]
        more = [p for p in (self._maps.problem, self._trouble) if p]
        return [*reading, *self._bad.values(), *more]

    def start(self) -> None:
        """Begin."""
        for reflector in self._reflectors.values():
            reflector.start()
        self._maps.start()
        self._thread.start()

    def stop(self) -> None:
        """End soon."""
        self._stop.set()
        self._news.set()
        for reflector in self._reflectors.values():
            reflector.stop()
        self._maps.stop()
        if self._thread.ident is not None:
            self._thread.join(2.0)

    # ---- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.tick()
                trouble = ""
            except (ApiError, Unavailable, BadInput, ConfigError) as e:
                trouble = str(e)
            except Exception:  # must not end: certificates would, later, without a word
                log.exception("the CA's upkeep failed; tried again")
                trouble = "the CA's upkeep failed; see the log"
            if trouble and trouble != self._trouble:
                log.warning("CA: %s", trouble)
            self._trouble = trouble
            self._wait()

    def _wait(self) -> None:
        """Until the clock must be looked at again, or something that is read has changed."""
        pause = TICK * (0.75 + 0.5 * random.random()) if self._listed else _LISTING
        self._news.wait(pause)
        self._news.clear()

    @property
    def _listed(self) -> bool:
        return self._maps.listed and all(r.listed for r in self._reflectors.values())

    def tick(self) -> None:
        """Look at everything once and do what is due."""
        if not self._listed:
            return
        now = self._clock()
        self._read_secrets(now)
        if self._plugged is None and self._own is None and not self._bad:
            self._create(now)
            return
        candidates = [
            *([self._plugged] if self._plugged is not None else []),
            *(self._own.candidates if self._own is not None else []),
        ]
        ledger = self._maps.ledger
        overlap = overlap_of(ledger, self._settings.longest, self._settings.overlap)
        if self._previous is None and PLUGGED in self._bad:
            return  # it would sign if it were right: said, and not passed over
        signer = choose_signer(candidates, self._previous, ledger, overlap, now)
        if signer is None:
            return
        distributed = self._maps.distributed
        roots = trusted_roots(signer, candidates, distributed, ledger, overlap, now)
        self._previous = replace(signer, roots=(signer.root,))
        self._current.replace(replace(signer, roots=roots))
        if self._leading():
            self._lead(signer, candidates, ledger, overlap, now)

    # ---- Secrets -------------------------------------------------------------------------------

    def _read_secrets(self, now: datetime.datetime) -> None:
        for name, cache in self._secrets.items():
            found = next(iter(cache.objects("Secret")), None)
            if name in self._read and found == self._read[name]:
                continue
            self._read[name] = found
            self._bad.pop(name, None)
            try:
                if name == PLUGGED:
                    self._plugged = read_plugged(found, now) if found else None
                else:
                    self._own = read_self_signed(found, now) if found else None
                    self._own_secret = found or self._own_secret
            except ConfigError as e:
                # What was good before goes on; at a start there is nothing, and that is not hidden.
                self._bad[name] = str(e)
                self._events.tell("Secret", name, "InvalidCA", str(e), warning=True)

    def _create(self, now: datetime.datetime) -> None:
        """Make the self-signed root, or put it back. Of two replicas one succeeds."""
        namespace = self._settings.namespace
        if self._own_secret is not None:
            if not self._leading():
                return
            secret = dict(self._own_secret)
            kept = {k: v for k, v in secret["metadata"].items() if k in _KEPT}
            secret["metadata"] = {**kept, "namespace": namespace}
            log.warning("Secret %s/%s was deleted: put back", namespace, SELF_SIGNED)
        else:
            secret = make_secret(namespace, self._settings.organization, now)
            log.info("making a new self-signed root, Secret %s/%s", namespace, SELF_SIGNED)
        try:
            self._api.request("POST", f"/api/v1/namespaces/{namespace}/secrets", body=secret)
        except ApiError as e:
            if e.status != 409:
                raise
            log.info("another replica has made it")

    # ---- the leader's part ---------------------------------------------------------------------

    def _lead(
        self,
        signer: SigningCa,
        candidates: list[SigningCa],
        ledger: Ledger,
        overlap: datetime.timedelta,
        now: datetime.datetime,
    ) -> None:
        if candidates and signer.certificate != candidates[0].certificate:
            self._tell_waiting(candidates[0], ledger, overlap)
        self._tell_ending(signer, now)
        if not self._maps.spread(self._current.ca.roots, ledger):
            return
        roots = self._current.ca.roots
        new = advance(ledger, signer, roots, self._settings.longest, now)
        if new != ledger:
            self._maps.record(roots, new)
            return  # and the next step when it has come back
        if self._own is None or SELF_SIGNED in self._bad:
            return
        signs = self._plugged is None and PLUGGED not in self._bad
        step = next_step(self._own, signs, ledger, overlap, self._settings.organization, now)
        if step is None or self._own_secret is None:
            return
        path = f"/api/v1/namespaces/{self._settings.namespace}/secrets/{SELF_SIGNED}"
        secret = self._api.request("GET", path)
        if secret.get("data") != self._own_secret.get("data") or not self._leading():
            return  # changed meanwhile: its watch will tell
        self._api.request("PUT", path, body=write_back(secret, step.own, now))
        self._events.tell("Secret", SELF_SIGNED, step.reason, step.message)

    def _tell_waiting(self, wanted: SigningCa, ledger: Ledger, overlap: datetime.timedelta) -> None:
        if self._plugged is not wanted:
            return  # the self-signed root's own rotation says so itself
        trusted = ledger.trusted(wanted.root)
        if trusted is not None:
            when = f"{trusted + overlap:%Y-%m-%d %H:%M}Z"
            self._events.tell(
                "Secret",
                PLUGGED,
                "CAWaits",
                f"its root {fingerprint(wanted.root)[:12]} is new to the mesh: it is distributed"
                f" now and signs from {when} on, when no proxy is left that does not trust it",
            )

    def _tell_ending(self, signer: SigningCa, now: datetime.datetime) -> None:
        end = min(signer.certificate.not_valid_after_utc, signer.root.not_valid_after_utc)
        if self._plugged is not None and end - now < _ENDING:
            text = f"ends at {end:%Y-%m-%d %H:%M}Z, and with it every certificate: replace it"
            self._events.tell("Secret", PLUGGED, "CAEnds", text, warning=True)
