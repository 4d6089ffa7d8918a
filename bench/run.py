# SPDX-License-Identifier: Apache-2.0
"""scripts/bench: ratios to plain TCP, all from one run."""

import argparse
import json
import pathlib
import random
import signal
import sys
import time

from meter import Meter
from node import Node, exclusive
from paths import PathRows
from pod import Failure
from report import Table, machine
from rows import FULL, QUICK, SMOKE, HopRows

HOP_GROUPS = ("agent", "connect", "rtt", "redirect", "mixed", "stream", "unread", "footprint")
PATH_GROUPS = ("demo", "hops", "redis", "haproxy")
ABOUT_THE_AGENT = ("agent", "footprint")
GROUPS = (*HOP_GROUPS, *PATH_GROUPS)


def group_names(text):
    names = text.split(",")
    for name in names:
        if name not in GROUPS:
            raise argparse.ArgumentTypeError(
                f"{name!r} is none of {', '.join(GROUPS)}")
    return names


def parse_arguments():
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--binaries", type=pathlib.Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--envoy", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="under twelve minutes; rougher")
    parser.add_argument("--smoke", action="store_true",
                        help="whether every row runs; its figures mean nothing")
    parser.add_argument("--null", action="store_true",
                        help="list neither pod: what the figures differ from 1.00 is noise")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE",
                        help="also write every figure and slice")
    parser.add_argument("--only", action="extend", nargs="+", type=group_names, default=[],
                        metavar="NAME[,NAME]",
                        help=f"measure these only: {', '.join(GROUPS)}")
    parser.add_argument("--seed", type=int, default=random.randrange(1, 2**32),
                        help="of the sequence of `mixed`; else another one each time")
    args = parser.parse_args()
    args.only = [name for names in args.only for name in names] or [
        name for name in GROUPS if not args.null or name not in ABOUT_THE_AGENT]
    if args.null and set(args.only) & set(ABOUT_THE_AGENT):
        parser.error(f"--null does not go with {', '.join(ABOUT_THE_AGENT)}")
    return args


def measure(args, table):
    plan = SMOKE if args.smoke else QUICK if args.quick else FULL
    with Node(args.binaries, args.binaries / "hop") as node:
        meter = Meter(node, table, args.null)
        sources = ((HOP_GROUPS, HopRows(node, meter, table, plan, args.seed)),
                   (PATH_GROUPS, PathRows(node, meter, plan, args.envoy)))
        for names, source in sources:
            for name in names:
                if name not in args.only:
                    continue
                if name != "agent" and not node.agent.running:
                    meter.start_agent()
                getattr(source, name)()
        status = node.agent.status()
        print(f"\nengine: {status['engine']} ({status['engineReason']})", flush=True)


def main():
    args = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))
    began = time.monotonic()
    where = machine()
    print(f"{where['kernel']}, {where['cpus']} CPUs, {where['model']}, load {where['load']:.2f}; "
          "plain and accelerated slices alternate, figure = median of ratios of neighbours\n")
    table = Table()
    table.head()
    failure = None
    try:
        with exclusive():
            measure(args, table)
    except Failure as error:
        failure = str(error)
    except KeyboardInterrupt:
        return 130
    unmeasured = table.verdicts()
    print(f"{time.monotonic() - began:.0f} s")
    if args.json:
        args.json.write_text(json.dumps({
            "machine": where, "quick": args.quick, "smoke": args.smoke,
            "null": args.null, "failure": failure,
            "rows": [row.as_json() for row in table.rows]}, indent=1) + "\n")
    if failure:
        print(f"bench: {failure}", file=sys.stderr)
    return 1 if failure or unmeasured else 0


if __name__ == "__main__":
    sys.exit(main())
