"""Papers with numbers that can be recomputed, as rows of published and recomputed numbers. Needs no torch."""

from search.errors import SearchError
from search.papers import gpunet, pas, prunet, repvgg, tas, vp_darts
from search.papers.row import PaperRow


def names() -> tuple[str, ...]:
    """Return the names that `rows` knows."""
    return ("repvgg", "pas", "tas", "vp-darts", "prunet", "gpunet")


def rows(name: str) -> list[PaperRow]:
    """Return all rows of a paper's tables, in order.

    Raises:
        SearchError: the name is unknown.
    """
    match name:
        case "repvgg":
            return repvgg.rows()
        case "pas":
            return pas.rows()
        case "tas":
            return tas.rows()
        case "vp-darts":
            return vp_darts.rows()
        case "prunet":
            return prunet.rows()
        case "gpunet":
            return gpunet.rows()
        case _:
            raise SearchError(
                f"unknown paper {name!r}: known are {', '.join(names())} and latencies; try `lathe paper {names()[0]}`"
            )
