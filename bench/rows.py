# SPDX-License-Identifier: Apache-2.0
"""What is measured. Every figure against plain TCP is a ratio of two neighbours in
time, of the same program in a listed and an unlisted pod, whose order alternates:
the machine's drift falls on both. Whether bytes were redirected is asked of the
agent after each slice; a figure whose proof fails is a Failure, not a figure.
"""

import dataclasses
import os
import select
import statistics
import time

from node import HOP_GRACE_SECONDS, REDIRECTED_PORT, AgentEnded, Failure
from report import ONE, Row, at_least, at_most, short

RTT_SIZES = (64, 1024, 4096, 16384, 65536)
RTT_SIZES_WITH_TARGET = RTT_SIZES[:-1]
REDIRECT_SIZES = (64, 16384)
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


QUICK = Plan(rtt_pairs=7, rtt_seconds=0.15, stream_pairs=4, stream_seconds=0.3,
             mixed_exchanges=1500, unread_pairs=2, unlisted_pairs=4, unlisted_slices=3)
FULL = Plan(rtt_pairs=15, rtt_seconds=1, stream_pairs=7, stream_seconds=2,
            mixed_exchanges=10000, unread_pairs=5, unlisted_pairs=9, unlisted_slices=5)


def size_text(size):
    return f"{size} B" if size < 1024 else f"{size // 1024} KiB"


def cpu_sets():
    """(label, argument of hop): on one CPU, and on two where there are two."""
    cpus = sorted(os.sched_getaffinity(0))
    sets = [("one CPU", f"{cpus[0]},{cpus[0]}")]
    if len(cpus) > 1:
        sets.append(("two CPUs", f"{cpus[0]},{cpus[1]}"))
    return sets


def all_or(least):
    return f"at least {least:.0%}" if least else "some"


