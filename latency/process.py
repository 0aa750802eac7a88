"""How a command begins and ends.

Its standard streams, the signals that end it, and which exception gives which exit code.

Exit codes: 0 done; 1 a verdict fails; 2 bad input; 70 a fault of this program; 130, 143 and 129 ended by SIGINT
(Ctrl-C), SIGTERM and SIGHUP; 141 nobody reads the output any more.
"""

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from types import FrameType

from latency.errors import LatencyError, escaped, one_line

BAD_INPUT = 2
FAULT = 70
"""EX_SOFTWARE of sysexits.h."""
DEBUG = "LATHE_DEBUG"
"""Environment variable; where it is set, a fault shows its traceback."""

_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "ended by SIGTERM", signal.SIGHUP: "ended by SIGHUP"}
_LIMIT = 2000
_LONG_WORD = 300  # characters: somebody's nonsense, which is not to push out what is said of it
_REPEAT_S = 1.0


class Stopped(KeyboardInterrupt):
    """A signal ends the command. What a `KeyboardInterrupt` cleans up, this does, too.

    Attributes:
        signum: the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def run(
    program: str,
    work: Callable[[], int],
    *,
    user_errors: Callable[[], tuple[type[Exception], ...]] = lambda: (),
    goes_on: Callable[[], bool] = lambda: False,
) -> int:
    """Do a command's work.

    Args:
        program: begins every line on stderr.
        work: the command; returns its exit code.
        user_errors: what the user can fix, besides `LatencyError` and `OSError`; asked when something was raised.
        goes_on: whether the same command would now go on where it was stopped; asked when a signal ends it.

    Returns:
        The exit code.
    """
    _require_streams()
    with _signals() as received:
        try:
            code = work()
            sys.stdout.flush()
            return code
        except BrokenPipeError:
            _silence_output()
            return 128 + signal.SIGPIPE
        except KeyboardInterrupt as stop:
            return _stopped(program, stop.signum if isinstance(stop, Stopped) else signal.SIGINT, goes_on)
        except MemoryError:
            return _end(program, "out of memory: close other programs, or give it a machine with more", FAULT)
        except Exception as error:  # noqa: BLE001 -- the one place where a fault of this program becomes an exit code
            if received:  # it broke an import, or a library turned it into an error of its own
                return _stopped(program, received[0], goes_on)
            if isinstance(error, (LatencyError, OSError, *user_errors())):
                if isinstance(error, OSError):  # perhaps of standard output
                    _silence_output()
                return _end(program, words(error), BAD_INPUT)
            return _end(program, _fault(error), FAULT)


def words(error: Exception) -> str:
    """What a user is told: the error in one line; of one of the system's the file and what is wrong with it."""
    if isinstance(error, OSError) and error.strerror:
        return printable(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    return printable(error)


def printable(text: object) -> str:
    """Somebody's words as one line for any terminal.

    What is not UTF-8 and control characters are escaped, and long words cut.
    """
    words = (f"{word[:80]}...{word[-20:]}" if len(word) > _LONG_WORD else word for word in str(text).split())
    line = one_line(" ".join(words), _LIMIT).encode("utf-8", "backslashreplace").decode()
    return escaped(line)


def _fault(error: Exception) -> str:
    if os.environ.get(DEBUG):
        traceback.print_exception(error)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{os.path.basename(frame.filename)}:{frame.lineno}"  # noqa: PTH119 -- pathlib may be what failed
    return (
        f"this is a fault of Lathe, please report it: {type(error).__name__}: {error} ({place}); {DEBUG}=1 shows the "
        "traceback"
    )


def _stopped(program: str, signum: int, goes_on: Callable[[], bool]) -> int:
    on = "the same command goes on from here" if goes_on() else "nothing was kept, give the same command again"
    return _end(program, f"{_WORDS[signal.Signals(signum)]}; {on}", 128 + signum)


def _end(program: str, text: str, code: int) -> int:
    with contextlib.suppress(OSError, ValueError):  # stderr may be closed, its disk full, its terminal gone
        sys.stderr.write(f"{program}: {printable(text)}\n")
        sys.stderr.flush()
    return code


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Turn the signals that end a command into `Stopped`; yields those that came.

    One that is ignored, as under nohup, stays so.
    """
    received, last = list[int](), -_REPEAT_S

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _REPEAT_S:  # make and terminals send it to the group and again to the process: let it clean up
            return
        last = now
        received.append(signum)
        raise Stopped(signum)

    before = {}
    with contextlib.suppress(ValueError):  # not in the main thread: who called it there sees to signals
        for signum in _WORDS:
            if signal.getsignal(signum) is not signal.SIG_IGN:
                before[signum] = signal.signal(signum, stop)
    try:
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _require_streams() -> None:
    """Open what is closed of the standard streams to nothing.

    Else the next file opened would be written by whoever prints.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, mode, closefd=False))


def _silence_output() -> None:
    """Let the interpreter's own last flush fail no more, where it would."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
