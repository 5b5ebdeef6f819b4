"""Options of the `onnx` backend: the config section ``onnx``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Literal, get_args

from resnext_core.bounds import AtLeast, Between, Bits, OneOf, check_bounds
from resnext_core.errors import UsageError

Provider = Literal["cpu", "cuda", "cann", "openvino"]
OpenVinoPrecision = Literal["float32", "bfloat16"]
#: Of the page "CANN Execution Provider" of ONNX Runtime's documentation, and ACL_PRECISION_MODE of CANN. ONNX Runtime
#: itself takes any text and CANN refuses it after the graph was built.
CANN_PRECISION = (
    "force_fp32", "cube_fp16in_fp32out", "force_fp16", "allow_fp32_to_fp16", "must_keep_origin_dtype",
    "allow_mix_precision", "allow_mix_precision_fp16",
)  # fmt: skip
#: The same for ACL_OP_SELECT_IMPL_MODE.
CANN_IMPL_MODES = ("high_precision", "high_performance")
#: The names that ONNX Runtime 1.24 maps to its enumeration; it refuses the numbers 0 and 1.
CANN_ARENA = ("kNextPowerOfTwo", "kSameAsRequested")


@dataclass(frozen=True, kw_only=True)
class OnnxOptions:
    """How an artefact is served.

    `threads` is the number of CPU threads of one operator; None takes every core. `provider` is an execution provider
    of ONNX Runtime, ``cpu``, ``cuda`` (needs the onnxruntime-gpu wheel) or ``cann`` (Ascend, needs the
    onnxruntime-cann wheel), or ``openvino``: Intel's OpenVINO on the CPU, a package of its own. `openvino_precision` is
    what OpenVINO computes the float layers in; ``bfloat16`` needs a processor that has it.

    `regroup` is for the exporter: with a number, grouped convolutions get at least so many input channels a group
    (:func:`resnext_onnx.regroup.regroup`); ``auto`` takes what measured fastest in float32 on this instruction set,
    which can be ``none``.

    The options ``cann_...`` are those of ONNX Runtime's CANN provider without the prefix; None leaves its default.
    `cann_device_id` None is the process's local rank. `cann_npu_mem_limit` is in bytes. `cann_dump_om_model` writes
    the compiled graph into the working folder, and is therefore off, unlike in ONNX Runtime. `cann_precision_mode`
    computes in the graph's own types unless set; ONNX Runtime's default is float16.

    Raises UsageError on values that mean nothing, and on options of another provider than `provider`. A provider that
    is not there is found when a predictor is made.
    """

    threads: Annotated[int | None, Between(1, 1024)] = None
    provider: Provider = "cpu"
    openvino_precision: OpenVinoPrecision = "float32"
    regroup: Annotated[int | Literal["none", "auto"], AtLeast(1)] = "none"
    cann_device_id: Annotated[int | None, Between(0, 127)] = None
    cann_npu_mem_limit: Annotated[int | None, AtLeast(1), Bits(64)] = None
    cann_arena_extend_strategy: Annotated[str | None, OneOf(CANN_ARENA)] = None
    cann_enable_cann_graph: bool = True
    cann_enable_cann_subgraph: bool = False
    cann_dump_graphs: bool = False
    cann_dump_om_model: bool = False
    cann_precision_mode: Annotated[str, OneOf(CANN_PRECISION)] = "must_keep_origin_dtype"
    cann_op_select_impl_mode: Annotated[str | None, OneOf(CANN_IMPL_MODES)] = None
    cann_optypelist_for_implmode: str | None = None

    def __post_init__(self) -> None:
        check_bounds("onnx", self)
        for name, kind in (("provider", Provider), ("openvino_precision", OpenVinoPrecision)):
            if (value := getattr(self, name)) not in get_args(kind):
                raise UsageError(f"onnx.{name} must be one of {', '.join(get_args(kind))}, not {value!r}")
        if self.provider != "openvino" and self.openvino_precision != "float32":
            raise UsageError(
                "onnx.openvino_precision is an option of the OpenVINO provider: set onnx.provider=openvino too"
            )
        for field in fields(self):
            if field.name.startswith("cann_"):
                value = getattr(self, field.name)
                if isinstance(field.default, bool) and type(value) is not bool:
                    raise UsageError(f"onnx.{field.name} must be true or false, not {value!r}")
                if self.provider != "cann" and value != field.default:
                    raise UsageError(
                        f"onnx.{field.name} is an option of the CANN provider: set onnx.provider=cann too"
                    )
        self._check_operators()

    def _check_operators(self) -> None:
        listed = self.cann_optypelist_for_implmode
        if listed is None:
            return
        if not all(name.isidentifier() for name in listed.split(",")):
            raise UsageError(
                "onnx.cann_optypelist_for_implmode must be names of operators with commas between, like "
                f"SoftmaxV2,Gelu, not {listed!r}"
            )
        if self.cann_op_select_impl_mode is None:
            raise UsageError(
                "onnx.cann_optypelist_for_implmode says for which operators onnx.cann_op_select_impl_mode "
                "holds: set both"
            )

    def cann_settings(self, device: int) -> dict[str, str]:
        """Return what the CANN provider is given, as text; `device` is used where no `cann_device_id` is set."""
        found = {"device_id": str(device)}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.startswith("cann_") and value is not None:
                found[field.name[5:]] = str(int(value)) if isinstance(value, bool) else str(value)
        return found
