"""Entry point of `lathe`, on the console and as `python -m lathe`."""

import os
import signal
from types import FrameType


def main() -> None:
    """Run the command line; exit by `SystemExit`. A signal during imports also ends it with one line."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _leave)
    from lathe import cli

    try:
        cli.main()
    finally:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the command is done: keep its exit code
            if signal.getsignal(signum) == _leave:
                signal.signal(signum, signal.SIG_IGN)


def _leave(signum: int, frame: FrameType | None) -> None:
    """Exit immediately: nothing was begun, and an exception raised during an import may be lost."""
    os.write(2, f"lathe: ended by {signal.Signals(signum).name}; nothing was begun\n".encode())
    os._exit(128 + signum)


if __name__ == "__main__":
    main()
