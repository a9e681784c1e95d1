"""`ambit demo`: a mesh carrying traffic, each step shown with the command behind it."""

from __future__ import annotations

import argparse
import re
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

from cli.demo_waypoint import SecondAct
from cli.stage import BOLD, DIM, OFF, RED, DemoFailed, good, say, step, table, wait
from lab import Lab
from mesh.errors import MeshError
from mesh.ports import ANNOTATION_REDIRECTION, ZTUNNEL_METRICS

EXAMPLES = Path(__file__).parent.parent / "lab" / "examples"
NAME = "demo"
BODY = "teapot"  # a product name in the catalog's answers: plaintext would show it on the wire


class Demo:
    """The steps, in the order they are shown, over one lab."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.name = lab.name

    def pod(self, app: str) -> str:
        """NS/POD of the running pod with this app label."""
        for p in self.lab.pods():
            if p["metadata"].get("labels", {}).get("app") == app:
                return f"{p['metadata']['namespace']}/{p['metadata']['name']}"
        raise DemoFailed(f"no pod with label app={app}")

    def get(self, app: str, url: str) -> subprocess.CompletedProcess[str]:
        """curl from a pod."""
        return self.lab.exec(self.pod(app), ["curl", "-sS", "-m", "5", url])

    def enrolment(self) -> None:
        """Each pod's proof."""
        step(
            1,
            "Every pod of the labelled namespace is captured, and it is proved",
            f"ambit lab get pods -A --name {self.name}",
        )
        rows = []
        for p in self.lab.pods():
            meta, proof = p["metadata"], ""
            for c in p.get("status", {}).get("conditions", []):
                if c["type"] == "ambit.io/Captured":
                    proof = c.get("message") or c.get("reason", "")
            rows.append(
                (
                    f"{meta['namespace']}/{meta['name']}",
                    p["spec"]["nodeName"],
                    p["status"]["podIP"],
                    meta.get("annotations", {}).get(ANNOTATION_REDIRECTION, "-"),
                    proof[:70],
                )
            )
        table(("POD", "NODE", "IP", "REDIRECTION", "PROOF"), sorted(rows))
        captured = sum(r[3] == "enabled" for r in rows)
        if not captured:
            raise DemoFailed("no pod is captured; see `ambit status`")
        good(f"{captured} pods captured and proved; the unlabelled namespace is left alone")

    def traffic(self) -> None:
        """Who talks to whom, from the access log."""
        step(
            2,
            "Real traffic: who talks to whom, as which identity, over which path",
            f"ambit lab logs ztunnel/node1 --name {self.name}",
        )
        for _ in range(5):
            done = self.get("frontend", "http://localhost:8080/")
            if done.returncode:
                raise DemoFailed(f"the shop's front page failed: {done.stderr.strip()}")
        say(f"   front page: {done.stdout.strip()[:110]}")
        time.sleep(0.6)
        seen: Counter[tuple[str, ...]] = Counter()
        for node in ("node1", "node2"):
            for text in self.lab.logs(f"ztunnel/{node}").splitlines():
                f = dict(re.findall(r'([a-z_.]+)="?([^" ]*)"?', text))
                if f.get("direction") != "outbound" or "error" in f:
                    continue
                who = f.get("src.identity", "?").removeprefix("spiffe://cluster.local/")
                whom = f.get("dst.identity", "plaintext").removeprefix("spiffe://cluster.local/")
                path = f"HBONE to {f['dst.hbone_addr']}" if f.get("dst.hbone_addr") else "plain TCP"
                seen[(who, whom, path)] += 1
        rows = [(*k, str(n)) for k, n in sorted(seen.items())]
        table(("FROM", "TO", "PATH", "CONNECTIONS"), rows)
        if not any("HBONE" in r[2] for r in rows):
            raise DemoFailed("no connection took the tunnel")
        good("both ends are named by their certificates, not by their addresses")

    def wire(self) -> None:
        """What a capture between the nodes shows."""
        args = [
            "-nn",
            "-A",
            "-s0",
            "-i",
            "eth0",
            "tcp and (net 10.244.0.0/16 or net fd00:10:244::/48)",
        ]
        step(
            3,
            "On the wire between the nodes",
            f"ambit lab capture node1 --name {self.name} -- {' '.join(args[:-1])} '{args[-1]}'",
        )
        capture = self.lab.capture("node1", args)
        for _ in range(5):
            self.get("frontend", "http://localhost:8080/")
        time.sleep(0.5)
        capture.terminate()
        text = capture.communicate(timeout=10)[0]
        ports = Counter(
            p
            for a, b in re.findall(r"IP6? \S+\.(\d+) > \S+\.(\d+):", text)
            for p in [b if b == "15008" else a]
        )
        for line in [x for x in text.splitlines() if " > " in x][:4]:
            say("   " + line[:110])
        if set(ports) != {"15008"} or BODY in text or "HTTP/1" in text:
            raise DemoFailed(f"plaintext or another port on the wire: {dict(ports)}")
        good(f"{sum(ports.values())} packets between pods, all TLS on 15008; nothing readable")

    def policy(self) -> None:
        """One caller denied, the others not."""
        file = EXAMPLES / "policy-deny-cart.yaml"
        step(
            4,
            "A policy denies one caller; the others pass",
            f"ambit lab apply -f {file.relative_to(EXAMPLES.parent.parent)} --name {self.name}",
        )
        self.lab.apply([file])
        start = time.monotonic()
        wait("the denial", lambda: self.get("cart", "http://catalog:8080/").returncode, 5)
        good(f"cart -> catalog refused {time.monotonic() - start:.2f} s after apply")
        done = self.get("frontend", "http://catalog:8080/")
        if done.returncode:
            raise DemoFailed(f"frontend -> catalog should pass: {done.stderr.strip()}")
        good("frontend -> catalog still passes")
        time.sleep(0.6)
        for node in ("node1", "node2"):
            for text in self.lab.logs(f"ztunnel/{node}").splitlines():
                if 'direction="inbound"' in text and "policy" in text and "error=" in text:
                    who, why = (
                        re.search(rf'{f}="((?:[^"\\]|\\.)*)"', text)
                        for f in ("src.identity", "error")
                    )
                    if who and why:
                        say(f"   {node}'s log: {who[1]} refused: {why[1]}")
                    break
        self.lab.delete([file])
        wait(
            "the caller let in again",
            lambda: not self.get("cart", "http://catalog:8080/").returncode,
            5,
        )
        good("policy deleted: cart -> catalog passes again")

    def metrics(self) -> None:
        """Counters under Istio's names."""
        step(
            5,
            "Live metrics, with the names dashboards know",
            "curl localhost:15020/metrics   # on a node",
        )
        rows: list[tuple[str, ...]] = []
        for node in ("node1", "node2"):
            for text in self.lab.fetch(node, ZTUNNEL_METRICS, "/metrics").splitlines():
                m = re.match(
                    r"(istio_tcp_(?:connections_opened|sent_bytes)_total)\{(.*)\} (\S+)", text
                )
                if m is None:
                    continue
                label = dict(re.findall(r'(\w+)="([^"]*)"', m[2]))
                if label["reporter"] == "source":
                    pair = f"{label['source_workload']} -> {label['destination_workload']}"
                    rows.append(
                        (
                            node,
                            pair,
                            m[1],
                            f"{float(m[3]):.0f}",
                            label["connection_security_policy"],
                        )
                    )
        table(("NODE", "FROM -> TO", "METRIC", "VALUE", "SECURITY"), sorted(rows)[:14])
        if not rows:
            raise DemoFailed("no istio_tcp_ series")
        good(f"{len(rows)} series")

    def run(self) -> None:
        """All steps."""
        self.enrolment()
        self.traffic()
        self.wire()
        self.policy()
        self.metrics()
        SecondAct(self.lab, self.pod, self.name).run()


