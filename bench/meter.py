# SPDX-License-Identifier: Apache-2.0
"""How a figure comes about. Every figure against plain TCP is a ratio of two
neighbours in time, of the same program in a listed and an unlisted pod, whose
order alternates: the machine's drift falls on both. Whether bytes were redirected
is asked of the agent after each slice; a figure whose proof fails is a Failure.
"""

import dataclasses
import statistics

from pod import AgentEnded, Failure, Skipped
from report import Row

# Least shares of a listed pod's bytes that must have been redirected.
NEARLY_ALL = 0.9
SOME = 0.0
# The engine may leave or never join; the row says what share it was.
ANY = None


@dataclasses.dataclass(frozen=True)
class Figure:
    """One row of the table that slices give: result[key] * scale."""
    name: str
    unit: str
    key: str
    target: object = None
    scale: float = 1.0
    beside_unix: bool = False  # the ratio to AF_UNIX instead of plain TCP


@dataclasses.dataclass(frozen=True)
class Workload:
    """run(pod) measures for a moment; the result has "payloadBytes", those that
    may be redirected. run_unix: the same with AF_UNIX, in the unlisted pod."""
    what: str
    run: object
    run_unix: object = None
    least_share: float | None = NEARLY_ALL
    unix_count: int | None = None  # not in each round


class Meter:
    def __init__(self, node, table, null=False):
        self._null = null  # neither pod is listed
        self._node = node
        self._agent = node.agent
        self._table = table
        self._redirected = 0
        self.starts = []

    def start_agent(self):
        self.starts.append(self._agent.start())
        if self._null:
            self._agent.unlist()
        self._redirected = self._agent.status()["redirectedBytes"]

    def slice(self, pod, workload, unix=False):
        """Runs it once; proves that its bytes went the way they were to go."""
        run = workload.run_unix if unix else workload.run
        if not self._agent.running:
            return run(pod)
        try:
            # Programs may have gone on between slices: keep-alive, expiry.
            self._redirected = self._agent.status()["redirectedBytes"]
            before = self._redirected
            result = run(pod)
        finally:
            self._redirected = self._agent.status()["redirectedBytes"]
        share = (self._redirected - before) / result["payloadBytes"]
        self._prove(share, pod, workload, unix)
        result["share"] = share
        return result

    def _prove(self, share, pod, workload, unix):
        least = workload.least_share
        if pod is not self._node.listed or unix or self._null:
            right, expected = share == 0, "none"
        elif least is ANY:
            return
        else:
            right = share > 0 and share >= least
            expected = f"at least {least:.0%}" if least else "some"
        if not right:
            raise Failure(
                f"{workload.what} in pod {pod.name}: {share:.1%} of its bytes were redirected, "
                f"expected {expected}; see `fallbacks` of `shuntctl status`: "
                f"{self._agent.status().get('fallbacks')}")

    def rounds(self, count, workload):
        """(plain, accelerated, unix) results of `count` rounds."""
        plain, accelerated, unix = [], [], []
        unix_count = count if workload.unix_count is None else workload.unix_count
        for number in range(count):
            sides = [(self._node.unlisted, plain), (self._node.listed, accelerated)]
            for pod, results in sides if number % 2 == 0 else reversed(sides):
                results.append(self.slice(pod, workload))
            if workload.run_unix and number < unix_count:
                unix.append(self.slice(self._node.unlisted, workload, unix=True))
        return plain, accelerated, unix

    def rows(self, group, figures, count, workload, note=""):
        """Measures once, adds a row per figure. One pattern that does not run
        says nothing about the others."""
        try:
            sides = self.rounds(count, workload)
        except AgentEnded:
            raise
        except Failure as error:
            self.give_up(group, figures, error)
            return
        accelerated = sides[1]
        share = statistics.mean(result["share"] for result in accelerated)
        if share <= NEARLY_ALL and not self._null:
            note = f"{note}{', ' if note else ''}{share:.1%} redirected"
        for figure in figures:
            values = [[result[figure.key] * figure.scale for result in side] for side in sides]
            below = values[2] if figure.beside_unix else values[0]
            self._table.add(Row(
                group, figure.name, figure.unit,
                [fast / slow for slow, fast in zip(below, values[1])],
                None if self._null else figure.target, *values,
                note=note, detail={"redirectedShare": share, "slices": dict(zip(
                    ("plain", "accelerated", "unix"), sides))}))

    def give_up(self, group, figures, error):
        for figure in figures:
            self._table.add(Row(group, figure.name, figure.unit, [], figure.target,
                                note=str(error), skipped=isinstance(error, Skipped)))