class Bench:
    def __init__(self, node, table, plan):
        self._node = node
        self._agent = node.agent
        self._table = table
        self._plan = plan
        self._starts = []

    # ---- slices ----------------------------------------------------------------

    def _start_agent(self):
        self._starts.append(self._agent.start())
        self._redirected = self._agent.status()["redirectedBytes"]

    def _slice(self, pod, arguments, least_share=0.9):
        """Runs hop; proves that its bytes went the way they were to go."""
        if not self._agent.running:
            return pod.hop(*arguments)
        before = self._redirected
        try:
            result = pod.hop(*arguments)
        finally:
            self._redirected = self._agent.status()["redirectedBytes"]
        share = (self._redirected - before) / result["payloadBytes"]
        expected = pod is self._node.listed and "unix" not in arguments
        wrong = (share <= 0 or share < least_share) if expected else share != 0
        if wrong:
            raise Failure(
                f"hop {' '.join(map(str, arguments))} in pod {pod.name}: {share:.1%} of its bytes "
                f"were redirected, expected {all_or(least_share) if expected else 'none'}; "
                "see `fallbacks` of `shuntctl status`: "
                f"{self._agent.status().get('fallbacks')}")
        result["share"] = share
        return result

    def _rounds(self, count, arguments, least_share):
        """(plain, accelerated, unix) results of `count` rounds."""
        plain, accelerated, unix = [], [], []
        for number in range(count):
            sides = [(self._node.unlisted, plain), (self._node.listed, accelerated)]
            for pod, results in sides if number % 2 == 0 else reversed(sides):
                results.append(self._slice(pod, arguments, least_share))
            unix.append(self._slice(self._node.unlisted, [*arguments, "--transport", "unix"]))
        return plain, accelerated, unix

    def _paired_row(self, group, name, unit, key, target, count, arguments, least_share=0.9,
                    scale=1.0):
        try:
            plain, accelerated, unix = self._rounds(count, arguments, least_share)
        except AgentEnded:
            raise
        except Failure as error:
            # One pattern that does not run says nothing about the others.
            self._table.add(Row(group, name, unit, [], target, note=str(error)))
            return
        share = statistics.mean(result["share"] for result in accelerated)
        values = [[result[key] * scale for result in side] for side in (plain, accelerated, unix)]
        self._table.add(Row(
            group, name, unit, [fast / slow for slow, fast in zip(values[0], values[1])], target,
            *values, note="" if share > 0.9 else f"{share:.1%} redirected",
            detail={"redirectedShare": share,
                    "slices": {"plain": plain, "accelerated": accelerated, "unix": unix}}))

    # ---- groups ----------------------------------------------------------------

    def agent_group(self):
        """Agent off and on in turn; leaves it running. Off and on are seconds
        apart, so each counts by its best slice: the least disturbed one."""
        cpus = cpu_sets()[0][1]
        seconds = self._plan.rtt_seconds
        rtt = ["rtt", "--size", 64, "--cpus", cpus, "--seconds", seconds]
        connect = ["connect", "--cpus", cpus, "--seconds", 2 * seconds]
        unlisted, listed = self._node.unlisted, self._node.listed
        rtt_off, rtt_on, connect_off, connect_on, connect_listed = [], [], [], [], []

        def best(pod, arguments):
            return min(self._slice(pod, arguments)["p50Us"]
                       for _ in range(self._plan.unlisted_slices))

        def off():
            self._agent.stop()
            rtt_off.append(best(unlisted, rtt))
            connect_off.append(best(unlisted, connect))

        def on():
            if not self._agent.running:
                self._start_agent()
            rtt_on.append(best(unlisted, rtt))
            connect_on.append(best(unlisted, connect))
            connect_listed.append(best(listed, connect))

        for number in range(self._plan.unlisted_pairs):
            for phase in (off, on) if number % 2 == 0 else (on, off):
                phase()
        if not self._agent.running:
            self._start_agent()

        for group, name, without, running, target in (
                ("an unlisted pod, agent / no agent, one CPU", "RTT 64 B", rtt_off, rtt_on, ONE),
                ("an unlisted pod, agent / no agent, one CPU", "connect-request-close",
                 connect_off, connect_on, ONE),
                ("a listed pod, agent / no agent, one CPU", "connect-request-close",
                 connect_off, connect_listed, None)):
            self._table.add(Row(
                group, name, "us", [above / below for above, below in zip(running, without)],
                target, plain=without, accelerated=running, note="columns: no agent, agent"))
        self._paired_row("connections made and closed, one CPU", "connect-request-close", "1/s",
                         "connectionsPerSecond", at_least(0.97), self._plan.rtt_pairs, connect)

    def rtt_group(self):
        for label, cpus in cpu_sets():
            for size in RTT_SIZES:
                one_cpu = label == "one CPU" and size in RTT_SIZES_WITH_TARGET
                self._paired_row(
                    f"round trip, {label} (median)", size_text(size), "us", "p50Us",
                    at_most(0.62) if one_cpu else None,
                    self._plan.rtt_pairs, ["rtt", "--size", size, "--cpus", cpus,
                                           "--seconds", self._plan.rtt_seconds])

        cpus = cpu_sets()[0][1]
        with self._node.listed.redirecting(), self._node.unlisted.redirecting():
            for size in REDIRECT_SIZES:
                self._paired_row(
                    "round trip behind REDIRECT, one CPU (median)", size_text(size), "us", "p50Us",
                    at_most(0.62), self._plan.rtt_pairs,
                    ["rtt", "--size", size, "--cpus", cpus, "--dial", REDIRECTED_PORT,
                     "--seconds", self._plan.rtt_seconds])

    def mixed_group(self):
        for label, cpus in cpu_sets():
            self._paired_row(
                "64 B to 64 KiB mixed, with pauses (mean)", label, "us", "meanUs", at_most(1.0),
                self._plan.rtt_pairs, ["mixed", "--cpus", cpus, "--exchanges",
                                       self._plan.mixed_exchanges])

    def stream_group(self):
        for label, cpus in cpu_sets():
            for size in STREAM_SIZES:
                self._paired_row(
                    f"stream, {label}", size_text(size), "MB/s", "megabytesPerSecond",
                    at_least(0.97),
                    self._plan.stream_pairs, ["stream", "--size", size, "--cpus", cpus,
                                              "--seconds", self._plan.stream_seconds],
                    least_share=0)

    def unread_group(self):
        for size in UNREAD_SIZES:
            self._paired_row(
                "accepted while nobody reads", f"in writes of {size_text(size)}", "MB",
                "acceptedBytes", at_most(1.5),
                self._plan.unread_pairs, ["unread", "--size", size], least_share=0, scale=1e-6)

    def footprint_group(self):
        group = "the agent"
        self._table.add(Row(group, "start to first redirected byte", "s", list(self._starts),
                            at_most(1.0)))
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

    def groups(self):
        return {"agent": self.agent_group, "rtt": self.rtt_group, "mixed": self.mixed_group,
                "stream": self.stream_group, "unread": self.unread_group,
                "footprint": self.footprint_group}

    def run(self, names):
        for name, group in self.groups().items():
            if name not in names:
                continue
            if name != "agent" and not self._agent.running:
                self._start_agent()
            group()
