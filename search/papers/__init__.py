"""The papers whose published numbers can be recomputed, each as rows with ours beside theirs. Needs no torch."""

from search.errors import SearchError
from search.papers import gpunet, pas, prunet, repvgg, tas, vp_darts
from search.papers.row import Row


def names() -> tuple[str, ...]:
    """Names that `rows` knows."""
    return ("repvgg", "pas", "tas", "vp-darts", "prunet", "gpunet")


def rows(name: str) -> list[Row]:
    """Every row of the paper's tables, in their order.

    Raises:
        SearchError: an unknown name.
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
    raise SearchError(f"unknown paper {name!r}: known are {', '.join(names())} and latencies; try `lathe paper {names()[0]}`")
