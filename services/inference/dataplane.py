"""What the server does, free of transports: describe models, answer tensors with tensors."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from prometheus_client import Histogram

from guidehall.core.auth import Principal
from guidehall.core.errors import InvalidArgument, NotFound, Unavailable
from guidehall.core.threads import by_size
from guidehall.science.manifest import DATATYPES
from guidehall.science.pipeline import Manifest, Predictor, TensorSpec
from services.inference.execution import Served
from services.inference.repository import Repository
from services.inference.tensors import Array, Declared, Tensor, tensor_of
from services.inference.versions import Published, Reference

_ROWS = Histogram(
    "guidehall_inference_batch_rows",
    "Rows of the batches that models answered",
    buckets=(1, 4, 16, 64, 256, 1024, 4096),
)


class UnusableAnswer(Exception):
    """A model answered with numbers that must not leave the server."""


@dataclass(frozen=True)
class Answer:
    """Outputs in the order that was asked for, and the version that gave them."""

    published: Published
    outputs: dict[str, Tensor]


@dataclass(frozen=True)
class Description:
    """A model and the version that would answer.

    Attributes:
        versions: all of them, newest first.
    """

    published: Published
    manifest: Manifest
    versions: list[int]


@dataclass(frozen=True)
class IndexEntry:
    """One line of the model index."""

    published: Published
    state: str
    reason: str


class DataPlane:
    """The operations of every protocol that is served."""

    def __init__(self, repository: Repository, max_batch_rows: int) -> None:
        self._repository = repository
        self._max_batch_rows = max_batch_rows

    @property
    def ready(self) -> bool:
        """Whether it is known which models there are, and the pinned ones are loaded."""
        return self._repository.ready.is_set()

    async def infer(
        self,
        principal: Principal,
        reference: Reference,
        inputs: Mapping[str, Declared],
        outputs: Sequence[str] = (),
        queue_seconds: float | None = None,
    ) -> Answer:
        """The model's answer to one batch.

        Args:
            outputs: names of the wanted outputs, in order; empty for all.
            queue_seconds: how long to wait for the model's turn; None for as long as the call may take.

        Raises:
            InvalidArgument: a tensor is missing, unknown, or not as declared; an output that is unknown or
                asked for twice.
            NotFound, Unavailable: see `Repository.acquire`.
            ResourceExhausted, DeadlineExceeded: see `Turns.run`.
            UnusableAnswer: the model failed at its task.
        """
        published, served = await self._repository.acquire(principal, reference)
        manifest = served.manifest
        rows = check_inputs(manifest.inputs, inputs, self._max_batch_rows)
        wanted = wanted_outputs(manifest.outputs, outputs)
        size_bytes = sum(tensor.size_bytes for tensor in inputs.values())
        arrays = await by_size(size_bytes, lambda: {name: each.read().array for name, each in inputs.items()})
        if rows:
            _ROWS.observe(rows)
            answer = await served.run(_predict, served.predictor, arrays, queue_seconds=queue_seconds)
        else:
            answer = _empty(manifest.outputs)
        return Answer(published, {spec.name: tensor_of(answer[spec.name], spec.datatype) for spec in wanted})

    async def describe(self, principal: Principal, reference: Reference) -> Description:
        """What the model takes and gives, loaded or not.

        Raises:
            NotFound: there is none that `principal` may see.
            InvalidModel: its manifest cannot be read here.
        """
        published, versions = await self._repository.describe(principal, reference)
        return Description(published, await asyncio.to_thread(published.read_manifest), versions)

    async def is_model_ready(self, principal: Principal, reference: Reference) -> bool:
        """Whether `infer` would find the model; False also for one that does not exist."""
        try:
            return await self._repository.is_ready(principal, reference)
        except (NotFound, Unavailable):
            return False

    def index(self, principal: Principal, *, ready_only: bool) -> list[IndexEntry]:
        """Every version that `principal` may see."""
        entries = self._repository.visible(principal)
        lines = [IndexEntry(entry.published, entry.state.value, entry.reason) for entry in entries]
        return [line for line in lines if line.state == "READY" or not ready_only]

    async def load(self, principal: Principal, reference: Reference) -> None:
        """See `Repository.load`."""
        await self._repository.load(principal, reference)

    async def unload(self, principal: Principal, reference: Reference) -> None:
        """See `Repository.unload`."""
        await self._repository.unload(principal, reference)

    async def acquire(self, principal: Principal, reference: Reference) -> tuple[Published, Served]:
        """See `Repository.acquire`; for those who need more of a model than its tensors."""
        return await self._repository.acquire(principal, reference)

    def candidates(self, principal: Principal) -> list[Published]:
        """See `Repository.candidates`."""
        return self._repository.candidates(principal)


def check_inputs(specs: Sequence[TensorSpec], inputs: Mapping[str, Tensor | Declared], max_rows: int) -> int:
    """Compares what came with what the model takes. Nothing is converted: another type is refused.

    Returns:
        Rows of the batch.

    Raises:
        InvalidArgument: names the tensor, what was expected and what came.
    """
    known = {spec.name: spec for spec in specs}
    for name in inputs.keys() - known.keys():
        raise InvalidArgument.field(f"inputs.{name}", name, f"the inputs are {', '.join(known)}")
    sizes: dict[str, int] = {}
    for name, spec in known.items():
        if name in inputs:
            _check_declared(spec, inputs[name])
            sizes[name] = inputs[name].shape[0]
        elif not spec.optional:
            raise InvalidArgument.field(f"inputs.{name}", "nothing", f"{spec.datatype} {list(spec.shape)}")
    rows = max(sizes.values(), default=0) if all(sizes.values()) else 0
    if rows > max_rows:
        name = max(sizes, key=sizes.__getitem__)
        raise InvalidArgument.field(f"inputs.{name}", f"{rows} rows", f"at most {max_rows} in one request")
    return rows


def _check_declared(spec: TensorSpec, tensor: Tensor | Declared) -> None:
    fits = len(tensor.shape) == len(spec.shape) and all(
        want in (-1, have) for want, have in zip(spec.shape, tensor.shape, strict=True)
    )
    if tensor.datatype != spec.datatype or not fits:
        got = f"{tensor.datatype} {list(tensor.shape)}"
        raise InvalidArgument.field(f"inputs.{spec.name}", got, f"{spec.datatype} {list(spec.shape)}")


def wanted_outputs(specs: Sequence[TensorSpec], names: Sequence[str]) -> list[TensorSpec]:
    """The outputs of these names, in order; all of them when there is no name.

    Raises:
        InvalidArgument: a name that the model does not know, or twice the same.
    """
    known = {spec.name: spec for spec in specs}
    for name in names:
        if name not in known:
            raise InvalidArgument.field("outputs", name, f"the outputs are {', '.join(known)}")
    if len(set(names)) < len(names):
        repeated = next(name for name in known if list(names).count(name) > 1)
        raise InvalidArgument.field("outputs", repeated, "each name only once")
    return [known[name] for name in names or known]


def _predict(predictor: Predictor, inputs: Mapping[str, Array]) -> dict[str, Array]:
    answer = predictor.predict(inputs)
    check_outputs(predictor.outputs, answer, inputs)
    return answer


def _empty(specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """The answer to a batch without rows; free dimensions are empty too."""
    return {
        spec.name: np.zeros((0, *(max(size, 0) for size in spec.shape[1:])), DATATYPES[spec.datatype])
        for spec in specs
    }


def check_outputs(
    specs: Sequence[TensorSpec], outputs: Mapping[str, Array], inputs: Mapping[str, Array]
) -> None:
    """Refuses an answer that is not as declared, or holds what is no number.

    NaN passes in a row whose inputs hold NaN: sciences pad with it.

    Raises:
        UnusableAnswer: which output, and why. Not for callers.
    """
    for spec in specs:
        array = outputs.get(spec.name)
        if array is None or not spec.admits(array):
            got = "nothing" if array is None else f"{array.dtype} {list(array.shape)}"
            raise UnusableAnswer(
                f"output {spec.name}: got {got}; declared is {spec.datatype} {list(spec.shape)}"
            )
        if array.dtype.kind != "f" or bool(np.isfinite(array).all()):
            continue
        padded = _rows_with_nan(inputs, len(array))
        if bool(np.isinf(array).any()) or bool(np.isnan(array[~padded]).any()):
            raise UnusableAnswer(f"output {spec.name}: holds values that are not finite")


def _rows_with_nan(inputs: Mapping[str, Array], rows: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which rows of the batch hold NaN in any input; an input with one row counts for all."""
    found = np.zeros(rows, dtype=np.bool_)
    for array in inputs.values():
        if array.dtype.kind == "f" and len(array) in (1, rows):
            found |= np.isnan(array).any(axis=tuple(range(1, array.ndim)))
    return found
