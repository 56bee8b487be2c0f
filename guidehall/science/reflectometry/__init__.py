"""Reflectometry: the layers of a film from the neutrons it reflects."""

from __future__ import annotations

from guidehall.science.pipeline import Architecture, Pipeline
from guidehall.science.reflectometry.chi.params import (
    ChiParams,
    ChiResult,
    NrSldChiParams,
    NrSldChiResult,
)
from guidehall.science.reflectometry.cnn.params import (
    ApplyCnnParams,
    ApplyCnnResult,
    CnnParams,
    CnnResult,
    ImportModelParams,
    ImportModelResult,
)
from guidehall.science.reflectometry.infer_params import InferParams, InferResult
from guidehall.science.reflectometry.params import NrSldParams, NrSldResult, SimulateParams, SimulateResult
from guidehall.science.reflectometry.plan_params import PlanParams, PlanResult
from guidehall.science.registry import Science

_CHI_NEEDS = ("sld_curves", "chi_params")


def _import_needs(params: ImportModelParams) -> tuple[str, ...]:
    return ("weights", "statistics", *(("perceptron",) if params.kind == "chi" else ()))


def _cnn_needs(params: CnnParams) -> tuple[str, ...]:
    return ("nr_train", "sld_train") if params.curves_from_datasets else ()


def _nr_sld_chi_needs(params: NrSldChiParams) -> tuple[str, ...]:
    if params.cnn is None:
        return (*_CHI_NEEDS, "weights", "statistics", "experimental_nr")
    return (*_CHI_NEEDS, *_cnn_needs(params.cnn))


_CHI_DATASETS = {
    "sld_curves": "Profiles: .npy [N, 2, M], z in angstrom and SLD.",
    "chi_params": "Their chi: .npy [N, C].",
}

