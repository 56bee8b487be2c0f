"""The old result document, made of those of the pipelines."""

from __future__ import annotations

from typing import Any

import pytest

from services.gateway.legacy.results import at, response, timing
from services.gateway.legacy.translation import APPLY, BOTH, CHI, CNN, PHYSICAL

LOSSES = [{"epoch": 1, "train_loss": 2.0, "validation_loss": 3.0}]
SECONDS = {"generation": 1.0, "training": 2.0, "evaluation": 3.0, "total": 6.0}
METRICS = {"sld_rmse": 0.5, "sld_mae": 0.25, "sld_r2": 0.75}
PHYSICAL_DOCUMENT: dict[str, Any] = {
    "example": {
        "q": [0.1, 0.2],
        "reflectivity": [0.5, 0.25],
        "predicted_reflectivity": [0.4, 0.2],
        # From the air down to the substrate.
        "z": [-10.0, 0.0, 10.0],
        "sld": [0.0, 4.0, 2.0],
        "predicted_sld": [0.0, 5.0, 2.0],
    },
    "losses": LOSSES,
    "metrics": METRICS,
    "seconds": SECONDS,
}
CNN_DOCUMENT: dict[str, Any] = {
    "example": {
        "q": [0.1, 0.2],
        "reflectivity": [0.5, 0.25],
        "predicted_reflectivity": None,
        "z": [0.0, 10.0, 20.0],
        "sld": [2.0, 4.0, 0.0],
        # Not quite in order, as its network answers them.
        "predicted_z": [0.0, 12.0, 11.0],
        "predicted_sld": [2.0, 5.0, 1.0],
    },
    "losses": LOSSES,
    "metrics": METRICS,
    "seconds": SECONDS,
}
CHI_DOCUMENT: dict[str, Any] = {
    "autoencoder_losses": LOSSES,
    "perceptron_losses": LOSSES,
    "channels": [
        {"name": "chi1", "rmse": 2.0, "mae": 1.0, "r2": 0.5},
        {"name": "chi2", "rmse": 0.0, "mae": 0.0, "r2": None},
    ],
    "chi": [{"x": 1, "predicted": 9.0, "actual": None}, {"x": 2, "predicted": 8.0, "actual": None}],
    "predictions": [{"chi": [9.0, 8.0]}],
    "test": {
        # Objects come in any order.
        "chi2": {"actual": [10.0, 20.0, 30.0], "predicted": [10.0, 21.0, 60.0]},
        "chi1": {"actual": [1.0, 2.0, 3.0], "predicted": [1.0, 2.5, 9.0]},
    },
    "profile": {"z": [0.0, 1.0], "sld": [2.0, 0.0], "reconstructed_sld": [1.9, 0.1]},
    "seconds": SECONDS,
}


def test_a_physical_answer_runs_from_the_substrate_at_0_upwards() -> None:
    made = response(PHYSICAL, PHYSICAL_DOCUMENT)
    sld = made["sld"]
    assert (sld["z"][0], sld["z"][-1], len(sld["z"])) == (0.0, 20.0, 900)
    assert (sld["groundTruth"][0], sld["groundTruth"][-1]) == (2.0, 0.0)
    assert max(sld["predicted"]) == pytest.approx(5.0, abs=0.01)
    assert made["nr"] == {"q": [0.1, 0.2], "groundTruth": [0.5, 0.25], "computed": [0.4, 0.2]}
    assert made["training"] == {"epochs": [1], "trainingLoss": [2.0], "validationLoss": [3.0]}
    assert made["metrics"] == {"mse": 0.25, "r2": 0.75, "mae": 0.25}
    assert made["chi"] == []
    assert timing(PHYSICAL, PHYSICAL_DOCUMENT) == {
        "generation": 1.0,
        "training": 2.0,
        "inference": 3.0,
        "total": 6.0,
    }


def test_a_prediction_is_compared_at_the_same_depths_and_has_no_curve_where_none_can_be_calculated() -> None:
    made = response(CNN, CNN_DOCUMENT)
    assert made["sld"]["z"] == [0.0, 10.0, 20.0]
    assert made["sld"]["predicted"] == [2.0, pytest.approx(4.5), 1.0]
    # Not the measured one in its place.
    assert made["nr"]["computed"] == []


def test_a_measured_curve_has_no_truth_and_no_metrics() -> None:
    answer = {
        "q": [0.1],
        "reflectivity": [0.5],
        "predicted_reflectivity": [0.4],
        "z": [0.0, 1.0],
        "sld": [2.0, 0.0],
    }
    document = {"answers": [answer], "seconds": 2.0}
    made = response(APPLY, document)
    assert made["sld"] == {"z": [0.0, 1.0], "groundTruth": [2.0, 0.0], "predicted": [2.0, 0.0]}
    assert made["metrics"] == {"mse": 0.0, "r2": 0.0, "mae": 0.0}
    assert made["training"]["epochs"] == made["chi"] == []
    assert timing(APPLY, document) == {"generation": 0.0, "training": 0.0, "inference": 2.0, "total": 2.0}


def test_chi_is_that_of_the_median_test_profile_where_the_measured_one_has_no_truth() -> None:
    made = response(CHI, CHI_DOCUMENT)
    assert made["nr"] == {"q": [], "groundTruth": [], "computed": []}
    assert made["chi"] == [
        {"x": 1, "predicted": 2.5, "actual": 2.0},
        {"x": 2, "predicted": 21.0, "actual": 20.0},
    ]
    assert made["predictions"] == [{"chi": [9.0, 8.0]}]
    assert made["training"]["epochs"] == [1, 2]
    assert made["sld"]["predicted"] == [1.9, 0.1]
    assert made["metrics"] == {"mse": 2.0, "r2": 0.25, "mae": 0.5}
    known = {**CHI_DOCUMENT, "chi": [{"x": 1, "predicted": 2.0, "actual": 1.0}]}
    assert response(CHI, known)["chi"] == known["chi"]


def test_both_networks_give_curve_profile_and_chi() -> None:
    curve = {
        "q": [0.3],
        "reflectivity": [0.1],
        "predicted_reflectivity": [0.2],
        "z": [0.0, 1.0],
        "sld": [1.0, 0.0],
    }
    trained = {"cnn": CNN_DOCUMENT, "chi": CHI_DOCUMENT, "curve": curve}
    made = response(BOTH, trained)
    assert made["nr"]["q"] == [0.3]
    assert made["training"]["epochs"] == [1]
    assert made["metrics"]["mse"] == 0.25
    assert [point["x"] for point in made["chi"]] == [1, 2]
    assert timing(BOTH, trained) == {"generation": 2.0, "training": 4.0, "inference": 6.0, "total": 12.0}
    read = response(BOTH, {"cnn": None, "chi": CHI_DOCUMENT, "curve": curve})
    assert read["training"]["epochs"] == []
    assert read["metrics"]["mse"] == 2.0


def test_beyond_its_ends_a_line_has_their_values() -> None:
    assert at([-1, 0, 0.5, 2, 3], [0, 1, 2], [1.0, 2.0, 4.0]) == [1.0, 1.0, 1.5, 4.0, 4.0]
    # Where x stands still, as predicted depths may.
    assert at([1.0, 1.5], [0.0, 1.0, 1.0, 2.0], [0.0, 1.0, 3.0, 5.0]) == [3.0, 4.0]
