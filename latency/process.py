"""Start and end of a command: its standard streams, the signals that stop it, and the exit code of each exception.

Exit codes: 0 done; 1 a verdict fails; 2 bad input; 70 a fault of this program; 130, 143 and 129 stopped by SIGINT
(Ctrl-C), SIGTERM and SIGHUP; 141 the reader of the output is gone.
"""

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Generator
from types import FrameType
from typing import Any

from latency.errors import LatencyError, escaped, one_line

BAD_INPUT = 2
FAULT = 70
"""EX_SOFTWARE of sysexits.h."""
DEBUG = "LATHE_DEBUG"
"""Environment variable; if it is set, a fault shows its traceback."""

_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "ended by SIGTERM", signal.SIGHUP: "ended by SIGHUP"}
_LIMIT = 2000
_LONG_WORD = 300  # characters; longer words are cut, so that they do not displace the message
_REPEAT_S = 1.0


class Stopped(KeyboardInterrupt):
    """A signal stops the command. Code that cleans up after a `KeyboardInterrupt` handles it too.

    Attributes:
        signum: number of the signal.
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
    """Run a command and map its outcome to an exit code.

    Args:
        program: prefix of every line on stderr.
        work: the command; returns its exit code.
        user_errors: returns the errors that users can fix, besides `LatencyError` and `OSError`; called after an error.
        goes_on: returns whether the same command would now continue from where it stopped; called after a signal.

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
            if received:  # the signal broke an import, or a library turned it into an error of its own
                return _stopped(program, received[0], goes_on)
            if isinstance(error, (LatencyError, OSError, *user_errors())):
                if isinstance(error, OSError):  # possibly from standard output
                    _silence_output()
                return _end(program, words(error), BAD_INPUT)
            return _end(program, _fault(error), FAULT)


def words(error: Exception) -> str:
    """Return an error as one line for the user; for a system error, the file and its problem."""
    if isinstance(error, OSError) and error.strerror:
        return printable(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    return printable(error)


def printable(text: object) -> str:
    """Return a text as one line for any terminal: control characters and non-UTF-8 are escaped, long words are cut."""
    words = (f"{word[:80]}...{word[-20:]}" if len(word) > _LONG_WORD else word for word in str(text).split())
    line = one_line(" ".join(words), _LIMIT).encode("utf-8", "backslashreplace").decode()
    return escaped(line)


def _fault(error: Exception) -> str:
    if os.environ.get(DEBUG):
        traceback.print_exception(error)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{os.path.basename(frame.filename)}:{frame.lineno}"  # noqa: PTH119 -- pathlib may be what failed
    what = f"{type(error).__name__}: {error} ({place})"
    return f"this is a fault of Lathe, please report it: {what}; {DEBUG}=1 shows the traceback"


def _stopped(program: str, signum: int, goes_on: Callable[[], bool]) -> int:
    on = "the same command goes on from here" if goes_on() else "nothing was kept, give the same command again"
    return _end(program, f"{_WORDS[signal.Signals(signum)]}; {on}", 128 + signum)


def _end(program: str, text: str, code: int) -> int:
    with contextlib.suppress(OSError, ValueError):  # stderr may be closed, on a full disk, or a lost terminal
        sys.stderr.write(f"{program}: {printable(text)}\n")
        sys.stderr.flush()
    return code


@contextlib.contextmanager
def _signals() -> Generator[list[int]]:
    """Turn the signals that stop a command into `Stopped`; yields those received. Ignored ones (nohup) stay ignored."""
    received, last = list[int](), -_REPEAT_S

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _REPEAT_S:  # make and terminals signal the group and then the process: let it clean up
            return
        last = now
        received.append(signum)
        raise Stopped(signum)

    before: dict[signal.Signals, Any] = {}
    with contextlib.suppress(ValueError):  # outside the main thread, signals are the caller's business
        for signum in _WORDS:
            if signal.getsignal(signum) is not signal.SIG_IGN:
                before[signum] = signal.signal(signum, stop)
    try:
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _require_streams() -> None:
    """Open closed standard streams to the null device: otherwise prints would go to the next file that is opened."""
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
    """Redirect standard output to the null device if it cannot be flushed, so that the flush at exit does not fail."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
