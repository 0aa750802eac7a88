"""Draw docs/architecture.svg from the imports of the packages: `python tools/imports_svg.py`."""

import sys
from pathlib import Path

import grimp

PLACES = {"lathe": (1, 0), "search": (1, 1), "deploy": (1, 2), "latency": (0, 3), "reparam": (2, 3)}
"""Column and row of each package."""
WIDTH, HEIGHT, COLUMN, LINE = 170, 46, 230, 120


def picture() -> str:
    """Return the picture: packages as boxes, with an arrow from each package to each one that it imports."""
    graph = grimp.build_graph(*PLACES, cache_dir=None)
    modules = {name: [module for module in graph.modules if module.split(".")[0] == name] for name in PLACES}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * COLUMN + WIDTH + 20} {3 * LINE + HEIGHT + 20}" '
        'font-family="sans-serif" font-size="15" text-anchor="middle">',
        '<rect width="100%" height="100%" rx="8" fill="#fff"/>',
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="10" refY="5" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0L10 5L0 10z" fill="#4a6fa5"/></marker></defs>',
    ]
    for name in PLACES:
        for other in PLACES:
            imported = [graph.find_modules_directly_imported_by(module) for module in modules[name]]
            count = sum(any(module.split(".")[0] == other for module in found) for found in imported)
            if name != other and count:
                parts.append(_arrow(PLACES[name], PLACES[other], count))
    for name, place in PLACES.items():
        x, y = _middle(place)
        parts.append(
            f'<rect x="{x - WIDTH / 2}" y="{y - HEIGHT / 2}" width="{WIDTH}" height="{HEIGHT}" rx="6" '
            'fill="#eef3fa" stroke="#4a6fa5"/>'
            f'<text x="{x}" y="{y - 2}" font-weight="bold" fill="#1b1f24">{name}</text>'
            f'<text x="{x}" y="{y + 16}" font-size="12" fill="#1b1f24">{len(modules[name])} modules</text>'
        )
    return "\n".join([*parts, "</svg>\n"])


def _middle(place: tuple[int, int]) -> tuple[float, float]:
    column, line = place
    return 10 + WIDTH / 2 + column * COLUMN, 10 + HEIGHT / 2 + line * LINE


def _arrow(begin: tuple[int, int], end: tuple[int, int], count: int) -> str:
    """Return a curve from the bottom of one box to the top of another, passing beside the boxes between them."""
    (x0, y0), (x1, y1) = _middle(begin), _middle(end)
    y0, y1 = y0 + HEIGHT / 2, y1 - HEIGHT / 2
    past = end[1] - begin[1] > 1
    bend = (WIDTH * 0.75 if end[0] >= begin[0] else -WIDTH * 0.75) if past else 0.0
    if past and x0 != x1:
        x0 += WIDTH / 3 if x1 > x0 else -WIDTH / 3
    middle = (x0 + x1) / 2 + bend * (0.75 if x0 == x1 else 0.35), (y0 + y1) / 2
    curve = f"M{x0} {y0}Q{2 * middle[0] - (x0 + x1) / 2} {middle[1]} {x1} {y1}"
    look = 'font-size="12" fill="#4a6fa5" stroke="#fff" stroke-width="3" paint-order="stroke"'
    return (
        f'<path d="{curve}" fill="none" stroke="#4a6fa5" marker-end="url(#tip)"/>'
        f'<text x="{middle[0]}" y="{middle[1]}" {look}>{count}</text>'
    )


if __name__ == "__main__":
    out = Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parents[1] / "docs" / "architecture.svg"
    out.write_text(picture(), "utf-8")
