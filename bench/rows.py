# SPDX-License-Identifier: Apache-2.0
"""What is measured with hop: one hop between two processes, pattern by pattern."""

import dataclasses
import os
import select
import time

from meter import ANY, NEARLY_ALL, Figure, Workload
from pod import HOP_GRACE_SECONDS, REDIRECTED_PORT, Failure
from report import ONE, Row, at_least, at_most, short

RTT_SIZES = (64, 1024, 4096, 16384, 65536)
RTT_SIZES_WITH_TARGET = RTT_SIZES[:-1]
STREAM_SIZES = (64, 256, 1024, 4096, 16384, 65536)
UNREAD_SIZES = (1024, 65536)
LIVE_PAIRS = 1000
IDLE_SECONDS = 5


@dataclasses.dataclass(frozen=True)
class Plan:
    rtt_pairs: int
    rtt_seconds: float
    stream_pairs: int
    stream_seconds: float
    mixed_exchanges: int
    unread_pairs: int
    unlisted_pairs: int
    unlisted_slices: int
    path_pairs: int
    path_seconds: int  # wrk's unit


QUICK = Plan(rtt_pairs=7, rtt_seconds=0.15, stream_pairs=3, stream_seconds=2,
             mixed_exchanges=1500, unread_pairs=2, unlisted_pairs=4, unlisted_slices=3,
             path_pairs=7, path_seconds=1)
FULL = Plan(rtt_pairs=15, rtt_seconds=1, stream_pairs=7, stream_seconds=2,
            mixed_exchanges=10000, unread_pairs=5, unlisted_pairs=9, unlisted_slices=5,
            path_pairs=11, path_seconds=5)
# Whether the rows run at all; the figures mean nothing.
SMOKE = Plan(rtt_pairs=1, rtt_seconds=0.02, stream_pairs=1, stream_seconds=0.05,
             mixed_exchanges=100, unread_pairs=1, unlisted_pairs=1, unlisted_slices=1,
             path_pairs=1, path_seconds=1)


def size_text(size):
    for unit, bytes_of_it in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= bytes_of_it:
            return f"{size // bytes_of_it} {unit}"
    return f"{size} B"


def cpu_sets():
    """(label, argument of hop): on one CPU, and on two where there are two."""
    cpus = sorted(os.sched_getaffinity(0))
    sets = [("one CPU", f"{cpus[0]},{cpus[0]}")]
    if len(cpus) > 1:
        sets.append(("two CPUs", f"{cpus[0]},{cpus[1]}"))
    return sets


def hop(*arguments, least_share=NEARLY_ALL, unix_count=None):
    return Workload(f"hop {' '.join(map(str, arguments))}",
                    lambda pod: pod.hop(*arguments),
                    lambda pod: pod.hop(*arguments, "--transport", "unix"),
                    least_share, unix_count)


