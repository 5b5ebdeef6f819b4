"""Records that plugins yield beside backends: commands, recipes, files, decoders, sources; and what a probe answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from resnext_core.errors import one_line, quoted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from resnext_core.config import DataConfig
    from resnext_core.data.content import Content
    from resnext_core.data.plan import Plan
    from resnext_core.data.sources.base import Listing
    from resnext_core.interfaces import Exporter
    from resnext_core.model.preprocess import PreprocessSpec


@dataclass(frozen=True, kw_only=True)
class Readiness:
    """What a probe answers: whether something can be used here, and if not, why.

    `state` is ``ready``, ``missing`` (something has to be installed or fixed first), or ``test mode``: it runs, but not
    on the device it is made for, so it is never chosen by itself, only when it is named. `reason` is one sentence on
    what is missing and how to get it, '' when ready.

    Raises ValueError on another state, and on a `reason` that is absent or has several lines.
    """

    state: Literal["ready", "test mode", "missing"]
    reason: str = ""

    def __post_init__(self) -> None:
        if self.state not in ("ready", "test mode", "missing"):
            raise ValueError(f"a Readiness is 'ready', 'test mode' or 'missing', not {quoted(self.state)}")
        if (self.state == "ready") == bool(self.reason.strip()) or "\n" in self.reason:
            raise ValueError(
                f"{self.state}: the reason must be one line, or '' when ready: {quoted(self.reason)}"
            )

    @property
    def usable(self) -> bool:
        """Whether it can be used when it is named: ready, or in test mode."""
        return self.state != "missing"

    def __str__(self) -> str:
        """Return ``ready``, ``test mode: <reason>``, or the reason why it is missing."""
        return {"ready": "ready", "missing": self.reason}.get(self.state, f"{self.state}: {self.reason}")


READY = Readiness(state="ready")


def ask(probe: Callable[[], Readiness]) -> Readiness:
    """Return the answer of a plugin's probe; one that raises, or answers anything else, counts as missing."""
    try:
        answer: object = probe()
    except Exception as error:
        said = f"its probe failed: {type(error).__name__}: {one_line(error)}"
        return Readiness(state="missing", reason=said)
    if isinstance(answer, Readiness):
        return answer
    return Readiness(
        state="missing",
        reason=f"its probe must return a Readiness, not {quoted(answer)}: it was written for an older resnext-core",
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredTensors:
    """What a weight file of another program holds, under its own names.

    `tensors` are arrays by name, in the file's order and types. `widened` names the stored type of those that NumPy
    lacks and that became float32 without a loss (bfloat16). `others` describes each entry that is not one of these
    tensors, by name. `entry` is where in a checkpoint the tensors were, '' where the file holds nothing else.
    """

    tensors: Mapping[str, NDArray[Any]]
    widened: Mapping[str, str] = field(default_factory=dict)
    others: Mapping[str, str] = field(default_factory=dict)
    entry: str = ""


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """A kind of file that holds named tensors, read and written by ``resnext-run convert``.

    `suffixes` begin with a dot. `probe` says whether such files can be read and written here; it must be fast and must
    not import a framework. `read(path)` raises DataError on a file that is damaged, or that could only be read by
    executing code in it. `write(path, tensors, tag)` writes atomically, the same bytes each time; `tag` is the
    ``format`` that a header may carry. `naming` is the naming scheme of new files unless another is asked for; None is
    the neutral one.
    """

    suffixes: tuple[str, ...]
    summary: str
    probe: Callable[[], Readiness]
    read: Callable[[Path], StoredTensors]
    write: Callable[[Path, Mapping[str, NDArray[Any]], str], None]
    naming: str | None = None


class NotSupported(Exception):
    """Raised by an :class:`ImageDecoder` for an image that it leaves to Pillow: another format, or a broken file."""


class ImageDecoder(Protocol):
    """Decodes image files into the pixels that core's Pillow path defines, to the bit.

    Both methods write the whole of `out`, a C-contiguous uint8 array (size, size, 3), from `content`, the bytes-like
    content of a file that messages call `name`. They raise NotSupported, or BadImage with the reason that Pillow's path
    would give. What is probably wrong with an image that can be read is added to `remarks`. Where the record says
    ``threads``, many threads call them at once.
    """

    def evaluation(
        self, content: Content, name: str, spec: PreprocessSpec, out: NDArray[np.uint8], remarks: list[str]
    ) -> None:
        """Write the pixels of an evaluation, as :func:`resnext_core.data.render.load_eval` returns them."""

    def training(
        self,
        content: Content,
        name: str,
        draw: Callable[[int, int], Plan],
        out: NDArray[np.uint8],
        remarks: list[str],
    ) -> None:
        """Execute the plan that `draw` gives for width and height of the image; it gives the same when called again."""


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """What decodes images for the loader, under the name that ``data.decoder`` takes.

    ``auto`` takes the ready one of highest `priority`; the pixels do not depend on which one is used. `probe` must be
    fast and import nothing heavy. `open` is called in the processes that read, so it is a function of a module, or a
    :class:`functools.partial` of one; that module should import little. With `threads`, what it returns is native
    code that releases Python's lock and may be used by many threads at once: the readers are then threads of a few
    processes. Otherwise each is a process.
    """

    name: str
    summary: str
    probe: Callable[[], Readiness]
    open: Callable[[], ImageDecoder]
    priority: int = 0
    threads: bool = False


@dataclass(frozen=True, kw_only=True)
class SourceKind:
    """A kind of source of images, beside folders and lists: what ``--data`` and ``data.train`` may name.

    `claims(path)` says whether what the user gave, a path or an address, is of this kind; it must not raise and must
    be fast, so it looks at names and first bytes at most. Core's kinds are asked first, then those of plugins by name.
    `open(path, data)` returns what is there; `data` are the settings of the section ``data``. It raises DataError, and
    BackendUnavailable where a package is missing that it needs. `parts` are the file names of a part of a data folder,
    where ``{}`` is ``train``, ``val`` or ``test``; they may be patterns of :mod:`fnmatch`.
    """

    name: str
    summary: str
    claims: Callable[[str], bool]
    open: Callable[[str, DataConfig], Listing]
    parts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A recipe: settings of a kind of training, as ``--recipe NAME`` takes them.

    `path` is its YAML file, sections of the configuration with comments: the first line says what it is for, the next
    ones the command, the hardware, the duration and the expected accuracy. `former_names` are accepted too.
    """

    name: str
    path: Path
    former_names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Command:
    """A subcommand of ``resnext-run``.

    `module` is imported only when the command is used. It has two functions: ``configure(parser)`` adds
    its flags to an :class:`argparse.ArgumentParser`, ``handle(args)`` does it and returns the exit code. It may have
    three constants: ``EPILOG``, text below its help; ``SETTABLE``, how the keys begin that its ``--set`` takes; and
    ``TAKES_BACKEND``, False where ``--backend`` means nothing to it and is refused.
    """

    name: str
    summary: str
    module: str


@dataclass(frozen=True, kw_only=True)
class Compute:
    """What a backend computes with under certain options; ``resnext-run bench`` says so beside its figures.

    `device` is ``cpu`` or the backend's word for another one. `threads` are those of the processor, None where it is
    not the one that computes. `precision` is the number format of the products where the options decide it; None: that
    of the weights or the artefact, or of ``precision.compute`` in training. `peak` is called with a number format and
    returns the most FLOP/s that a matrix product reached on the device, measured when it is called, or None. Without it
    core measures the processor with NumPy, and no other device.
    """

    device: str = "cpu"
    threads: int | None = None
    precision: str | None = None
    peak: Callable[[str], float | None] | None = None


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A way of serving or of writing an artefact that ``resnext-run bench all`` times beside the plain one.

    `label` is added to the name of the row. `overrides` are ``section.key=value``, as of ``--set``. With `exports`, the
    name of a format of the same backend, it is a way of writing that: by `write` where it is given, else by the
    format's own exporter; every backend that reads the file is timed with it. Without, it is a way of serving of this
    backend. The file need not be accurate: nothing but time is measured. `readiness` says what is missing
    where it cannot be tried here.
    """

    label: str
    overrides: tuple[str, ...] = ()
    exports: str | None = None
    write: Exporter | None = None
    readiness: Readiness = READY
