"""`python -m latency`: measure a block bundle on a machine with only latency's own dependencies and a backend.

Exit codes: 0 done; 2 bad input, with a message of one line; others in `latency.process`. All messages go to stderr.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import NoReturn

from latency import anchored, backends, blocks_zip, outputs, process, protocol
from latency.anchored import Anchored
from latency.arguments import require_sound
from latency.device import require_cores
from latency.errors import LatencyError
from latency.profile import DriftChecked, Measured, Resumed, Retrying, TornLineDropped, profile
from latency.shard import shard


class _Parser(argparse.ArgumentParser):
    """Reports usage errors in one line."""

    def error(self, message: str) -> NoReturn:
        raise LatencyError(f"{message}; try `{self.prog} --help`")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = _Parser(prog="python -m latency", description="Latency of blocks on this machine.", allow_abbrev=False)
    command = parser.add_subparsers(dest="command", required=True).add_parser(
        "profile",
        help="measure a block bundle into a latency table; the same command again resumes",
        allow_abbrev=False,
    )
    command.add_argument("bundle", help="NAME.blocks.zip, written by `lathe bundle`")
    command.add_argument("--backend", required=True, help="what runs the blocks: " + ", ".join(backends.KNOWN))
    command.add_argument("--out", required=True, help="the table to write or to go on with: NAME.latency.jsonl")
    command.add_argument(
        "--protocol", default="default", help="how exactly to measure: default, fast, trtexec-10 or trtexec-11"
    )
    command.add_argument(
        "--threads", type=int, default=1, help="threads of the CPU runtime; part of the table's fingerprint"
    )
    command.add_argument("--shard", default="1/1", help="measure one part of several: 1/4 to 4/4 on four equal devices")
    command.add_argument(
        "--like", nargs="+", default=(), help="tables of other devices: measure a few blocks, transfer the others"
    )
    command.add_argument(
        "--anchors", type=int, help=f"of --like: how many blocks to measure (default: {anchored.DEFAULT_ANCHORS})"
    )
    parsed: argparse.Namespace | None = None

    def work() -> int:
        nonlocal parsed
        require_sound(sys.argv[1:] if arguments is None else arguments)
        parsed = parser.parse_args(arguments)
        _profile(parsed)
        return 0

    return process.run("latency", work, goes_on=lambda: parsed is not None and outputs.begun(parsed.out))


def _profile(options: argparse.Namespace) -> None:
    timing = protocol.get(options.protocol)
    backends.require_known(options.backend)
    require_cores(options.threads)
    anchored.require_flags(options.like, options.anchors, options.shard)
    outputs.require_file(options.out, outputs.TABLE, flag="--out", parents=True)
    bundle = blocks_zip.read(options.bundle)
    workloads = shard(bundle.workloads, options.shard)
    backend = backends.get(options.backend, threads=options.threads, precision=bundle.index.precision)
    index = bundle.index
    old = anchored.load_old_tables(options.like, lowering=index.lowering)
    measure = partial(
        profile,
        backend=backend,
        out=options.out,
        protocol=timing,
        lowering=index.lowering,
        space=index.space,
        bundle_sha256=bundle.sha256,
        like=anchored.describe_tables(old),
    )
    count = options.anchors or anchored.DEFAULT_ANCHORS
    begin, here = time.perf_counter(), 0
    for event in (
        anchored.profile_like(workloads, old, options.out, measure, anchors=count) if old else measure(workloads)
    ):
        match event:
            case TornLineDropped(line=line):
                _say(f"{options.out}, line {line}: the last line is torn and was dropped; its block is measured again")
            case Resumed(done=done, total=total):
                _say(f"{done} of {total} are measured already; going on")
            case Measured(row=row, done=done, total=total):
                why = f": {row.reason}" if row.reason else ""
                here += 1
                left = timedelta(seconds=round((time.perf_counter() - begin) / here * (total - done)))
                outcome = f"{row.median_us:.1f} us" if row.measured else row.error
                _say(f"{done}/{total} {row.key} {outcome} {row.status}{why}, {left} left")
            case Retrying(rows=rows):
                _say(f"{rows} rows are unstable and are measured once more")
            case Anchored(measured=measured, transferred=transferred, proof=proof):
                _say(f"{measured} blocks measured, {transferred} transferred, {proof.words}")
            case DriftChecked(drift=drift, requeued=requeued) if drift:
                _say(f"the device drifted by {drift:+.1%}: {requeued} rows are measured again")
            case _:
                pass


def _say(text: str) -> None:
    sys.stderr.write(f"latency: {text}\n")


if __name__ == "__main__":
    sys.exit(main())