class HopRows:
    def __init__(self, node, meter, table, plan, seed):
        self._node = node
        self._agent = node.agent
        self._meter = meter
        self._table = table
        self._plan = plan
        self._seed = seed

    def _connect(self):
        return ["connect", "--seconds", 2 * self._plan.rtt_seconds]

    def agent(self):
        """Agent off and on in turn; leaves it running. Off and on are seconds
        apart, so each counts by its best slice: the least disturbed one."""
        cpus = cpu_sets()[0][1]
        rtt = hop("rtt", "--size", 64, "--cpus", cpus, "--seconds", self._plan.rtt_seconds)
        connect = hop(*self._connect(), "--cpus", cpus)
        unlisted, listed = self._node.unlisted, self._node.listed
        rtt_off, rtt_on, connect_off, connect_on, connect_listed = [], [], [], [], []

        def best(pod, workload):
            return min(self._meter.slice(pod, workload)["p50Us"]
                       for _ in range(self._plan.unlisted_slices))

        def off():
            self._agent.stop()
            rtt_off.append(best(unlisted, rtt))
            connect_off.append(best(unlisted, connect))

        def on():
            if not self._agent.running:
                self._meter.start_agent()
            rtt_on.append(best(unlisted, rtt))
            connect_on.append(best(unlisted, connect))
            connect_listed.append(best(listed, connect))

        for number in range(self._plan.unlisted_pairs):
            for phase in (off, on) if number % 2 == 0 else (on, off):
                phase()
        if not self._agent.running:
            self._meter.start_agent()

        for group, name, without, running, target in (
                ("an unlisted pod, agent / no agent, one CPU", "RTT 64 B", rtt_off, rtt_on, ONE),
                ("an unlisted pod, agent / no agent, one CPU", "connect-request-close",
                 connect_off, connect_on, ONE),
                ("a listed pod, agent / no agent, one CPU", "connect-request-close",
                 connect_off, connect_listed, None)):
            self._table.add(Row(
                group, name, "us", [above / below for above, below in zip(running, without)],
                target, plain=without, accelerated=running, note="columns: no agent, agent"))

    def connect(self):
        for label, cpus in cpu_sets():
            self._meter.rows("connect-request-close in a listed pod",
                             [Figure(label, "1/s", "connectionsPerSecond", at_least(0.97))],
                             self._plan.rtt_pairs, hop(*self._connect(), "--cpus", cpus))

    def rtt(self):
        self._round_trips("round trip", [])

    def redirect(self):
        with self._node.listed.redirecting(), self._node.unlisted.redirecting():
            self._round_trips("round trip behind REDIRECT", ["--dial", REDIRECTED_PORT])

    def _round_trips(self, group, arguments):
        for label, cpus in cpu_sets():
            for size in RTT_SIZES:
                judged = label == "one CPU" and size in RTT_SIZES_WITH_TARGET
                self._meter.rows(
                    f"{group}, {label} (median)",
                    [Figure(size_text(size), "us", "p50Us", at_most(0.62) if judged else None)],
                    self._plan.rtt_pairs,
                    hop("rtt", "--size", size, "--cpus", cpus,
                        "--seconds", self._plan.rtt_seconds, *arguments))

    def mixed(self):
        for label, cpus in cpu_sets():
            self._meter.rows(
                "64 B to 64 KiB mixed, with pauses: exchanges per second of their mean time",
                [Figure(label, "1/s", "exchangesPerSecond", at_least(1.0))],
                self._plan.rtt_pairs,
                hop("mixed", "--cpus", cpus, "--exchanges", self._plan.mixed_exchanges,
                    "--seed", self._seed), note=f"seed {self._seed}")

    def stream(self):
        for label, cpus in cpu_sets():
            for size in STREAM_SIZES:
                self._meter.rows(
                    f"stream, {self._plan.stream_seconds} s, {label}",
                    [Figure(size_text(size), "MB/s", "megabytesPerSecond", at_least(0.97))],
                    self._plan.stream_pairs,
                    hop("stream", "--size", size, "--cpus", cpus,
                        "--seconds", self._plan.stream_seconds, least_share=ANY, unix_count=1))

    def unread(self):
        for size in UNREAD_SIZES:
            self._meter.rows(
                "accepted while nobody reads",
                [Figure(f"in writes of {size_text(size)}", "MB", "acceptedBytes", at_most(1.5),
                        scale=1e-6)],
                self._plan.unread_pairs, hop("unread", "--size", size, least_share=ANY))

    def footprint(self):
        group = "the agent"
        self._table.add(Row(group, "start to first redirected byte", "s",
                            list(self._meter.starts), at_most(1.0)))
        holder = self._node.listed.start("hold", "--connections", LIVE_PAIRS)
        try:
            ready, _, _ = select.select([holder.stdout], [], [], HOP_GRACE_SECONDS)
            if not ready or not holder.stdout.readline():
                holder.kill()
                raise Failure(f"holding {LIVE_PAIRS} connections: {holder.stderr.read().strip()}")
            live = self._agent.status()["pairs"]["accelerated"]
            if live < LIVE_PAIRS:
                raise Failure(f"holding {LIVE_PAIRS} connections: the agent counts {live} "
                              "accelerated pairs; see `shuntctl status`")
            time.sleep(2)  # what it does about their arrival is not idling
            before = self._agent.cpu_seconds()
            time.sleep(IDLE_SECONDS)
            spent = self._agent.cpu_seconds() - before
            resident = self._agent.resident_bytes() / 2**20
        finally:
            holder.kill()
            holder.communicate()
        self._table.add(Row(group, f"resident, {live} live pairs", "MiB", [resident],
                            at_most(30)))
        self._table.add(Row(group, f"CPU in {IDLE_SECONDS} idle seconds", "s", [spent],
                            at_most(0.01), note=f"{short(spent * 1e3)} ms"))
