"""The network for five layers: what training costs on one core, and how good its answers are alone."""

from __future__ import annotations

from benchmarks.reflectometry import five_layers
from benchmarks.rows import Row, at_most, single_thread

STEPS = 1200


def run(quick: bool, *, steps: int | None = None, curves: int = 2000) -> list[Row]:
    """Trains on films drawn anew at each step, and compares answers to films of test with the truth."""
    with single_thread():
        return _run(steps or (STEPS // 10 if quick else STEPS), curves)


def _run(steps: int, curves: int) -> list[Row]:
    trained = five_layers.train(steps)
    prior, seen, limits = five_layers.prior(), five_layers.seen(), five_layers.Limits.of_training()
    truth = five_layers.test_films(curves)
    r = prior.curves(seen, prior.values(truth))
    answer = five_layers.answer(trained.network, r)
    again = prior.curves(seen, prior.values(answer))
    error = float((again.log10() - r.log10()).abs().mean())
    (z, sld), (z_answer, sld_answer) = five_layers.profiles(truth), five_layers.profiles(answer)
    z_error = float(((z_answer - z) / limits.z).square().mean())
    sld_error = float(((sld_answer - sld) / (limits.sld_high - limits.sld_low)).square().mean())
    weights = sum(item.numel() for item in trained.network.parameters()) / 1e6
    shown = steps * five_layers.params(steps).training.batch_size
    return [
        at_most(
            "training",
            trained.cpu_seconds,
            "CPU-s",
            120,
            f"{weights:.2g} M weights, {shown} films, each seen once; digest of the split {trained.digest}",
        ),
        at_most("mean abs log10 R, network alone", error, "decades", 0.10, f"{curves} films of test"),
        at_most(
            "MSE of normalised z and SLD",
            0.5 * (z_error + sld_error),
            "",
            1.4e-3,
            f"z {z_error:.3g}, SLD {sld_error:.3g}; normalised by {five_layers.LIMIT_CURVES} training films",
        ),
        at_most("model file", trained.size / 1e6, "MB", 20),
    ]
