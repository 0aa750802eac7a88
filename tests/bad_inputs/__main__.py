"""`PYTHONPATH=tests python -m bad_inputs`: run the table of bad inputs, all of it or a sample, and name what is not answered as it must be.

A bad input is answered right by the exit code that it is due, one line on stderr that matches its pattern and nothing on stdout, no file
left behind or changed, no traceback, and in time.
"""

import argparse
import random
import re
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bad_inputs import artefacts, forked
from bad_inputs.cases import Case, all_cases, lay_out, shown
from bad_inputs.forked import Outcome


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns 1 where a case is not answered right."""
    parser = argparse.ArgumentParser(prog="bad_inputs", description=__doc__)
    parser.add_argument("--sample", type=int, help="how many, drawn from every kind (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--only", default="", help="cases whose name matches this pattern")
    parser.add_argument(
        "--artefacts", type=Path, help="directory with artefacts made before, or to make and keep them in"
    )
    parser.add_argument(
        "--report",
        type=Path,
        help="Markdown to write: how many of each kind ended how, also of a run that is interrupted",
    )
    parser.add_argument("--list", action="store_true", help="name the cases and run none")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="bad_inputs.") as work:
        made = given.artefacts or Path(work) / "artefacts"
        if not made.is_dir():
            made.mkdir()
            artefacts.make(made)
        cases = [case for case in all_cases(made) if re.search(given.only, case.name)]
        if given.sample is not None:
            cases = sample(cases, given.sample, given.seed)
        if given.list:
            sys.stdout.writelines(f"{case.name}\n" for case in cases)
            return 0
        forked.warm()
        answers = list[Answer]()
        try:
            answers.extend(_answer(case, made, Path(work)) for case in cases)
        finally:
            if given.report:
                given.report.write_text(report(answers, len(cases), part=given.only or given.sample is not None))
    failed, kinds = sum(bool(answer.problems) for answer in answers), {answer.case.kind for answer in answers}
    sys.stdout.write(f"{len(answers)} bad inputs of {len(kinds)} kinds, {failed} not answered right\n")
    return 1 if failed else 0


@dataclass(frozen=True)
class Answer:
    """How a bad input was answered, and what is wrong with that."""

    case: Case
    code: int | str
    problems: tuple[str, ...]


def report(answers: Sequence[Answer], count: int, *, part: bool) -> str:
    """A summary in Markdown.

    Args:
        answers: of the cases that ran.
        count: of the cases that were to run.
        part: whether these are not the whole table.
    """
    wrong = [answer for answer in answers if answer.problems]
    ran = "all ran" if len(answers) == count else f"{len(answers)} ran: the others are not known"
    scope = "a part of the table" if part else "the whole table"
    lines = [
        "# Bad inputs",
        "",
        f"Written by `make bad-inputs`: {count} cases, {scope}; {ran}. {len(wrong)} are not answered right.",
        "",
        "| kind | cases | exit code 2, one line | a verdict of 1 | not right |",
        "|---|---|---|---|---|",
    ]
    kinds = {
        kind: [answer for answer in answers if answer.case.kind == kind]
        for kind in sorted({a.case.kind for a in answers})
    }
    for kind, found in {**kinds, "all": answers}.items():
        right = Counter(answer.code for answer in found if not answer.problems)
        lines.append(f"| {kind} | {len(found)} | {right[2]} | {right[1]} | {len(found) - right[2] - right[1]} |")
    lines += ["", *(f"- {answer.case.name}: {'; '.join(answer.problems)}" for answer in wrong)]
    return "\n".join(lines).rstrip() + "\n"


def sample(cases: Sequence[Case], count: int, seed: int) -> list[Case]:
    """Cases in turns from every kind, until there are enough."""
    kinds = defaultdict[str, list[Case]](list)
    for case in cases:
        kinds[case.kind].append(case)
    draw = random.Random(seed)
    for found in kinds.values():
        draw.shuffle(found)
    chosen = []
    while len(chosen) < min(count, len(cases)):
        chosen += [found.pop() for found in kinds.values() if found]
    return chosen[:count]


def _answer(case: Case, made: Path, work: Path) -> Answer:
    here, out = work / "here", work / "out"
    for directory in (here, out):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
    lay_out(case, made, here)
    outcome = forked.run(case.command.program, list(case.words), here, out)
    problems = wrong(case, outcome)
    if problems:
        said = outcome.stderr if len(outcome.stderr) < 1500 else f"{outcome.stderr[:300]} ... {outcome.stderr[-1200:]}"
        sys.stdout.write(
            f"WRONG {case.name}\n  {'; '.join(problems)}\n  {shown(case)[:300]}\n  {outcome.wall_s:.1f} s, stderr: {said.strip()}\n"
        )
        sys.stdout.flush()
    return Answer(case, outcome.code, tuple(problems))


def wrong(case: Case, outcome: Outcome) -> list[str]:
    """What is wrong with how a bad input was answered."""
    problems = []
    if outcome.code not in case.codes:
        problems.append(f"exit code {outcome.code}, not {' or '.join(map(str, case.codes))}")
    if "Traceback" in outcome.stderr:
        problems.append("a traceback")
    if outcome.code == 2:
        lines = outcome.stderr.splitlines()
        if len(lines) != 1 or not lines[0].startswith(f"{case.command.program}: "):
            problems.append(f"{len(lines)} lines on stderr")
        if not re.search(case.pattern, outcome.stderr):
            problems.append(f"its line does not match {case.pattern!r}")
        if outcome.stdout:
            problems.append("something on stdout")
    if outcome.changed:
        problems.append(f"changed {', '.join(outcome.changed[:4])}")
    return problems


if __name__ == "__main__":
    sys.exit(main())
