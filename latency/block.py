"""BlockSpec: the block that a row of a latency table describes."""

import hashlib
import re
from collections.abc import Iterable, Mapping

import msgspec

from latency.errors import LatencyError
from latency.units import kilo
from latency.values import MAX_WIDTH

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_INTEGER = re.compile(r"0|-?[1-9][0-9]*")
_MAX_ATTRIBUTE, _MAX_KEY = 2**31, 4096
_KEY = re.compile(r"([a-z][a-z0-9_]*)\(([^()\[\]]*)\)\[([^()\[\]]*)\]")


class BlockSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One block of a network at given widths, for batch 1. Make it with `of` or `parse`, which order its fields.

    Attributes:
        op: kind of block, such as `conv`.
        attrs: other parameters of the computation, sorted by name; `h` and `w` are the input's resolution.
        widths: channel counts by name: `c_in` first, `c_out` last.
    """

    op: str
    attrs: tuple[tuple[str, int | str], ...]
    widths: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, op: str, *, attrs: Mapping[str, int | str], widths: Mapping[str, int]) -> "BlockSpec":
        """Return a validated spec in canonical order.

        Raises:
            LatencyError: a name contains anything but lower-case letters, digits and `_`; a value does not fit a key; a
                width is below 1; or `h`, `w` or `c_in` is missing.
        """
        for name in (op, *attrs, *widths):
            if not _NAME.fullmatch(name):
                raise LatencyError(
                    f"block name {name!r}: lower-case letters, digits and '_' are allowed, a letter first"
                )
        for name, value in attrs.items():
            if isinstance(value, bool) or not (
                abs(value) <= _MAX_ATTRIBUTE if isinstance(value, int) else _NAME.fullmatch(value)
            ):
                raise LatencyError(
                    f"block attribute {name}={value!r}: an integer of at most {_MAX_ATTRIBUTE} or a name such as 'relu'"
                    " is allowed"
                )
        for name, width in widths.items():
            if isinstance(width, bool) or not 1 <= width <= MAX_WIDTH:
                raise LatencyError(f"block width {name}={width!r}: an integer from 1 to {MAX_WIDTH} is allowed")
        if missing := [name for name, group in (("h", attrs), ("w", attrs), ("c_in", widths)) if name not in group]:
            raise LatencyError(
                f"block {op!r} lacks {', '.join(missing)}: every block has attributes h and w and a width c_in"
            )
        order = sorted(widths, key=lambda name: (name != "c_in", name == "c_out", name))
        return cls(op=op, attrs=tuple(sorted(attrs.items())), widths=tuple((name, widths[name]) for name in order))

    @classmethod
    def parse(cls, key: str) -> "BlockSpec":
        """Parse a `key`.

        Raises:
            LatencyError: the text is not a key in canonical form.
        """
        match = _KEY.fullmatch(key) if len(key) <= _MAX_KEY else None
        if match is None:
            raise LatencyError(f"block key {key!r}: expected the form op(name=value,...)[c_in=3,c_out=16]")
        pairs = [[part.partition("=")[::2] for part in text.split(",")] for text in match.groups()[1:]]
        attrs, widths = (
            {name: int(value) if _INTEGER.fullmatch(value) else value for name, value in group} for group in pairs
        )
        if bad := next((value for value in widths.values() if isinstance(value, str)), None):
            raise LatencyError(f"block key {key!r}: width {bad!r} is not an integer")
        spec = cls.of(match[1], attrs=attrs, widths={name: int(width) for name, width in widths.items()})
        if spec.key != key:
            raise LatencyError(f"block key {key!r} is not in canonical form: expected {spec.key!r}")
        return spec

    @property
    def key(self) -> str:
        """Canonical text form, such as `conv(act=relu,h=32,kernel=3,stride=1,w=32)[c_in=3,c_out=16]`."""
        return f"{self.family}[{_join(self.widths)}]"

    @property
    def family(self) -> str:
        """The key without its widths: blocks of one family differ only in widths."""
        return f"{self.op}({_join(self.attrs)})"

    @property
    def title(self) -> str:
        """Readable family, such as `conv 3x3/2 relu @32x32`: kernel, stride, activation, others, resolution."""
        rest = dict(self.attrs)
        at = f"@{rest.pop('h')}x{rest.pop('w')}"
        kernel = rest.pop("kernel", None)
        shape = f"{kernel}x{rest.pop('kernel_w', kernel)}" if kernel else ""
        stride = rest.pop("stride", 1)
        act = rest.pop("act", "none")
        flags = {name: rest.pop(name) for name in ("residual", "se") if name in rest}
        words = [self.op, shape + (f"/{stride}" if stride != 1 else ""), "" if act == "none" else str(act)]
        return " ".join(
            filter(
                None, [*words, *(name for name, on in flags.items() if on), *(f"{k}={v}" for k, v in rest.items()), at]
            )
        )

    @property
    def channels(self) -> str:
        """Readable widths, such as `16 → 96 → 24`."""
        return " → ".join(str(width) for _, width in self.widths)

    @property
    def input_elements(self) -> int:
        """Number of scalars in the block's input."""
        return self.width("c_in") * int(self.attr("h")) * int(self.attr("w"))

    @property
    def input_kelements(self) -> float:
        """Thousands of scalars in the block's input."""
        return kilo(self.input_elements)

    def width(self, name: str) -> int:
        """Return a width by name."""
        return dict(self.widths)[name]

    def attr(self, name: str) -> int | str:
        """Return an attribute by name."""
        return dict(self.attrs)[name]

    def with_widths(self, **widths: int) -> "BlockSpec":
        """Return the same block with some widths changed."""
        return BlockSpec.of(self.op, attrs=dict(self.attrs), widths={**dict(self.widths), **widths})


def network_key(blocks: Iterable[str]) -> str:
    """Return the key of a whole network, given the keys of its blocks in order."""
    return f"network-{hashlib.sha256('|'.join(blocks).encode()).hexdigest()[:16]}"


def _join(pairs: tuple[tuple[str, int | str], ...] | tuple[tuple[str, int], ...]) -> str:
    return ",".join(f"{name}={value}" for name, value in pairs)
