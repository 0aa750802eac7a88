"""`python -m latency`: measure a block bundle where only latency's own needs and a backend are installed.

Exit codes: 0 done; 2 bad input, said in one line. Everything is said on stderr.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from latency import backends, blocks_zip, protocol
from latency.errors import LatencyError, one_line
from latency.profile import Dropped, Measured, Resumed, Retrying, Watched, profile
from latency.shard import shard

BAD_INPUT = 2


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise LatencyError(f"{message}; try `{self.prog} --help`")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = _Parser(prog="python -m latency", description="Latency of blocks on this machine.")
    command = parser.add_subparsers(dest="command", required=True).add_parser(
        "profile", help="measure a block bundle into a latency table; the same command again resumes"
    )
    command.add_argument("bundle", help="NAME.blocks.zip, written by `lathe bundle`")
    command.add_argument("--backend", required=True, help="what runs the blocks: " + ", ".join(backends.KNOWN))
    command.add_argument("--out", required=True, help="the table to write or to go on with: NAME.latency.jsonl")
    command.add_argument("--protocol", default="default", help="how exactly to measure: default, fast, trtexec-10 or trtexec-11")
    command.add_argument("--threads", type=int, default=1, help="threads of the CPU runtime; part of the table's fingerprint")
    command.add_argument("--shard", default="1/1", help="measure one part of several: 1/4 to 4/4 on four equal devices")
    try:
        _profile(parser.parse_args(arguments))
    except KeyboardInterrupt:
        _say("interrupted; the same command goes on from here")
        return 128 + signal.SIGINT
    except (LatencyError, OSError) as error:
        _say(one_line(error, limit=2000))
        return BAD_INPUT
    return 0


def _profile(given: argparse.Namespace) -> None:
    bundle = blocks_zip.read(given.bundle)
    workloads = shard(bundle.workloads, given.shard)
    timing = protocol.get(given.protocol)
    backend = backends.get(given.backend, threads=given.threads, precision=bundle.index.precision)
    index = bundle.index
    events = profile(
        workloads, backend, given.out, protocol=timing, lowering=index.lowering, space=index.space, bundle_sha256=bundle.sha256
    )
    for event in events:
        match event:
            case Dropped(line=line):
                _say(f"{given.out}, line {line}: the last line is torn and was dropped; its block is measured again")
            case Resumed(done=done, total=total):
                _say(f"{done} of {total} are measured already; going on")
            case Measured(row=row, done=done, total=total):
                _say(f"{done}/{total} {row.key} {f'{row.median_us:.1f} us' if row.measured else row.error} {row.status}")
            case Retrying(rows=rows):
                _say(f"{rows} rows are unstable and are measured once more")
            case Watched(drift=drift, again=again) if drift:
                _say(f"the device drifted by {drift:+.1%}: {again} rows are measured again")


def _say(text: str) -> None:
    sys.stderr.write(f"latency: {text}\n")


if __name__ == "__main__":
    sys.exit(main())
