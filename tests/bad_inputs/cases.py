"""The table of bad inputs, generated: each is a command that would be right, with one thing in it that is wrong."""

import json
import os
import re
import shutil
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from bad_inputs import damage
from bad_inputs.artefacts import BLOCKS, BUNDLE, EPOCHS, IMAGES, ONNX, PAGE, PICTURE, RUN, SAMPLES, SEARCH_WORDS, TABLE
from lathe import cli, parsing

Word = str | bytes
Prepare = Callable[[Path], None]


@dataclass(frozen=True)
class Command:
    """A command line that would be right, where the artefacts that it needs lie in the working directory."""

    struct: type | None
    words: tuple[str, ...]
    needs: tuple[str, ...] = ()
    program: Literal["lathe", "latency"] = "lathe"

    @property
    def name(self) -> str:
        """Program and subcommand."""
        return " ".join([self.program, *(word for word in self.words[: 1 + (self.words[0] == "table")])])


@dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes:
        kind: what is wrong with it: the stratum that samples are drawn by.
        name: unique.
        command: that it is made from.
        words: its command line.
        prepare: puts the damage where the artefacts are.
        pattern: of its line on stderr.
        codes: exit codes that are right.
    """

    kind: str
    name: str
    command: Command
    words: tuple[Word, ...]
    prepare: Prepare
    pattern: str
    codes: tuple[int, ...] = (2,)


SPACE = Command(cli.SpaceCommand, ("space", "repvgg-mini"))
BUNDLING = Command(cli.BundleCommand, ("bundle", "repvgg-mini", "--out", "new.blocks.zip"))
PROFILE = Command(
    cli.ProfileCommand,
    ("profile", BLOCKS, "--backend", "simulated:seed=0", "--protocol", "fast", "--out", "new.jsonl"),
    (BLOCKS,),
)
RESUME = Command(
    cli.ProfileCommand,
    ("profile", BLOCKS, "--backend", "simulated:seed=0", "--protocol", "fast", "--out", TABLE),
    (BLOCKS, TABLE),
)
REPLAY = Command(
    cli.ProfileCommand,
    ("profile", BLOCKS, "--backend", f"replay:{TABLE}", "--protocol", "fast", "--out", "new.jsonl"),
    (BLOCKS, TABLE),
)
APART = Command(
    None,
    ("profile", BLOCKS, "--backend", "simulated:seed=0", "--protocol", "fast", "--out", "new.jsonl"),
    (BLOCKS,),
    "latency",
)
SHOW = Command(cli.TableShow, ("table", "show", TABLE), (TABLE,))
CHECK = Command(cli.TableCheck, ("table", "check", TABLE, "--space", "repvgg-mini"), (TABLE,))
DIFF = Command(cli.TableDiff, ("table", "diff", TABLE, "other.jsonl"), (TABLE,))
MERGE = Command(cli.TableMerge, ("table", "merge", TABLE, "--out", "new.jsonl"), (TABLE,))
SEARCH = Command(cli.SearchCommand, (*SEARCH_WORDS, "new", *EPOCHS), (IMAGES,))
GO_ON = Command(cli.SearchCommand, (*SEARCH_WORDS, RUN, *EPOCHS), (IMAGES, RUN))
FROM_TABLE = Command(cli.SearchCommand, (*SEARCH_WORDS, "new", "--table", TABLE), (IMAGES, TABLE))
EXPORT = Command(
    cli.ExportCommand, ("export", ONNX, "--samples", SAMPLES, "--protocol", "fast", "--out", "new"), (ONNX, SAMPLES)
)
EXPORT_RUN = Command(cli.ExportCommand, ("export", RUN, "--protocol", "fast", "--out", "new"), (RUN, IMAGES))
VERIFY = Command(cli.VerifyCommand, ("verify", BUNDLE), (BUNDLE,))
REPORT = Command(cli.ReportCommand, ("report", BUNDLE, "--out", "new.html"), (BUNDLE,))
REPORT_RUN = Command(cli.ReportCommand, ("report", RUN, "--out", "new.html"), (RUN,))
PAPER = Command(cli.PaperCommand, ("paper", "pas"))
PREDICT = Command(cli.PredictCommand, ("predict", ONNX, "--table", TABLE), (ONNX, TABLE))
ONE_EACH = (SPACE, BUNDLING, PROFILE, APART, SHOW, CHECK, DIFF, MERGE, SEARCH, EXPORT, PREDICT, VERIFY, REPORT, PAPER)

READERS: dict[str, tuple[Command, ...]] = {
    TABLE: (SHOW, CHECK, DIFF, MERGE, RESUME, REPLAY, FROM_TABLE),
    BLOCKS: (PROFILE, APART),
    ONNX: (EXPORT, PREDICT),
    SAMPLES: (EXPORT,),
    f"{BUNDLE}/manifest.json": (VERIFY, REPORT),
    f"{RUN}/run.json": (GO_ON, REPORT_RUN, EXPORT_RUN),
    f"{RUN}/result.json": (EXPORT_RUN, REPORT_RUN),
    f"{RUN}/architecture.json": (EXPORT_RUN,),
    f"{RUN}/history.jsonl": (REPORT_RUN,),
    f"{RUN}/weights.safetensors": (EXPORT_RUN,),
}
"""Which commands read a file."""

DOCUMENTS: dict[str, tuple[tuple[str, Any], ...]] = {
    TABLE: (("header", damage.table_line(0)), ("row", damage.table_line(2))),
    BLOCKS: (("index", damage.zip_index()),),
    f"{BUNDLE}/manifest.json": (("manifest", damage.manifest()),),
    f"{RUN}/run.json": (("run", damage.document()),),
    f"{RUN}/result.json": (("result", damage.document()),),
    f"{RUN}/architecture.json": (("architecture", damage.document()),),
    f"{RUN}/history.jsonl": (("history", damage.line(0)), ("epoch", damage.line(1))),
}
"""The JSON in a file, how it is read and how it is written, sealed again."""


def all_cases(artefacts: Path) -> list[Case]:
    """The whole table."""
    makers = (
        _damaged_bytes,
        _other_things,
        _leaves,
        _numbers,
        _choices,
        _usage,
        _inputs,
        _outputs,
        _conflicts,
        _backends,
        _folders,
    )
    found = [case for maker in makers for case in maker(artefacts)]
    names = [case.name for case in found]
    assert len(set(names)) == len(names), [name for name in names if names.count(name) > 1][:5]
    return found


def _nothing(here: Path) -> None:
    pass


def _sibling(here: Path) -> None:
    """The second table of a comparison."""
    if (here / TABLE).is_file():
        shutil.copy(here / TABLE, here / "other.jsonl")


def _case(
    kind: str,
    what: str,
    command: Command,
    words: tuple[Word, ...] | None = None,
    prepare: Prepare = _nothing,
    **more: Any,
) -> Case:
    def both(here: Path) -> None:
        _sibling(here)
        prepare(here)

    more.setdefault("pattern", ".")
    return Case(
        kind, f"{command.name}: {kind}: {what}", command, command.words if words is None else words, both, **more
    )


def _judged(command: Command) -> tuple[int, ...]:
    """Exit codes for a damaged artefact: `verify` and `table check` are there to judge, and may say it with a verdict."""
    return (1, 2) if command in (VERIFY, CHECK) else (2,)


def _put(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def _damaged_bytes(artefacts: Path) -> Iterator[Case]:
    for name, commands in READERS.items():
        for what, content in damage.of_bytes(artefacts / name):
            for number, command in enumerate(commands):
                prepare = lambda here, name=name, content=content: _put(here / name, content)  # noqa: E731
                if what not in SOUND_BYTES.get(name, ()) and (what, command) not in SOUND_FOR:
                    kind = f"bytes of {Path(name).name}"
                    yield _case(
                        kind,
                        f"{what} ({number})",
                        command,
                        prepare=prepare,
                        pattern=_named(name),
                        codes=_judged(command),
                    )


SOUND_BYTES: dict[str, tuple[str, ...]] = {
    TABLE: ("cut in half",),  # its last line is torn, as a killed profile leaves it: dropped with a warning
    BLOCKS: ("not UTF-8", "twice"),  # a zip is read from its end, and every file in it has its hash
    SAMPLES: ("zeros in the middle",),
}
"""Damage that leaves a file as good as it was."""
SOUND_FOR = {("empty", RESUME)}


def _named(name: str) -> str:
    """A pattern of a message that names a file, or the directory that it is in."""
    if name == ONNX:  # a directory there is taken for a run, which takes no samples
        return "(?i)sound|samples|ONNX"
    return f"(?i){name.rpartition('/')[2].partition('.')[0]}|{name.partition('/')[0].partition('.')[0]}"


def _other_things(artefacts: Path) -> Iterator[Case]:
    for name, commands in READERS.items():
        for what, change in damage.PLACES.items():
            for number, command in enumerate(commands):
                if (
                    what == "missing"
                    and command is REPORT_RUN
                    and name in (f"{RUN}/history.jsonl", f"{RUN}/result.json")
                ):
                    continue  # a search that is not finished has a page

                def prepare(here: Path, name: str = name, change: damage.Change = change) -> None:
                    (here / name).unlink()
                    change(here / name)

                if what in ("missing", "dangling link") and command in (RESUME, GO_ON):
                    continue
                kind = f"in the place of {Path(name).name}"
                yield _case(
                    kind, f"{what} ({number})", command, prepare=prepare, pattern=_named(name), codes=_judged(command)
                )


def _leaves(artefacts: Path) -> Iterator[Case]:
    for name, parts in DOCUMENTS.items():
        data = (artefacts / name).read_bytes()
        for part, (get, put) in parts:
            for index, (what, value) in enumerate(damage.of_json(get(data))):
                # the readers share one decoder: each leaf is read by one of them
                command = READERS[name][index % len(READERS[name])]
                if not _is_sound(part, what, command):

                    def prepare(
                        here: Path, name: str = name, value: Any = value, put: Any = put, data: bytes = data
                    ) -> None:
                        _put(here / name, put(data, value))

                    kind = f"{part} of {Path(name).name}"
                    yield _case(kind, what, command, prepare=prepare, pattern=_named(name), codes=_judged(command))


def _is_sound(part: str, what: str, command: Command) -> bool:
    """Whether a change of a document leaves it as good as it was, for a command."""
    return any(
        re.search(pattern, what) for parts, commands, pattern in SOUND_LEAVES if part in parts and command in commands
    )


SOUND_LEAVES: tuple[tuple[tuple[str, ...], tuple[Command, ...], str], ...] = (
    # What somebody recorded by names of their own, and what is shown but never computed with.
    (("header",), READERS[TABLE], r"^settings has a field more"),
    (("row",), READERS[TABLE], r"^clocks(\.\w+ is (-1|too|1e308)| has a field more)"),
    (("epoch",), (REPORT_RUN,), r"^loss is -1"),  # a penalty may be below 0
    (("manifest",), (VERIFY, REPORT), r"^(preprocessing|provenance|versions|build) has a field more"),
)
"""Of documents and commands the changes that do no harm."""


BAD_TEXT = ("x", "1.5x", "0x10", "--", "1,5", "１．５e")
NUMBERS: dict[type, tuple[str, ...]] = {
    int: (*BAD_TEXT, "1.5", "nan", "inf", "1e3", "-1", str(-(2**70)), str(2**70), "9" * 5000),
    float: (*BAD_TEXT, "nan", "-nan", "inf", "-inf", "1e999", "-1", "-1e-9", "1e300", "9" * 5000),
}


def _flags(command: Command) -> Iterator[tuple[str, Any]]:
    """Every flag of a command, with its type."""
    if command.struct is None:
        return
    hints = typing.get_type_hints(command.struct)
    for field in fields(command.struct):
        raw = typing.get_type_hints(command.struct, include_extras=True)[field.name]
        if "Positional" not in repr(raw) and field.name != "json":
            yield f"--{field.name.replace('_', '-')}", hints[field.name]


def _types(hint: Any) -> set[Any]:
    """The types in an optional one."""
    return (
        set(typing.get_args(hint)) - {type(None)}
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        else {hint}
    )


def _with(words: tuple[str, ...], flag: str, value: Word) -> tuple[Word, ...]:
    """A command line with a flag set to a value."""
    if flag in words:
        place = words.index(flag) + 1
        return (*words[:place], value, *words[place + 1 :])
    return (*words, flag, value)


def _numbers(artefacts: Path) -> Iterator[Case]:
    for command in ONE_EACH:
        for flag, hint in _flags(command):
            for kind in sorted(_types(hint) & {int, float}, key=str):
                for value in NUMBERS[kind]:
                    pattern = flag if value != "--" else "."
                    yield _case(
                        "numbers", f"{flag} {value[:20]}", command, _with(command.words, flag, value), pattern=pattern
                    )
    for value in NUMBERS[int]:
        yield _case(
            "numbers", f"--threads {value[:20]}", APART, _with(APART.words, "--threads", value), pattern="threads|--"
        )
    for flag, value in (
        ("--threads", "0"),
        ("--threads", "4096"),
        ("--classes", "1"),
        ("--resolution", "0"),
        ("--drift-limit", "0"),
    ):
        yield _case("numbers", f"{flag} {value}", PROFILE, _with(PROFILE.words, flag, value), pattern=flag)
    for command in (APART, EXPORT):
        for value in ("0", "4096"):
            yield _case(
                "numbers", f"--threads of {value}", command, _with(command.words, "--threads", value), pattern="threads"
            )
    for flag in ("--budget-ms", "--workspace-mib"):
        yield _case("numbers", f"{flag} 0", EXPORT, _with(EXPORT.words, flag, "0"), pattern=flag)
    yield _case(
        "numbers",
        "--optimization-level 6",
        EXPORT,
        _with(EXPORT.words, "--optimization-level", "6"),
        pattern="optimization",
    )


def _choices(artefacts: Path) -> Iterator[Case]:
    for command in ONE_EACH:
        for flag, hint in _flags(command):
            if typing.get_origin(hint) is Literal:
                for value in ("bogus", typing.get_args(hint)[0].upper()):
                    yield _case(
                        "choices",
                        f"{flag} {value}",
                        command,
                        _with(command.words, flag, value),
                        pattern=f"{flag}.*{typing.get_args(hint)[0]}",
                    )
    for command, flag in (
        (PROFILE, "--protocol"),
        (EXPORT, "--protocol"),
        (APART, "--protocol"),
        (PROFILE, "--backend"),
        (APART, "--backend"),
    ):
        for value in ("bogus", "FAST", "onnxruntime:bogus", "bogus:x=1", "\u202e"):
            yield _case(
                "choices",
                f"{flag} {value!r}",
                command,
                _with(command.words, flag, value),
                pattern="unknown|provider|choose",
            )
    for value in ("coreml", "onnxruntime:cuda", "TENSORRT"):
        yield _case(
            "choices",
            f"--target {value}",
            EXPORT,
            _with(EXPORT.words, "--target", value),
            pattern="target.*onnxruntime, tensorrt",
        )
    for value in ("0/1", "2/1", "1/0", "a/b", "1", "1/2/3", "-1/2", "1/-2", f"1/{10**12}x", "1/2 ", "nan/1", "１/x"):
        yield _case("choices", f"--shard {value}", PROFILE, _with(PROFILE.words, "--shard", value), pattern="shard")
        yield _case("choices", f"--shard {value}", APART, _with(APART.words, "--shard", value), pattern="shard")
    for command, place, known in (
        (SPACE, 1, "repvgg-mini"),
        (BUNDLING, 1, "repvgg-mini"),
        (PAPER, 1, "pas"),
        (SEARCH, 1, "pas"),
    ):
        for value in (
            "bogus",
            "REPVGG-MIDI",
            "repvgg-mini/bogus",
            "../repvgg-mini",
            "résumé",
            "a" * 5000,
            "a\nb",
            "\x1b[31mred",
        ):
            words = (*command.words[:place], value, *command.words[place + 1 :])
            pattern = "Unrecognized|pas" if command is SEARCH else f"unknown.*{known}"  # its methods are subcommands
            yield _case("choices", f"word {place} {value[:20]!r}", command, words, pattern=pattern)


def _usage(artefacts: Path) -> Iterator[Case]:
    for command in ONE_EACH:
        words = command.words
        yield _case("usage", "unknown flag", command, (*words, "--colour", "red"), pattern="--colour")
        yield _case("usage", "unknown short flag", command, (*words, "-x"), pattern="-x")
        yield _case("usage", "a word more", command, (*words, "more", "--nothing"), pattern="more|nothing")
        yield _case("usage", "an empty word", command, (*words, ""), pattern="empty")
        yield _case("usage", "a word of spaces", command, (*words, "  "), pattern="empty")
        yield _case("usage", "not UTF-8", command, (*words, b"\xff"), pattern="UTF-8")
        if command.struct is not None:
            yield _case("usage", "a flag with a value", command, (*words, "--json=maybe"), pattern="json|maybe")
            yield _case(
                "usage",
                "a flag and its opposite",
                command,
                (*words, "--json", "--no-json"),
                pattern="--json is given twice",
            )
            for count, word in enumerate(words):
                if count and not (words[0] == "table" and count == 1):
                    empty = (*words[:count], "", *words[count + 1 :])
                    yield _case("usage", f"word {count} empty", command, empty, pattern="empty")
                    other = (*words[:count], os.fsencode(word) + b"\xff", *words[count + 1 :])
                    yield _case("usage", f"word {count} not UTF-8", command, other, pattern="UTF-8")
        for flag, hint in _flags(command):
            value = () if hint is bool else ("1",)
            if flag in parsing.REPEATABLE:
                continue
            yield _case(
                "usage", f"{flag} twice", command, (*words, *(flag, *value) * 2), pattern=f"{flag} is given twice"
            )
            if value:
                yield _case(
                    "usage",
                    f"{flag} twice, with =",
                    command,
                    (*words, f"{flag}=1", flag, "2"),
                    pattern=f"{flag} is given twice",
                )
                yield _case(
                    "usage",
                    f"{flag} without a value",
                    command,
                    (*(word for word in _without(words, flag)), flag),
                    pattern=flag,
                )
        required = {
            flag for flag in words if flag in ("--out", "--space") and command is not REPORT and command is not CHECK
        }
        for flag in sorted(required):
            yield _case("usage", f"without {flag}", command, _without(words, flag), pattern=flag)
    for words in (
        (),
        ("fly",),
        ("table",),
        ("table", "fly"),
        ("--version-of", "x"),
        ("space",),
        ("verify",),
        ("paper",),
        ("table", "diff", "a"),
    ):
        yield _case("usage", f"lathe {' '.join(words)}", Command(None, ("lathe",)), words, pattern=".")
    for words in ((), ("fly",), ("profile",), ("prof", "x")):
        yield _case(
            "usage", f"latency {' '.join(words)}", Command(None, ("latency",), program="latency"), words, pattern="."
        )


def _without(words: tuple[str, ...], flag: str) -> tuple[str, ...]:
    if flag not in words:
        return words
    place = words.index(flag)
    return (*words[:place], *words[place + 2 :])


INPUTS: tuple[tuple[Command, str], ...] = (
    (SHOW, TABLE),
    (CHECK, TABLE),
    (DIFF, TABLE),
    (MERGE, TABLE),
    (PROFILE, BLOCKS),
    (APART, BLOCKS),
    (EXPORT, ONNX),
    (EXPORT, SAMPLES),
    (EXPORT_RUN, RUN),
    (VERIFY, BUNDLE),
    (REPORT, BUNDLE),
    (FROM_TABLE, TABLE),
)


def _inputs(artefacts: Path) -> Iterator[Case]:
    """Names of files and directories to read."""
    for command, name in INPUTS:
        place = command.words.index(name)
        ending = ".blocks.zip" if name == BLOCKS else ""
        values = [
            "none" + ending,
            "none/none" + ending,
            "/dev/zero",
            "/dev/stdin",
            "/proc/self/mem",
            "/",
            "n" * 300 + ending,
            "~none" + ending,
        ]
        values += ["no\nline" + ending, "a\x1b[31mb" + ending, "-" + ending, "/dev/fd/99", "/etc/shadow" + ending]
        for value in values:
            words = (*command.words[:place], value, *command.words[place + 1 :])
            yield _case(f"input {name}", repr(value[:20]), command, words, pattern=".")


PRECIOUS = b"precious\n"


def _outputs(artefacts: Path) -> Iterator[Case]:
    """Places to write to."""
    files: tuple[tuple[Command, str, str, str], ...] = (
        (BUNDLING, "--out", ".blocks.zip", BLOCKS),
        (PROFILE, "--out", ".jsonl", TABLE),
        (APART, "--out", ".jsonl", TABLE),
        (MERGE, "--out", ".jsonl", ""),
        (SHOW, "--plot", ".svg", PICTURE),
        (SHOW, "--plot", ".png", PICTURE),
        (REPORT, "--out", ".html", PAGE),
        (REPORT_RUN, "--out", ".html", PAGE),
    )
    for command, flag, ending, own in files:
        yield from _output_places(command, flag, ending, tree=False)
        for other in sorted({TABLE, BLOCKS, ONNX, PAGE, PICTURE, SAMPLES} - {own}):
            prepare = lambda here, other=other, ending=ending: _copy(other, here / f"own{ending}")  # noqa: E731
            words = _with(command.words, flag, f"own{ending}")
            yield _case(
                "outputs",
                f"{flag} over {other} {ending} {command.words[1]}",
                command,
                words,
                prepare,
                pattern=f"own{ending}",
            )
    for command in (EXPORT, EXPORT_RUN, SEARCH):
        yield from _output_places(command, "--out", "", tree=True)
    for suffix in (".pdf", "", ".PNG", ".jpg", ".png.txt"):
        yield _case("outputs", f"--plot x{suffix}", SHOW, _with(SHOW.words, "--plot", f"x{suffix}"), pattern="--plot")


_ARTEFACTS: list[Path] = []


def _copy(name: str, to: Path) -> None:
    shutil.copy(_ARTEFACTS[0] / name, to)


def _output_places(command: Command, flag: str, ending: str, *, tree: bool) -> Iterator[Case]:
    def inside(here: Path) -> None:
        if not (here / BUNDLE).exists():
            shutil.copytree(_ARTEFACTS[0] / BUNDLE, here / BUNDLE)

    def pair(here: Path) -> None:
        (here / "precious").write_bytes(PRECIOUS)
        (here / f"x{ending}").symlink_to("precious")

    def full(here: Path) -> None:
        (here / f"x{ending}").mkdir()
        (here / f"x{ending}" / "precious").write_bytes(PRECIOUS)

    name = f"x{ending}"
    places: dict[str, tuple[str, Prepare]] = {
        "a person's file": (name, lambda here: _write(here / name, PRECIOUS)),
        "a directory": (name, full),
        "a pipe": (name, lambda here: os.mkfifo(here / name)),
        "a link": (name, pair),
        "a dangling link": (name, lambda here: (here / name).symlink_to("nowhere")),
        "a link loop": (name, lambda here: (here / name).symlink_to(name)),
        "a file as parent": (f"f/{name}", lambda here: _write(here / "f", PRECIOUS)),
        "inside a bundle": (f"{BUNDLE}/{name}", inside),
        "inside a bundle, deeper": (f"{BUNDLE}/../{BUNDLE}/{name}", inside),
        "a long name": ("n" * 250 + ending, _nothing),
        "a place of the system": (f"/proc/{name}", _nothing),
        "another place of the system": (f"/sys/{name}", _nothing),
        "the working directory": (".", _nothing),
        "its parent": ("..", _nothing),
        "the root": ("/", _nothing),
        "a device": ("/dev/null", _nothing),
        "a device's name": (f"/dev/full/{name}", _nothing),
    }
    if command not in (PROFILE, APART, MERGE) and not tree:
        places["no parent"] = (f"none/none/{name}", _nothing)
    for what, (value, prepare) in places.items():
        yield _case(
            "outputs",
            f"{flag} is {what} {ending} {command.words[1]}",
            command,
            _with(command.words, flag, value),
            prepare,
            pattern=".",
        )


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _conflicts(artefacts: Path) -> Iterator[Case]:
    """Flags that do not go together."""
    table: list[tuple[Command, tuple[Word, ...], str]] = [
        (PROFILE, (*PROFILE.words, "--seed", "1"), "--seed"),
        (PROFILE, (*PROFILE.words, "--classes", "5"), "--classes"),
        (PROFILE, (*PROFILE.words, "--resolution", "32"), "--resolution"),
        (PROFILE, (*PROFILE.words, "--networks", "5"), "--networks"),
        (PROFILE, (*PROFILE.words, "--timing-cache", "none"), "--timing-cache"),
        (PROFILE, (*PROFILE.words, "--timing-cache", BLOCKS), "timing.cache"),
        (PROFILE, (*PROFILE.words, "--save-timing-cache", "c"), "--save-timing-cache"),
        (SEARCH, (*SEARCH.words, "--budget-ms", "1"), "--budget|budget"),
        (SEARCH, _without(SEARCH.words, "--budget-fraction"), "budget"),
        (SEARCH, (*SEARCH.words, "--baseline", "none"), "none"),
        (SEARCH, (*SEARCH.words, "--exclude", "bogus"), "bogus"),
        (SEARCH, (*SEARCH.words, "--regulariser", "paper"), "regulariser"),
        (EXPORT, (*EXPORT.words, "--optimization-level", "5"), "engine"),
        (EXPORT, (*EXPORT.words, "--workspace-mib", "5"), "engine"),
        (EXPORT, (*EXPORT.words, "--version-compatible"), "engine"),
        (EXPORT, (*EXPORT.words, "--hardware-compatible"), "engine"),
        (EXPORT, (*EXPORT.words, "--timing-cache", "none"), "engine|cache"),
        (EXPORT, (*EXPORT.words, "--compute-capability", "8.9"), "engine"),
        (EXPORT_RUN, (*EXPORT_RUN.words, "--samples", "none"), "--samples"),
        (RESUME, _with(RESUME.words, "--protocol", "default"), "protocol"),
        (RESUME, _with(RESUME.words, "--backend", "simulated:seed=1"), "seed|settings"),
        (GO_ON, (*GO_ON.words, "--seed", "7"), "seed"),
        (MERGE, _with(MERGE.words, "--out", TABLE), "exists"),
        (DIFF, ("table", "diff", TABLE, BLOCKS), BLOCKS),
        (REPORT, (*REPORT.words, "--table", "none"), "none"),
        (REPORT_RUN, (*REPORT_RUN.words, "--table", BLOCKS), BLOCKS),
        (REPORT, ("report", "."), r"bundle|search"),
        (REPORT, ("report", "/"), "."),
        (VERIFY, ("verify", "."), "bundle"),
        (EXPORT, ("export", ".", "--out", "new"), "."),
        (CHECK, _with(CHECK.words, "--space", "bogus"), "bogus"),
    ]
    for command, words, pattern in table:
        prepare = _nothing
        if BLOCKS in words and BLOCKS not in command.needs:
            prepare = lambda here: _copy(BLOCKS, here / BLOCKS)  # noqa: E731
        extra = " ".join(word if isinstance(word, str) else repr(word) for word in words)
        yield _case("conflicts", extra, command, words, prepare, pattern=f"(?s){pattern}")


def _backends(artefacts: Path) -> Iterator[Case]:
    """Values of `simulated:` and `replay:`."""
    settings = ("seed", "noise", "step", "drift", "fast_every")
    values = ("", "x", "nan", "inf", "-1", str(2**70), "1e400", "-1e300")
    for command in (PROFILE, APART):
        for name in ("seed", "noise", "drift"):
            for value in values:
                words = _with(command.words, "--backend", f"simulated:{name}={value}")
                if (name, value) not in (("seed", "-1"), ("seed", str(2**70))):
                    yield _case("simulated", f"{name}={value}", command, words, pattern=name)
        for text in ("bogus=1", "seed", "seed=1,seed=2", ",", "=", "seed=1,", "seed==1", "seed=0 noise=1"):
            yield _case(
                "simulated",
                text,
                command,
                _with(command.words, "--backend", f"simulated:{text}"),
                pattern="seed|bogus|simulated",
            )
        for text in ("", "none", "/dev/zero", "/", BLOCKS):
            yield _case(
                "simulated", f"replay:{text}", command, _with(command.words, "--backend", f"replay:{text}"), pattern="."
            )
    assert settings


def _folders(artefacts: Path) -> Iterator[Case]:
    """Folders of images."""
    image = f"{IMAGES}/train/a/0.png"
    for what, content in damage.of_bytes(artefacts / image):
        if what in ("twice",):
            continue
        prepare = lambda here, content=content: _put(here / image, content)  # noqa: E731
        yield _case("images", what, SEARCH, prepare=prepare, pattern="0.png|train|images")
    for what, change in damage.PLACES.items():
        if what == "missing":
            continue

        def prepare(here: Path, change: damage.Change = change) -> None:
            (here / image).unlink()
            change(here / image)

        yield _case("images", f"in the place of one: {what}", SEARCH, prepare=prepare, pattern="0.png|train|images")
    for value in (
        "bogus",
        "folder:",
        "folder:none",
        "folder:/dev/null",
        "folder:/dev/zero",
        "digits:x",
        "folder:images/train/a/0.png",
        "DIGITS",
    ):
        yield _case(
            "images", f"--data {value}", SEARCH, _with(SEARCH.words, "--data", value), pattern="data|folder|images"
        )
    for what, remove in (("no class", "train"), ("one class", "train/a"), ("no test", "test/b")):
        prepare = lambda here, remove=remove: _thin(here, remove)  # noqa: E731
        yield _case("images", what, SEARCH, prepare=prepare, pattern=".")


def _thin(here: Path, remove: str) -> None:
    if remove == "train/a":
        for name in ("b", "c"):
            shutil.rmtree(here / IMAGES / "train" / name)
            shutil.rmtree(here / IMAGES / "test" / name)
    elif remove == "train":
        for path in list((here / IMAGES / "train").iterdir()):
            shutil.rmtree(path)
    else:
        shutil.rmtree(here / IMAGES / remove)


def lay_out(case: Case, artefacts: Path, here: Path) -> None:
    """Put into a directory what a case needs, and its damage."""
    _ARTEFACTS[:] = [artefacts]
    for name in case.command.needs:
        source = artefacts / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, here / name)
    case.prepare(here)


def shown(case: Case) -> str:
    """The command line of a case, for people."""
    return json.dumps([word if isinstance(word, str) else repr(word) for word in case.words])
