"""Models that answer: `reflectometry.sld_chi/1`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from guidehall.science.pipeline import (
    Context,
    Example,
    Manifest,
    TensorSpec,
    UserError,
    check_tensors,
    refuse_field,
    sha256,
)
from guidehall.science.reflectometry.chi.network import ChiNetwork, empty_chi_network
from guidehall.science.reflectometry.chi.params import MAX_CHI, MAX_LATENT, MAX_PROFILE_POINTS
from guidehall.science.reflectometry.network_params import LARGEST, Channels, Extent
from guidehall.science.reflectometry.params import MAX_POINTS, SLD_UNIT
from guidehall.science.reflectometry.weights import load_weights, read_arguments, weights_of

ARCHITECTURE = "reflectometry.sld_chi/1"


class ChiArguments(BaseModel):
    """What a model of this architecture is built from."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    profile_points: int = Field(ge=2, le=MAX_PROFILE_POINTS)
    latent_dim: int = Field(ge=1, le=MAX_LATENT)
    # Of z and SLD: what the network sees as 0 and 1.
    profiles: Channels
    # Of each chi: what the network means by -1 and 1.
    chi: tuple[Extent, ...] = Field(min_length=1, max_length=MAX_CHI)
    # Half widths of the intervals in units of chi, and their level; None where nobody measured them.
    half_widths: tuple[float, ...] | None = None
    level: float | None = Field(None, gt=0, lt=1)
    # Root mean square of what a typical profile loses, on the scale of the network.
    reconstruction_limit: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> ChiArguments:
        if self.half_widths is not None and len(self.half_widths) != len(self.chi):
            refuse_field(self, ["half_widths"], len(self.half_widths), f"must be {len(self.chi)} numbers")
        return self