def main(args: argparse.Namespace) -> int:
    """Bring the lab up, show the steps, take it down (or leave it with --keep)."""
    began = time.monotonic()
    say(f"{BOLD}0. A lab of two nodes with a small shop{OFF}")
    say(f"{DIM}   $ ambit lab up lab/examples/shop.yaml --name {args.name}{OFF}")
    lab = Lab(args.name)
    failed = False
    try:
        lab.up([EXAMPLES / "shop.yaml"], replace=True)
        good(f"up in {time.monotonic() - began:.1f} s")
        Demo(lab).run()
    except (MeshError, subprocess.SubprocessError, OSError) as e:
        failed = True
        say(f"\n{RED}demo: {e}{OFF}")
        say(f"      look inside with: ambit status --name {args.name}")
    except KeyboardInterrupt:
        say("\ninterrupted")
        failed = True
    finally:
        if args.keep:
            say(f"\nThe lab stays up. Try:\n   .venv/bin/ambit status --name {args.name}")
            say(f"   .venv/bin/ambit ztunnel connections --name {args.name}")
            say(f"   .venv/bin/ambit lab exec --name {args.name} shop/cart -- curl -s catalog:8080")
            say(f"   .venv/bin/ambit lab down --name {args.name}")
        else:
            lab.down()
    if not failed:
        say(f"\n{BOLD}Done in {time.monotonic() - began:.0f} s.{OFF}")
    return 1 if failed else 0


def register(subparsers: Any) -> None:
    """Add `ambit demo`."""
    p = subparsers.add_parser("demo", help="a mesh you can watch work", description=__doc__)
    p.add_argument("--keep", action="store_true", help="leave the lab up")
    p.add_argument("--name", default=NAME, help=f"name of its lab (default {NAME})")
    p.set_defaults(run=main)
