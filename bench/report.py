# SPDX-License-Identifier: Apache-2.0
"""Rows of figures: what they are, how they are judged and printed."""

import dataclasses
import os
import statistics

# A figure that must equal 1.00 may miss it by this much. If it misses it by more
# while its own samples lie on both sides of 1.00, it says nothing: "noisy".
NOISE = 0.03


@dataclasses.dataclass(frozen=True)
class Target:
    kind: str  # "at_most", "at_least", "one"
    value: float = 1.0
    never_below: float | None = None  # holds for each sample, not for the median

    def verdict(self, figures):
        median = statistics.median(figures)
        if self.kind == "one":
            if abs(median - 1) <= NOISE:
                return "met"
            return "noisy" if min(figures) <= 1 <= max(figures) else "NOT MET"
        if self.never_below is not None and min(figures) < self.never_below:
            return "NOT MET"
        met = median <= self.value if self.kind == "at_most" else median >= self.value
        return "met" if met else "NOT MET"

    def __str__(self):
        if self.kind == "one":
            return f"1.00 +- {NOISE:.2f}"
        text = f"{'<=' if self.kind == 'at_most' else '>='} {self.value:g}"
        return text if self.never_below is None else f"{text}, min {self.never_below:g}"


def at_most(value):
    return Target("at_most", value)


def at_least(value, never_below=None):
    return Target("at_least", value, never_below)


ONE = Target("one")


@dataclasses.dataclass
class Row:
    """One line of the table. `figures` are what is judged: ratios of paired
    samples or, for a row without a plain side, absolute values."""
    group: str
    name: str
    unit: str
    figures: list
    target: Target | None = None
    plain: list = dataclasses.field(default_factory=list)
    accelerated: list = dataclasses.field(default_factory=list)
    unix: list = dataclasses.field(default_factory=list)
    note: str = ""
    skipped: bool = False  # the note says why
    detail: dict = dataclasses.field(default_factory=dict)  # for --json only

    @property
    def verdict(self):
        if self.skipped:
            return "skipped"
        if not self.figures:
            return "not measured"
        return self.target.verdict(self.figures) if self.target else ""

    def as_json(self):
        return {"group": self.group, "row": self.name, "unit": self.unit,
                "plain": self.plain, "accelerated": self.accelerated, "unix": self.unix,
                "figures": self.figures,
                "median": statistics.median(self.figures) if self.figures else None,
                "target": str(self.target or ""), "verdict": self.verdict, "note": self.note,
                **self.detail}


def short(value):
    if value >= 1000:
        return f"{value:.0f}"
    return f"{value:.3g}" if value < 100 else f"{value:.1f}"


def _median(samples):
    return short(statistics.median(samples)) if samples else ""


class Table:
    """Prints a row as soon as it is measured."""

    LINE = "{:<36} {:>9} {:>9} {:>9} {:<6} {:>6} {:<14} {:<16} {:<8} {}"

    def __init__(self):
        self.rows = []
        self._group = None

    def head(self):
        line = self.LINE.format("", "plain", "accel.", "AF_UNIX", "", "figure", "  min..max",
                                "target", "verdict", "")
        print(line.rstrip(), "-" * 122, sep="\n", flush=True)

    def add(self, row):
        self.rows.append(row)
        if row.group != self._group:
            self._group = row.group
            print(row.group, flush=True)
        spread = f"{min(row.figures):6.2f}..{max(row.figures):.2f}" if len(row.figures) > 1 else ""
        figure = f"{statistics.median(row.figures):.2f}" if row.figures else "-"
        print(self.LINE.format(
            "  " + row.name, _median(row.plain), _median(row.accelerated), _median(row.unix),
            row.unit, figure, spread, str(row.target or ""), row.verdict,
            row.note if row.figures else "see below").rstrip(),
            flush=True)

    def verdicts(self):
        """Prints how many targets were met; returns how many rows have no figure."""
        judged = [row for row in self.rows if row.target and row.figures]
        missed = [row for row in judged if row.verdict != "met"]
        print(f"\n{len(judged) - len(missed)} of {len(judged)} targets met")
        for row in missed:
            print(f"  {row.verdict.lower()}: {row.group}: {row.name}: "
                  f"{statistics.median(row.figures):.2f}, wanted {row.target}")
        for row in self.rows:
            if row.skipped:
                print(f"  SKIPPED: {row.group}: {row.name}: {row.note}")
        unmeasured = [row for row in self.rows if not row.figures and not row.skipped]
        for row in unmeasured:
            print(f"  NOT MEASURED: {row.group}: {row.name}: {row.note}")
        return len(unmeasured)


def machine():
    model = "unknown CPU"
    with open("/proc/cpuinfo", encoding="ascii") as cpuinfo:
        for line in cpuinfo:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return {"kernel": os.uname().release, "cpus": len(os.sched_getaffinity(0)), "model": model,
            "load": os.getloadavg()[0]}