class ChiPredictor:
    """Chi from SLD profiles, in their own units on both sides; the same profile gives the same answer."""

    def __init__(self, arguments: ChiArguments, network: ChiNetwork, device: str = "cpu") -> None:
        self.arguments = arguments
        self.inputs, self.outputs = _specs(arguments)
        self.device = device
        self.network = network.to(device).eval()

    @classmethod
    def load(cls, manifest: Manifest, weights: bytes, device: str = "cpu") -> ChiPredictor:
        """Builds the model from its manifest and its safetensors file.

        Raises:
            InvalidModel: they do not fit together.
        """
        arguments = read_arguments(ChiArguments, manifest)
        network = empty_chi_network(arguments.profile_points, arguments.latent_dim, len(arguments.chi))
        load_weights(network, weights)
        return cls(arguments, network, device)

    def weights(self) -> bytes:
        """The networks as a safetensors file."""
        return weights_of(self.network)

    def predict(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Answers a batch; the tensors are described in `inputs` and `outputs`.

        Raises:
            UserError: a tensor is missing or wrong.
        """
        check_tensors(self.inputs, inputs)
        z, sld = inputs["z"], inputs["sld"]
        if sld.shape[0] < 1 or not 2 <= sld.shape[1] <= MAX_POINTS:
            allowed = f"must be 1 or more rows of 2 to {MAX_POINTS} points"
            raise UserError("inputs.sld", list(sld.shape), allowed)
        if z.shape not in (sld.shape, (1, sld.shape[1])):
            raise UserError("inputs.z", list(z.shape), f"must be {list(sld.shape)} or [1, {sld.shape[1]}]")
        for name, array in inputs.items():
            # NaN is not below anything.
            _refuse_any(~(np.abs(array) <= LARGEST), array, name, f"must be a number up to {LARGEST:g}")
        _refuse_any(np.diff(z, prepend=z[:, :1]) < 0, z, "z", "must not be smaller than the value before it")
        return self.answer(np.stack([np.broadcast_to(z, sld.shape), sld], axis=1))

    @torch.inference_mode()
    def answer(self, profiles: np.ndarray) -> dict[str, np.ndarray]:
        """The tensors of `outputs` for profiles [B, 2, N], z ascending."""
        arguments = self.arguments
        x = normalised(self._resample(profiles), arguments.profiles).to(self.device)
        latent, again = self.network.autoencoder(x)
        unit = self.network.perceptron(latent).double().cpu().numpy()
        low, span = (
            np.array([getattr(extent, name) for extent in arguments.chi]) for name in ("min", "span")
        )
        high = np.array([extent.max for extent in arguments.chi])
        chi = low + 0.5 * (unit + 1.0) * span
        widths = np.array(arguments.half_widths if arguments.half_widths is not None else [np.nan] * len(low))
        loss = (again - x).square().mean(dim=1, keepdim=True).sqrt().cpu().numpy()
        limit = arguments.reconstruction_limit
        answers = {
            "chi": chi,
            "chi_low": chi - widths,
            "chi_high": chi + widths,
            "in_range": (chi >= low) & (chi <= high),
            "typical": loss <= limit if limit is not None else np.zeros(loss.shape, dtype=bool),
            "reconstruction_error": loss,
            "latent": latent.cpu().numpy(),
        }
        return {
            name: value if value.dtype == np.bool_ else value.astype(np.float32)
            for name, value in answers.items()
        }

    @torch.inference_mode()
    def reconstructed(self, profile: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A profile [2, N], z ascending, on the points of the network, [2, M], and the SLD [M] that the
        autoencoder makes of it."""
        seen = self._resample(profile[None])
        _, again = self.network.autoencoder(normalised(seen, self.arguments.profiles).to(self.device))
        scale, points = self.arguments.profiles.y, self.arguments.profile_points
        sld: np.ndarray = again[0, points:].double().cpu().numpy() * scale.span + scale.min
        return seen[0].astype(np.float64), sld

    def _resample(self, profiles: np.ndarray) -> np.ndarray:
        """To the number of points that the network takes, evenly between the ends of each profile."""
        points = self.arguments.profile_points
        if profiles.shape[2] == points:
            return profiles
        resampled = np.empty((len(profiles), 2, points), dtype=np.float32)
        for row, (z, sld) in enumerate(profiles):
            resampled[row, 0] = np.linspace(z[0], z[-1], points)
            resampled[row, 1] = np.interp(resampled[row, 0], z, sld)
        return resampled


def normalised(profiles: np.ndarray, scale: Channels) -> torch.Tensor:
    """Profiles [B, 2, M] as the network sees them, [B, 2 M]."""
    parts = [
        (profiles[:, channel] - extent.min) / extent.span for channel, extent in enumerate((scale.x, scale.y))
    ]
    return torch.from_numpy(np.concatenate(parts, axis=1, dtype=np.float32))


def _refuse_any(wrong: np.ndarray, array: np.ndarray, name: str, allowed: str) -> None:
    if wrong.any():
        row, column = (int(i) for i in np.argwhere(wrong)[0])
        raise UserError(f"inputs.{name}[{row}][{column}]", float(array[row, column]), allowed)


def publish(
    context: Context, name: str, pipeline: str, predictor: ChiPredictor, metrics: dict[str, float]
) -> None:
    """Publishes a model whose networks are on the CPU, where every server can check its example."""
    arguments = predictor.arguments
    weights = predictor.weights()
    share = np.linspace(0.0, 1.0, arguments.profile_points)[None]
    extents = (arguments.profiles.x, arguments.profiles.y)
    profile = {
        key: (extent.min + (extent.max - extent.min) * share).astype(np.float32)
        for key, extent in zip(("z", "sld"), extents, strict=True)
    }
    answer = predictor.predict(profile)
    # Answers next to a limit may fall on its other side elsewhere.
    checked = {key: value for key, value in answer.items() if value.dtype != np.bool_}
    manifest = Manifest(
        science="reflectometry",
        pipeline=pipeline,
        architecture=ARCHITECTURE,
        arguments=arguments.model_dump(mode="json"),
        inputs=predictor.inputs,
        outputs=predictor.outputs,
        metrics=metrics,
        provenance=context.provenance,
        weights_sha256=sha256(weights),
        example=Example.of(profile, checked, absolute_tolerance=1e-4),
    )
    context.publish_model(name, weights, manifest)


def _specs(arguments: ChiArguments) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Input and output tensors of a model with these arguments."""

    def spec(name: str, columns: int, unit: str, description: str, datatype: str = "FP32") -> TensorSpec:
        return TensorSpec(
            name=name, datatype=datatype, shape=(-1, columns), unit=unit, description=description
        )

    count = len(arguments.chi)
    level = "" if arguments.level is None else f" of the {100 * arguments.level:g} % interval"
    inputs = (
        spec(
            "z", -1, "angstrom", "Ascending in each row, as in the training; one row serves the whole batch."
        ),
        spec("sld", -1, SLD_UNIT, f"SLD at z; other than {arguments.profile_points} points are resampled."),
    )
    outputs = (
        spec("chi", count, "", "One column for each parameter that it was trained with."),
        spec("chi_low", count, "", f"Lower end{level}; NaN where it is not known."),
        spec("chi_high", count, "", f"Upper end{level}; NaN where it is not known."),
        spec("in_range", count, "", "Whether chi lies within what it was trained with.", "BOOL"),
        spec("typical", 1, "", "Whether the profile is like those of the training, as far as known.", "BOOL"),
        spec("reconstruction_error", 1, "", "What the autoencoder loses, on the scale of the network."),
        spec("latent", arguments.latent_dim, "", "Mean of the latent space."),
    )
    return inputs, outputs
