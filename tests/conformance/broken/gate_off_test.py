#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The suite must notice an engine whose gate is off.

gate_off_test.py SHUNT-CONFORMANCE SHUNT-AGENT-GATE-OFF

Each case below must differ on that engine, with the words by which a reader
would know what is wrong. Those that the real engine passes are marked; they are
what the gate is for.
"""
import json
import os
import subprocess
import sys

# case, what the engine's side must say
EXPECTED = [
    ("handshake.defer_accept", "BBBB", "reorder: redirected bytes overtake TCP's"),
    ("buffers.unread_16384.warm", "no end: 256 MiB taken", "unbounded memory"),
    ("buffers.tiny_unread", "more than small buffers hold", "unbounded memory"),
    ("handshake.defer_accept_fionread", "FIONREAD -> 0", "FIONREAD"),
    ("splice.data_first.warm", "TIMED OUT in splice", "splice"),
    ("receive.waitall.warm", "recv 1000 WAITALL -> 100 bytes", "MSG_WAITALL"),
    ("receive.rcvlowat_first.warm", "recv 1000 -> 300 bytes", "SO_RCVLOWAT"),
]


def main():
    suite, agent = sys.argv[1:]
    command = [suite, "--engine", "sockhash", "--output", "json", "--seed", "1", "--runs", "3"]
    for case, _, _ in EXPECTED:
        command += ["--case", case + "/v4"]
    done = subprocess.run(command, env={**os.environ, "SHUNT_AGENT": agent},
                          stdout=subprocess.PIPE, timeout=280)
    if done.returncode == 77:
        return 77
    rows = {row["case"]: row for row in json.loads(done.stdout)["rows"]}
    failures = 0
    for case, words, defect in EXPECTED:
        row = rows.get(case)
        noticed = (row is not None and row["result"] == "differs"
                   and any(words in line for line in row["accelerated"])
                   and not any(words in line for line in row["plain"]))
        # An order is wrong where the words are there at another place.
        if row is not None and case == "handshake.defer_accept":
            noticed = (row["result"] == "differs"
                       and not any("AAAABBBBCCCC" in line for line in row["accelerated"]))
        print(f"{'noticed' if noticed else 'NOT NOTICED'}: {defect} ({case})")
        if not noticed:
            failures += 1
            print(json.dumps(row, indent=1))
    if done.returncode != 1:
        print(f"the suite exits with {done.returncode}, not 1")
        failures += 1
    return 1 if failures else 0


sys.exit(main())