SCIENCE = Science(
    name="reflectometry",
    title="Reflectometry",
    pipelines=(
        Pipeline(
            name="reflectometry.simulate",
            version="1",
            title="Simulate a reflectivity curve",
            description="Specular reflectivity and SLD profile of a known stack of layers.",
            params=SimulateParams,
            result=SimulateResult,
            entry="guidehall.science.reflectometry.simulate:run",
        ),
        Pipeline(
            name="reflectometry.nr_sld",
            version="1",
            title="Train a network from reflectivity to layers",
            description=(
                "Draws films from the given bounds, calculates and blurs their curves, and trains a network"
                " that reads thickness, SLD and roughness of each layer back from a measured curve."
            ),
            params=NrSldParams,
            result=NrSldResult,
            entry="guidehall.science.reflectometry.nr_sld:run",
            smaller="guidehall.science.reflectometry.params:with_smaller_pieces",
            datasets={
                "curves": "Read when params.curves_from_dataset is set: curves.npy of an earlier run with"
                " the same bounds and probe."
            },
            needs=lambda params: ("curves",) if params.curves_from_dataset else (),
        ),
        Pipeline(
            name="reflectometry.infer",
            version="1",
            title="Find the film behind measured curves",
            description=(
                "Fits one curve, many, several contrasts of one film, or a series, from many starts; gives"
                " every film that explains them, credible intervals and bands, and says what not to believe."
            ),
            params=InferParams,
            result=InferResult,
            entry="guidehall.science.reflectometry.infer:run",
            device="cpu",
            datasets={
                "curves": "ORSO, text, NeXus or .npy: one or more curves with q and R, better with dR and dq."
            },
            needs=lambda params: ("curves",),  # noqa: ARG005
        ),
        Pipeline(
            name="reflectometry.plan",
            version="1",
            title="Plan a measurement",
            description="Expected error bars of a film's parameters against counting time, checked by fits.",
            params=PlanParams,
            result=PlanResult,
            entry="guidehall.science.reflectometry.plan:run",
            device="cpu",
        ),
        Pipeline(
            name="reflectometry.pyreflect_cnn",
            version="1",
            title="Train the network of pyreflect",
            description=(
                "Trains the convolutional network of the package pyreflect, which turns a reflectivity curve"
                " into an SLD profile, on curves that are made here, by that package, or read."
            ),
            params=CnnParams,
            result=CnnResult,
            entry="guidehall.science.reflectometry.cnn.train:run",
            datasets={
                "nr_train": "Read when params.curves_from_datasets is set: .npy [N, 2, L], q and R.",
                "sld_train": "Read with nr_train: .npy [N, 2, M], z from the substrate upwards and SLD.",
            },
            needs=_cnn_needs,
        ),
        Pipeline(
            name="reflectometry.apply_cnn",
            version="1",
            title="Apply a network of pyreflect",
            description="SLD profiles of measured curves by a network that the package pyreflect trained.",
            params=ApplyCnnParams,
            result=ApplyCnnResult,
            entry="guidehall.science.reflectometry.cnn.apply:run",
            device="cpu",
            datasets={
                "weights": "As for reflectometry.import_model.",
                "statistics": "As for reflectometry.import_model.",
                "experimental_nr": "Measured curves: .npy [2, L] or [N, 2, L], q and R.",
            },
            needs=lambda params: ("weights", "statistics", "experimental_nr"),  # noqa: ARG005
        ),
        Pipeline(
            name="reflectometry.import_model",
            version="1",
            title="Import a model of pyreflect",
            description="Publishes networks that the package pyreflect trained: they are served here then.",
            params=ImportModelParams,
            result=ImportModelResult,
            entry="guidehall.science.reflectometry.cnn.import_model:run",
            device="cpu",
            datasets={
                "weights": "The .pth file of torch.save(model.state_dict()), or safetensors.",
                "statistics": "The normalisation statistics of pyreflect: .npy, .npz or JSON. For chi, JSON"
                " with the limits of each chi.",
                "perceptron": "For chi: the second network, in a file like the first.",
            },
            needs=_import_needs,
        ),
        Pipeline(
            name="reflectometry.sld_chi",
            version="1",
            title="Train a model from SLD profiles to chi",
            description="An autoencoder and a perceptron on its latent space; intervals are tested.",
            params=ChiParams,
            result=ChiResult,
            entry="guidehall.science.reflectometry.chi.sld_chi:run",
            datasets=_CHI_DATASETS | {"experimental_sld": "Profiles to predict: .npy [2, L] or [N, 2, L]."},
            needs=lambda params: _CHI_NEEDS,  # noqa: ARG005
        ),
        Pipeline(
            name="reflectometry.nr_sld_chi",
            version="1",
            title="From reflectivity to profiles to chi",
            description="Trains or reads a network of pyreflect, trains a model to chi, and applies both.",
            params=NrSldChiParams,
            result=NrSldChiResult,
            entry="guidehall.science.reflectometry.chi.nr_sld_chi:run",
            datasets=_CHI_DATASETS
            | {
                "nr_train": "As for reflectometry.pyreflect_cnn.",
                "sld_train": "As for reflectometry.pyreflect_cnn.",
                "weights": "Without params.cnn: as for reflectometry.import_model.",
                "statistics": "Without params.cnn: as for reflectometry.import_model.",
                "experimental_nr": "Curves to predict: .npy [2, L] or [N, 2, L], q and R. Without it, a test"
                " curve.",
            },
            needs=_nr_sld_chi_needs,
        ),
    ),
    architectures=(
        Architecture(
            key="reflectometry.physical/1",
            entry="guidehall.science.reflectometry.predictor:PhysicalPredictor",
            title="Reflectivity to bounded layer parameters",
        ),
        Architecture(
            key="reflectometry.pyreflect_cnn/1",
            entry="guidehall.science.reflectometry.cnn.predictor:CnnPredictor",
            title="Reflectivity to SLD profile, by the network of pyreflect",
        ),
        Architecture(
            key="reflectometry.sld_chi/1",
            entry="guidehall.science.reflectometry.chi.predictor:ChiPredictor",
            title="SLD profile to chi",
        ),
    ),
)
