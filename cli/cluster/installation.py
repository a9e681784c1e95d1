"""An installation: look, show what will be done, do it, wait, and say what was done."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from cli.chart.load import Chart, Rendered, load
from cli.cluster import look
from cli.cluster.carry import NotReady, carry_out
from cli.cluster.checks import Facts, judge, may_go_on
from cli.cluster.console import Console
from cli.cluster.inventory import Inventory
from cli.cluster.kube import Kube
from cli.cluster.objects import Object, Ref, ref
from cli.cluster.plan import Plan, build, describe, differs
from cli.cluster.settings import Settings, read_manifests, read_settings, render
from mesh.errors import ConfigError
from mesh.kube.api import ApiError

_GATEWAY_GROUP = "gateway.networking.k8s.io"


def install(options: argparse.Namespace) -> int:
    """Install as the options of `ambit install` say; returns its exit code."""
    chart, console = load(), Console()
    settings = read_settings(options, chart)
    gateway_api = _gateway_api(options.gateway_api_crds)
    kube = Kube.connect(options.kubeconfig, options.context)
    console.line(f"Ambit {chart.version}, profile {settings.profile}, into {kube.host}")
    prepared = _prepare(kube, chart, settings, gateway_api, console)
    if prepared is None:
        return 1
    plan, rendered, lines = prepared
    console.line("The plan:" if lines[0].strip()[0] in "+~-" else "There is nothing to change:")
    for line in lines:
        console.line(line)
    if options.dry_run:
        return 0
    if not options.yes and not console.ask("Go on?"):
        console.line("Nothing was changed.")
        return 1
    try:
        carry_out(kube, plan, console, options.timeout)
    except NotReady as e:
        console.line(str(e))
        console.line(
            f"Not ready within {options.timeout:.0f} s. What was applied stays and may still become"
            " ready; `ambit install` again looks and goes on."
        )
        return 3
    console.line(
        f"Ambit {chart.version} is in {settings.namespace}:"
        f" {len(plan.objects)} objects, {console.elapsed():.1f} s."
    )
    console.line()
    console.line(rendered.notes)
    return 0


def _gateway_api(path: Path | None) -> list[Object]:
    """Read the Gateway API's CRDs; whatever else is in a bundle, as its admission policy, too."""
    if path is None:
        return []
    objects = read_manifests(path)
    if not any(_is_gateway_crd(obj) for obj in objects):
        raise ConfigError(f"--gateway-api-crds {path}: has no CRD of {_GATEWAY_GROUP}")
    return objects


def _is_gateway_crd(obj: Object) -> bool:
    group = (obj.get("spec") or {}).get("group")
    return obj["kind"] == "CustomResourceDefinition" and group == _GATEWAY_GROUP


def _prepare(
    kube: Kube, chart: Chart, settings: Settings, gateway_api: list[Object], console: Console
) -> tuple[Plan, Rendered, list[str]] | None:
    """Look at the cluster and plan; None when something found forbids it."""
    served = kube.api_versions()
    if gateway_api:
        served.add(f"{_GATEWAY_GROUP}/v1/GatewayClass")
    rendered = render(chart, settings.values, served)
    everything = [*rendered.objects, *chart.crds(), *gateway_api]
    there = look.live(kube, everything)
    facts = look.gather(kube, there, [ref(o) for o in everything], settings.namespace)
    checks = judge(facts, settings.namespace, bool(gateway_api))
    for check in checks:
        console.check(check)
    if not may_go_on(checks):
        return None
    old = next((i for i in facts.installed if i.namespace == settings.namespace), None)
    if old is not None and old.objects:
        console.line(f"Installed now: Ambit {old.version}, profile {old.profile}.")
    new = Inventory(
        namespace=settings.namespace,
        version=chart.version,
        profile=settings.profile,
        values=settings.given,
        created_namespace=_creates_namespace(facts, there, old),
    )
    plan = build(rendered.objects, chart.crds(), gateway_api, there, new, old)
    lines = describe(plan, there, _changed(kube, plan, there))
    return plan, rendered, lines


def _creates_namespace(
    facts: Facts, there: Mapping[Ref, Object | None], old: Inventory | None
) -> bool:
    if old is not None:
        return old.created_namespace
    return any(of.kind == "Namespace" and obj is None for of, obj in there.items())


def _changed(kube: Kube, plan: Plan, there: Mapping[Ref, Object | None]) -> list[Ref]:
    """Ask the server which objects would change; raises ApiError for one it refuses."""
    changed = []
    for obj in plan.objects:
        now = there.get(ref(obj))
        if now is None:
            continue
        try:
            if differs(now, kube.apply(obj, dry_run=True)):
                changed.append(ref(obj))
        except ApiError as e:
            raise ConfigError(f"{ref(obj)} cannot be changed: {e}") from e
    return changed
