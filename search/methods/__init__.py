"""Methods of search: one paper a file."""

from typing import TYPE_CHECKING, Any

from search.methods.settings import (
    MagnitudeSettings,
    PasSettings,
    PrunetSettings,
    PruningSettings,
    Settings,
    SlimmingSettings,
    TableSettings,
    TasSettings,
    UniformSettings,
    VpDartsSettings,
)

if TYPE_CHECKING:
    from search.method import Method, Task
    from search.space import Space


def require_space(settings: Settings, space: "Space") -> None:
    """Check that a method can search a space, before anything else is asked for.

    Raises:
        SearchError: it cannot.
    """
    if isinstance(settings, PruningSettings):
        from search.spaces import with_widths

        with_widths(space, settings.name)
    if isinstance(settings, VpDartsSettings):
        from search.spaces import with_cells

        with_cells(space, settings.name)
    if isinstance(settings, PrunetSettings):
        from search.spaces import with_layers

        with_layers(space, settings.name)


def method(settings: Settings, task: "Task") -> "Method[Any]":
    """The method that settings are of.

    Raises:
        SearchError: settings and task do not fit each other.
    """
    match settings:
        case PasSettings():
            from search.methods.pas import Pas

            return Pas(settings, task)
        case UniformSettings():
            from search.methods.uniform import Uniform

            return Uniform(settings, task)
        case MagnitudeSettings():
            from search.methods.magnitude import Magnitude

            return Magnitude(settings, task)
        case SlimmingSettings():
            from search.methods.slimming import Slimming

            return Slimming(settings, task)
        case TableSettings():
            from search.methods.table import Table

            return Table(settings, task)
        case TasSettings():
            from search.methods.tas import Tas

            return Tas(settings, task)
        case VpDartsSettings():
            from search.methods.vp_darts import VpDarts

            return VpDarts(settings, task)
        case PrunetSettings():
            from search.methods.prunet import Prunet

            return Prunet(settings, task)
    raise AssertionError(f"no method has {type(settings).__name__}")
