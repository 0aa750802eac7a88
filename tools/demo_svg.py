"""Draw the final output of `make demo`: run `python tools/demo_svg.py out/bundle docs/demo.svg` after it."""

import io
import sys
from pathlib import Path

from rich.console import Console

from lathe import cli, render


def main(bundle: str, svg: str) -> None:
    """Run `lathe report` on a bundle with a console that records its output."""
    render.OUT = Console(
        width=80, record=True, force_terminal=True, color_system="truecolor", highlight=False, file=io.StringIO()
    )
    try:
        cli.main(["report", bundle, "--out", f"{bundle}.html"])
    except SystemExit as end:
        if end.code:
            raise
    Path(svg).write_text(render.OUT.export_svg(title="make demo", unique_id="demo"), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
