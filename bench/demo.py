# SPDX-License-Identifier: Apache-2.0
"""The demo's path (wrk, REDIRECT, Envoy, nginx in one pod), as rows of the table."""

import json
import os
import pathlib
import subprocess
import tempfile

from node import Failure
from report import Row, at_least, at_most
from rows import size_text

GROUP = "wrk -> Envoy -> nginx, both hops in one pod"
DEMO = pathlib.Path(__file__).resolve().parent.parent / "scripts" / "demo"
SECONDS = 300


def run_demo(binaries, quick):
    if not os.access(DEMO, os.X_OK):
        raise Failure(f"running {DEMO}: there is no such program")
    with tempfile.TemporaryDirectory() as directory:
        figures = pathlib.Path(directory) / "demo.json"
        command = [DEMO, "--json", figures, *(["--quick"] if quick else [])]
        # Its own session, so that Ctrl-C reaches it once, from here, and it can clean up.
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                   text=True, start_new_session=True,
                                   env={**os.environ, "SHUNT_BIN": str(binaries)})
        try:
            output, _ = process.communicate(timeout=SECONDS)
        except BaseException:
            process.terminate()
            process.communicate()
            raise
        if process.returncode != 0:
            tail = "".join(output.splitlines(keepends=True)[-10:])
            raise Failure(f"running {DEMO}: exit {process.returncode}; its last lines:\n{tail}")
        return json.loads(figures.read_text())


def add_rows(table, figures):
    note = f"{figures['connections']} connections"
    for size in sorted({turn["size"] for turn in figures["turns"]}):
        turns = [turn for turn in figures["turns"] if turn["size"] == size]
        plain, fast = ([turn for turn in turns if turn["mode"] == mode]
                       for mode in ("plain", "accelerated"))
        for name, unit, key, scale, target in (
                ("requests/s", "1/s", "rps", 1, at_least(1.12)),
                ("p50", "ms", "p50_s", 1e3, None),
                ("p99", "ms", "p99_s", 1e3, at_most(1.0))):
            table.add(Row(GROUP, f"{size_text(size)}, {name}", unit,
                          [b[key] / a[key] for a, b in zip(plain, fast)], target,
                          plain=[turn[key] * scale for turn in plain],
                          accelerated=[turn[key] * scale for turn in fast], note=note))


def demo_group(table, binaries, quick):
    try:
        add_rows(table, run_demo(binaries, quick))
    except (Failure, subprocess.TimeoutExpired) as error:
        table.add(Row(GROUP, "all figures", "", [], at_least(1.12), note=str(error)))
