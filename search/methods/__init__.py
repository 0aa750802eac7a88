"""Search methods, one paper per file."""

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
    from search.method import Method, Problem
    from search.space import Space


def require_space(settings: Settings, space: "Space") -> None:
    """Require that a method can search a space.

    Raises:
        SearchError: the method cannot search the space.
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


def method(settings: Settings, problem: "Problem") -> "Method[Any]":
    """Create the method for the given settings.

    Raises:
        SearchError: settings and problem do not match.
    """
    match settings:
        case PasSettings():
            from search.methods.pas import Pas

            return Pas(settings, problem)
        case UniformSettings():
            from search.methods.uniform import Uniform

            return Uniform(settings, problem)
        case MagnitudeSettings():
            from search.methods.magnitude import Magnitude

            return Magnitude(settings, problem)
        case SlimmingSettings():
            from search.methods.slimming import Slimming

            return Slimming(settings, problem)
        case TableSettings():
            from search.methods.table import Table

            return Table(settings, problem)
        case TasSettings():
            from search.methods.tas import Tas

            return Tas(settings, problem)
        case VpDartsSettings():
            from search.methods.vp_darts import VpDarts

            return VpDarts(settings, problem)
        case PrunetSettings():
            from search.methods.prunet import Prunet

            return Prunet(settings, problem)
        case _:
            raise AssertionError(f"no method has {type(settings).__name__}")
