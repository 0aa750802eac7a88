"""The search spaces, and single networks, that are known by name."""

from search.errors import SearchError
from search.space import Space
from search.spaces import gpunet, mobilenet, prunet, repvgg, resnet


def names() -> tuple[str, ...]:
    """Names that `get` knows."""
    return (
        "repvgg-mini",
        "prunet",
        "prunet-formula",
        "prunet-table1",
        "prunet-table5",
        "prunet-cifar",
        "gpunet-0",
        "gpunet-1",
        "gpunet-2",
        *repvgg.names(),
        *resnet.names(),
        *mobilenet.names(),
    )


def get(name: str, *, classes: int | None = None, resolution: int | None = None) -> Space:
    """The space of that name.

    Args:
        name: one of `names()`.
        classes: number of classes; the space's own by default.
        resolution: height and width of the input in pixels; the space's own by default.

    Raises:
        SearchError: an unknown name, or a number that the space cannot have.
    """
    options = {key: value for key, value in {"classes": classes, "resolution": resolution}.items() if value is not None}
    match name:
        case "repvgg-mini":
            return repvgg.mini(**options)
        case "prunet":
            return prunet.prunet(**options)
        case "prunet-formula":
            return prunet.formula(**options)
        case "prunet-table1":
            return prunet.table1(**options)
        case "prunet-table5":
            return prunet.table5(**options)
        case "prunet-cifar":
            return prunet.cifar(**options)
        case "gpunet-0":
            return gpunet.gpunet_0(**options)
        case "gpunet-1":
            return gpunet.gpunet_1(**options)
        case "gpunet-2":
            return gpunet.gpunet_2(**options)
        case _ if name in repvgg.names():
            return repvgg.named(name, **options)
        case _ if name in resnet.names():
            return resnet.named(name, **options)
        case _ if name in mobilenet.names():
            return mobilenet.named(name, **options)
    raise SearchError(f"unknown space {name!r}: known are {', '.join(names())}; try `lathe space {names()[0]}`")
