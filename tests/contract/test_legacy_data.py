"""Files, history, models and small answers of the old web app, clause by clause, over the real platform."""

from __future__ import annotations

import io
import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import torch

from guidehall.client import JobState
from guidehall.contracts.results.v1 import history_pb2, history_pb2_grpc
from guidehall.core.auth import KeyPair, Role, TokenIssuer
from guidehall.local.identity import Identity
from guidehall.science.reflectometry.cnn.network import Cnn, CnnShape
from tests.fixtures.gateway import Gateway
from tests.fixtures.platform import Platform

pytestmark = pytest.mark.slow

SECRET, TOKEN = "the proxy", "the worker elsewhere"
WAIT_SECONDS = 120
ENDS = {"min": 0.0, "max": 1.0}
STATISTICS = {
    "nr": {"x": {"min": 0.008, "max": 0.2}, "y": {"min": -8, "max": 0}},
    "sld": {"x": ENDS, "y": ENDS},
}
Answer = httpx.Response


@dataclass(frozen=True)
class Page:
    """The old page, in the name of somebody or of nobody.

    Attributes:
        production: whether it speaks to a shared installation.
    """

    http: httpx.Client
    user: str | None
    production: bool

    def __call__(self, method: str, path: str, **arguments: Any) -> Answer:
        headers = {"Origin": "http://localhost:3000", **arguments.pop("headers", {})}
        if self.user is not None:
            headers["X-User-Id"] = self.user
        if self.production:
            headers["X-Guidehall-Proxy-Secret"] = SECRET
        answer = self.http.request(method, f"/api{path}", headers=headers, **arguments)
        # The page comes from elsewhere, and reads errors too.
        assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
        if answer.status_code >= 400 and answer.status_code != 422:
            assert list(answer.json()) == ["detail"]
            assert isinstance(answer.json()["detail"], str)
        return answer

    def upload(self, filename: str, content: bytes, role: str | None, **arguments: Any) -> Answer:
        """As the page does: one file, then its role."""
        fields: list[Any] = [("files", (filename, content))]
        if role is not None:
            fields.append(("roles", (None, role)))
        return self("POST", "/upload", files=fields, **arguments)

    def status(self) -> dict[str, Any]:
        answer = self("GET", "/status")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


@dataclass(frozen=True)
class Site:
    """The platform with a gateway for one person and one for a shared installation."""

    platform: Platform
    local: httpx.Client
    shared: httpx.Client

    def page(self, user: str | None = "", *, production: bool = False) -> Page:
        """A page of a user of its own, unless named; None is a guest."""
        name = f"u-{uuid.uuid4().hex[:8]}" if user == "" else user
        return Page(self.shared if production else self.local, name, production)

    def headers(self, user: str | None) -> dict[str, str]:
        """Of the proxy's requests to /api/v1."""
        return {"X-Guidehall-Proxy-Secret": SECRET, **({} if user is None else {"X-User-Id": user})}

    def metadata(self, user: str) -> list[tuple[str, str]]:
        """Of calls to services in the name of a user."""
        key = KeyPair.load(Identity(self.platform.data / "identity").key_file("storage"))
        token = TokenIssuer("storage", key).mint(user, "user", ttl_seconds=600, roles=[Role.SCIENTIST])
        return [("authorization", f"Bearer {token}")]

    def keep_run(self, user: str, job: str, version: str) -> str:
        """What the end of a run keeps in a user's history; its id."""
        entry = history_pb2.HistoryEntry(display_name="a run", job=job, model_version=version)
        entry.params.update(PARAMS)
        entry.result.update(RESULT | {"model_id": version.split("/")[3]})
        request = history_pb2.CreateHistoryEntryRequest(parent=f"users/{user}", entry=entry)
        with grpc.insecure_channel(self.platform.endpoints["storage"]) as channel:
            stub = history_pb2_grpc.HistoryServiceStub(channel)
            made = stub.CreateHistoryEntry(request, timeout=20, metadata=self.metadata(user))
        return str(made.name.rpartition("/")[2])


@pytest.fixture(scope="module")
def site(platform: Platform) -> Iterator[Site]:
    identity, endpoints = Identity(platform.data / "identity"), platform.endpoints
    common: dict[str, object] = {
        f"{name.upper()}__TARGET": endpoints[name] for name in ("trainer", "storage", "inference")
    }
    common |= {
        "LEGACY__UPLOAD_PER_MINUTE": 0,
        "LEGACY__MODEL_UPLOAD_TOKEN": TOKEN,
        "HTTP__CORS_ORIGINS": json.dumps(["http://localhost:3000"]),
    }
    proxy = {
        "AUTH__MODE": "proxy",
        "AUTH__PROXY_SECRET": SECRET,
        "LEGACY__LIMITS__MAX_CURVES": 777,
        "LEGACY__LIMITS_WHITELIST_USER_IDS": json.dumps(["friend"]),
    }
    running = [Gateway(identity, **common), Gateway(identity, **common, **proxy)]
    clients = [
        httpx.Client(base_url=f"http://127.0.0.1:{gateway.port}", timeout=WAIT_SECONDS) for gateway in running
    ]
    try:
        yield Site(platform, *clients)
    finally:
        for client in clients:
            client.close()
        for gateway in running:
            gateway.stop()


@pytest.fixture
def page(site: Site) -> Page:
    return site.page()


@dataclass(frozen=True)
class Trained:
    """A model that a job made."""

    owner: str
    id: str
    version: str
    job: str


# Of the old app's jobs.
LABELLED = {"guidehall-legacy": "generate"}


def _job(site: Site, owner: str | None, pipeline: str, params: dict[str, Any], **fields: Any) -> str:
    """A job that has succeeded; its full name."""
    body = {"pipeline": pipeline, "params": params, **fields}
    submitted = site.shared.post("/api/v1/jobs", json=body, headers=site.headers(owner))
    assert submitted.status_code == 201, submitted.text
    job = str(submitted.json()["name"])
    with site.platform.client() as client:
        assert client.wait(job.rpartition("/")[2], timeout=WAIT_SECONDS).state is JobState.SUCCEEDED
    return job


def _train(site: Site, owner: str | None, **fields: Any) -> Trained:
    id = str(uuid.uuid4())
    params = {
        "model_name": id,
        "curves": 12,
        "network": {"layers": 1, "width": 4, "kernel": 3},
        "training": {"epochs": 1},
        "profile_points": 20,
    }
    job = _job(site, owner, "reflectometry.pyreflect_cnn", params, **fields)
    with site.platform.client() as client:
        (version,) = client.result(job.rpartition("/")[2]).model_versions
    return Trained(owner or "", id, version, job)


@pytest.fixture(scope="module")
def trained(site: Site) -> Trained:
    return _train(site, "ada")


PARAMS = {
    "layers": [{"name": "substrate", "sld": 2.07}],
    "generator": {"numCurves": 100},
    "training": {"epochs": 1},
}
RESULT = {
    "nr": {"q": [0.1] * 308, "groundTruth": [1.0] * 308, "computed": [1.0] * 308},
    "sld": {"z": [], "groundTruth": [], "predicted": []},
    "training": {"epochs": [1], "trainingLoss": [0.5], "validationLoss": [0.5]},
    "chi": [{"x": 0, "predicted": 1.5, "actual": 1.25}],
    "metrics": {"mse": 0.5, "r2": 0.25, "mae": 1},
    "name": None,
    "timing": {"total": 3.5},
}


def npy(*shape: int) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ones(shape, np.float32))
    return buffer.getvalue()


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


NETWORK = Cnn(CnnShape(3, 8, 5, 32, 20)).state_dict()


def pth(state: Any = NETWORK) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def is_missing(answer: Answer, *fields: str) -> bool:
    """Whether it is the 422 of a body without these fields."""
    if answer.status_code != 422:
        return False
    listed = answer.json()["detail"]
    return all(item["type"] == "missing" and item["msg"] and "input" in item for item in listed) and [
        item["loc"] for item in listed
    ] == [["body", field] for field in fields]


# 1.3 Small GETs


def test_health_says_whether_somebody_can_train(site: Site) -> None:
    for production in (False, True):
        answer = site.page(None, production=production)("GET", "/health")
        assert (answer.status_code, answer.json()) == (
            200,
            {"status": "healthy", "pyreflect_available": True},
        )


def test_limits_of_one_persons_machine_are_those_of_the_schema(site: Site) -> None:
    expected = {
        "max_curves": 100000, "max_film_layers": 20, "max_batch_size": 512, "max_epochs": 1000,
        "max_cnn_layers": 20, "max_dropout": 0.9, "max_latent_dim": 128, "max_ae_epochs": 500,
        "max_mlp_epochs": 500,
    }  # fmt: skip
    for user in (None, "ada"):
        assert site.page(user)("GET", "/limits").json() == {
            "production": False,
            "limits": expected,
            "access_granted": True,
            "limit_source": "local_dev",
        }


def test_limits_in_production_can_be_set_one_by_one(site: Site) -> None:
    for user in (None, "ada"):
        assert site.page(user, production=True)("GET", "/limits").json() == {
            "production": True,
            "limits": {
                "max_curves": 777, "max_film_layers": 10, "max_batch_size": 64, "max_epochs": 50,
                "max_cnn_layers": 12, "max_dropout": 0.5, "max_latent_dim": 32, "max_ae_epochs": 100,
                "max_mlp_epochs": 100,
            },
            "access_granted": False,
            "limit_source": "production",
        }  # fmt: skip


def test_limits_do_not_count_for_those_on_the_list(site: Site) -> None:
    found = site.page("friend", production=True)("GET", "/limits").json()
    assert (found["production"], found["access_granted"], found["limit_source"]) == (True, True, "whitelist")
    assert found["limits"]["max_curves"] == 100000


def test_defaults(page: Page) -> None:
    found = page("GET", "/defaults").json()
    assert [tuple(layer.values()) for layer in found["layers"]] == [
        ("substrate", 2.07, 0, 0, 1.8), ("siox", 3.47, 0, 12, 2), ("polymer_1", 3.8, 0, 50, 10),
        ("polymer_2", 2.5, 0, 150, 30), ("air", 0, 0, 0, 0),
    ]  # fmt: skip
    assert list(found["layers"][0]) == ["name", "sld", "isld", "thickness", "roughness"]
    assert found["generator"] == {"numCurves": 1000, "numFilmLayers": 5, "layerBound": None}
    assert found["training"] == {
        "batchSize": 32, "epochs": 10, "layers": 12, "dropout": 0, "latentDim": 16, "aeEpochs": 50,
        "mlpEpochs": 50,
    }  # fmt: skip


def _leaves(tree: dict[str, Any]) -> dict[str, Any]:
    return {
        f"{section}.{group}.{key}": leaf
        for section, groups in tree.items()
        for group, items in groups.items()
        for key, leaf in items.items()
    }


def test_status_of_somebody_without_files(site: Site) -> None:
    for page in (site.page(), site.page(None), site.page(None, production=True)):
        found = page.status()
        assert (found["pyreflect_available"], found["has_settings"]) == (True, False)
        assert [found[f"{kind}_files"] for kind in ("data", "curve", "expt", "model")] == [[], [], [], []]
        keys = {
            "nr_predict_sld.file.nr_train", "nr_predict_sld.file.sld_train",
            "nr_predict_sld.file.experimental_nr_file", "nr_predict_sld.models.model",
            "nr_predict_sld.models.normalization_stats",
            "sld_predict_chi.file.model_experimental_sld_profile", "sld_predict_chi.file.model_sld_file",
            "sld_predict_chi.file.model_chi_params_file",
        }  # fmt: skip
        assert _leaves(found["settings_paths"]) == dict.fromkeys(keys)
        assert _leaves(found["settings_status"]) == dict.fromkeys(keys, False)


def test_status_of_the_user_who_was_named_last_for_the_page_does_not_say_who_it_is(site: Site) -> None:
    ada = site.page()
    assert ada.upload("nr.npy", npy(5, 2, 8), "nr_train").status_code == 200
    assert ada("GET", "/limits").status_code == 200
    assert site.page(None).status()["curve_files"] == ["nr.npy"]
    assert site.page(None, production=True).status()["curve_files"] == []
    # Others are shown their own.
    assert site.page().status()["curve_files"] == []
    # Whoever comes next has none.
    assert site.page()("GET", "/limits").status_code == 200
    assert site.page(None).status()["curve_files"] == []


# 1.6 Upload


@pytest.mark.parametrize(
    ("role", "filename", "content", "path", "told"),
    [
        ("nr_train", "nr.npy", npy(5, 2, 8), "data/curves/nr.npy", {"shape": [5, 2, 8]}),
        ("sld_train", "sld.npy", npy(5, 2, 9), "data/curves/sld.npy", {"shape": [5, 2, 9]}),
        ("experimental_nr", "e.npy", npy(1, 2, 8), "data/curves/expt/e.npy", {"shape": [1, 2, 8]}),
        (
            "normalization_stats", "s.json", json.dumps({"x": [0, 1], "y": [2]}).encode(), "data/s.npy",
            {"type": "dict", "stored_as": "s.npy"},
        ),
        (
            "normalization_stats", "s.npz", npz(x=np.arange(2), y=np.ones(3)), "data/s.npy",
            {"type": "dict", "stored_as": "s.npy"},
        ),
        ("nr_sld_model", "m.pth", pth(), "data/models/m.pth", {}),
        ("nr_sld_model", "m.pt", pth(), "data/models/m.pt", {}),
        ("sld_chi_experimental_profile", "p.npy", npy(2, 9), "data/p.npy", {"shape": [2, 9]}),
        ("sld_chi_model_sld_file", "p.npy", npy(4, 2, 9), "data/p.npy", {"shape": [4, 2, 9]}),
        ("sld_chi_model_chi_params_file", "c.npy", npy(4, 3), "data/c.npy", {"shape": [4, 3]}),
    ],
)  # fmt: skip
def test_a_file_for_a_role_is_kept_and_shown(
    page: Page, role: str, filename: str, content: bytes, path: str, told: dict[str, Any]
) -> None:
    answer = page.upload(filename, content, role)
    assert answer.status_code == 200, answer.text
    about = {"filename": filename, "role": role, "path": path, **told}
    assert answer.json() == {"saved": [filename], "metadata": [about], "settings_updated": True}

    found = page.status()
    assert found["has_settings"] is True
    assert [leaf for leaf in _leaves(found["settings_paths"]).values() if leaf] == [path]
    assert list(_leaves(found["settings_status"]).values()).count(True) == 1
    folders = {"data": "data", "data/curves": "curve", "data/curves/expt": "expt", "data/models": "model"}
    for folder, name in folders.items():
        listed = [path.rpartition("/")[2]] if path.rpartition("/")[0] == folder else []
        assert found[f"{name}_files"] == listed


def test_the_files_of_one_are_not_those_of_another(site: Site) -> None:
    ada, bob = site.page(), site.page()
    assert ada.upload("nr.npy", npy(5, 2, 8), "nr_train").status_code == 200
    assert bob.upload("nr.npy", npy(6, 2, 8), "nr_train").status_code == 200
    assert bob.upload("other.npy", npy(6, 2, 8), "sld_train").status_code == 200
    assert ada.status()["curve_files"] == ["nr.npy"]
    assert bob.status()["curve_files"] == ["nr.npy", "other.npy"]


def test_a_file_of_the_same_name_replaces_the_one_before(page: Page) -> None:
    for count in (5, 6):
        assert page.upload("nr.npy", npy(count, 2, 8), "nr_train").json()["metadata"][0]["shape"][0] == count
    assert page.status()["curve_files"] == ["nr.npy"]


def test_several_files_are_matched_with_their_roles_by_position(page: Page) -> None:
    fields: list[Any] = [
        ("roles", (None, "nr_train")),
        ("files", ("dir/nr.npy", npy(5, 2, 8))),
        ("files", ("C:\\old\\sld.npy", npy(5, 2, 9))),
        ("roles", (None, "sld_train")),
    ]
    answer = page("POST", "/upload", files=fields)
    assert answer.status_code == 200, answer.text
    assert answer.json()["saved"] == ["nr.npy", "sld.npy"]
    assert [item["role"] for item in answer.json()["metadata"]] == ["nr_train", "sld_train"]


@pytest.mark.parametrize(
    ("role", "filename", "content", "reason"),
    [
        ("nr_train", "a.npy", npy(2, 8), "(N, 2, L)"),
        ("sld_train", "a.npy", npy(5, 3, 8), "(N, 2, L)"),
        ("experimental_nr", "a.npy", npy(2, 8), "(N, 2, L)"),
        ("sld_chi_model_sld_file", "a.npy", npy(3, 8), "(2, L)"),
        ("sld_chi_model_chi_params_file", "a.npy", npy(3, 2, 8), "(N, params)"),
        ("normalization_stats", "a.npy", npy(2), ".npz or .json"),
        ("normalization_stats", "a.json", b'{"x": [1]}', "numeric arrays x and y"),
        ("nr_train", "a.npy", b"no array", ".npy"),
        ("nr_train", "a.txt", b"1 2 3", ".npy"),
        ("nr_train", "a.pth", pth({"a": torch.ones(3)}), ".npy"),
        ("nr_sld_model", "a.pth", b"no network", "torch.save"),
        ("nr_sld_model", "a.npy", npy(3), ".pth"),
        ("unknown", "a.npy", npy(5, 2, 8), "nr_train"),
        (None, "a.npy", npy(5, 2, 8), "nr_train"),
        ("auto", "a.npy", npy(5, 2, 8), "nr_train"),
        ("nr_train", "settings.yml", b"a: 1", ".npy"),
        (None, "settings.yml", b"- no names", "YAML"),
    ],
)
def test_a_bad_file_is_refused_with_its_name_and_nothing_stays(
    page: Page, role: str | None, filename: str, content: bytes, reason: str
) -> None:
    answer = page.upload(filename, content, role)
    assert answer.status_code == 400, answer.text
    assert answer.json()["detail"].startswith(f"{filename}: ")
    assert reason in answer.json()["detail"]
    assert "/tmp" not in answer.text
    found = page.status()
    assert (found["has_settings"], found["data_files"], found["curve_files"], found["model_files"]) == (
        False, [], [], [],
    )  # fmt: skip


def test_python_objects_are_refused_unread(page: Page) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    answer = page.upload("a.npy", buffer.getvalue(), "nr_train")
    assert (answer.status_code, "unpickled" in answer.json()["detail"]) == (400, True)


def test_files_before_a_bad_one_stay_but_for_nothing(page: Page) -> None:
    fields: list[Any] = [
        ("files", ("good.npy", npy(5, 2, 8))),
        ("files", ("bad.npy", npy(5, 8))),
        ("roles", (None, "nr_train")),
        ("roles", (None, "sld_train")),
    ]
    assert page("POST", "/upload", files=fields).json()["detail"].startswith("bad.npy: ")
    found = page.status()
    assert (found["has_settings"], found["curve_files"]) == (False, ["good.npy"])


@pytest.mark.parametrize("role", [None, "", "auto"])
def test_a_settings_file_replaces_the_settings(page: Page, role: str | None) -> None:
    page.upload("nr.npy", npy(5, 2, 8), "nr_train")
    page.upload("sld.npy", npy(5, 2, 8), "sld_train")
    text = b"nr_predict_sld: {file: {nr_train: /srv/app/data/curves/nr.npy, experimental_nr_file: gone.npy}}"
    answer = page.upload("settings.yml", text, role)
    assert answer.status_code == 200, answer.text
    assert answer.json()["saved"] == ["settings.yml"]
    assert answer.json()["settings_updated"] is True
    found = page.status()
    paths, there = found["settings_paths"]["nr_predict_sld"], found["settings_status"]["nr_predict_sld"]
    assert paths["file"] == {
        "nr_train": "data/curves/nr.npy",
        "sld_train": None,
        "experimental_nr_file": "data/curves/expt/gone.npy",
    }
    assert there["file"] == {"nr_train": True, "sld_train": False, "experimental_nr_file": False}
    assert found["curve_files"] == ["nr.npy", "sld.npy"]


def test_uploads_need_a_user(site: Site) -> None:
    for production in (False, True):
        guest = site.page(None, production=production)
        assert guest.upload("nr.npy", npy(5, 2, 8), "nr_train").status_code == 401


def test_a_form_without_files_is_refused_as_such_whoever_sends_it(site: Site) -> None:
    for page in (site.page(), site.page(None, production=True)):
        assert is_missing(page("POST", "/upload", files=[("roles", (None, "nr_train"))]), "files")
        assert is_missing(page("POST", "/upload", json={}), "files")
        assert is_missing(page("POST", "/upload"), "files")


def test_a_form_that_is_cut_off_is_refused(page: Page) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.npy"\r\n\r\n' + npy(5, 2, 8)
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert page("POST", "/upload", content=body, headers=headers).status_code == 400
    assert page.status()["curve_files"] == []


def test_uploads_are_limited_in_size_and_in_a_minute(site: Site) -> None:
    settings: dict[str, object] = {
        f"{name.upper()}__TARGET": site.platform.endpoints[name]
        for name in ("trainer", "storage", "inference")
    }
    gateway = Gateway(
        Identity(site.platform.data / "identity"),
        **settings,
        HTTP__MAX_UPLOAD_BYTES=100_000,
        LEGACY__UPLOAD_PER_MINUTE=3,
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{gateway.port}", timeout=60) as client:
            page, other = Page(client, "ada-limited", False), Page(client, "bob-limited", False)
            head = "POST /api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000000\r\n\r\n"
            with gateway.connect(head.encode()) as connection:
                assert connection.recv(4096).startswith(b"HTTP/1.1 413")
            for _ in range(2):
                assert page.upload("a.npy", npy(5, 2, 8), "nr_train").status_code == 200
            passed = page.upload("a.npy", npy(1, 2, 20_000), "nr_train")
            assert (passed.status_code, "at most 100000 bytes" in passed.json()["detail"]) == (400, True)
            refused = page.upload("a.npy", npy(5, 2, 8), "nr_train")
            assert refused.status_code == 429
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            # A wrong form is told before that.
            assert is_missing(page("POST", "/upload"), "files")
            assert other.upload("a.npy", npy(5, 2, 8), "nr_train").status_code == 200
    finally:
        gateway.stop()


def test_large_files_take_little_memory(site: Site) -> None:
    """Of the gateway: they pass through it, and networks change their format on the way, both ways."""
    endpoints = site.platform.endpoints
    targets: dict[str, object] = {
        f"{name.upper()}__TARGET": endpoints[name] for name in ("trainer", "storage", "inference")
    }
    weights = {f"tensor.{number}": torch.full((64, 1 << 18), float(number)) for number in range(4)}
    id = f"m-{uuid.uuid4().hex[:8]}"
    gateway = Gateway(Identity(site.platform.data / "identity"), **targets, LEGACY__MODEL_UPLOAD_TOKEN=TOKEN)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{gateway.port}", timeout=WAIT_SECONDS) as client:
            page = Page(client, "ada-large", False)
            assert page.upload("a.npy", npy(5, 2, 8), "nr_train").status_code == 200
            before = gateway.peak_bytes()
            assert page.upload("a.npy", npy(1 << 15, 2, 1 << 10), "nr_train").status_code == 200
            fields = [
                ("model_id", (None, id)),
                ("user_id", (None, page.user)),
                ("file", ("m.pth", pth(weights))),
            ]
            stored = _put(page, *fields)
            assert (stored.status_code, stored.json()["size_mb"]) == (200, pytest.approx(256, abs=1))
            answer = page("GET", f"/models/{id}")
            state = torch.load(io.BytesIO(answer.content), weights_only=True)
            assert all(torch.equal(state[name], value) for name, value in weights.items())
            assert gateway.peak_bytes() - before < 64 << 20
    finally:
        gateway.stop()


def test_a_network_with_its_statistics_becomes_a_model(site: Site) -> None:
    """In either order; then it is what the page's runs read with."""
    page = site.page()
    assert page.upload("m.pth", pth(), "nr_sld_model").status_code == 200
    assert page.upload("s.json", json.dumps(STATISTICS).encode(), "normalization_stats").status_code == 200
    (job,) = site.shared.get("/api/v1/jobs", headers=site.headers(page.user)).json()["jobs"]
    assert job["pipeline"] == "reflectometry.import_model"
    with site.platform.client() as client:
        assert client.wait(job["name"].rpartition("/")[2], timeout=WAIT_SECONDS).state is JobState.SUCCEEDED
    answer = page("GET", f"/models/{job['params']['model_name']}")
    assert answer.status_code == 200
    assert torch.load(io.BytesIO(answer.content), weights_only=True).keys() == NETWORK.keys()


def test_without_all_statistics_a_network_waits(site: Site) -> None:
    page = site.page()
    assert page.upload("m.pth", pth(), "nr_sld_model").status_code == 200
    assert page.upload("s.json", b'{"x": [0, 1], "y": [0, 1]}', "normalization_stats").status_code == 200
    assert site.shared.get("/api/v1/jobs", headers=site.headers(page.user)).json()["jobs"] == []


# 1.9 History


def _import(page: Page, **changes: Any) -> str:
    answer = page("POST", "/history", json={**PARAMS, "result": RESULT, "name": "a name", **changes})
    assert answer.status_code == 200, answer.text
    assert answer.json()["success"] is True
    id = str(answer.json()["id"])
    assert re.fullmatch("[0-9a-f]{24}", id)
    return id


def test_a_run_is_kept_whole(page: Page) -> None:
    result = {**RESULT, "export_pngs": {"encoding": "base64", "normal": {"nr": "A" * 300_000}}}
    id = _import(page, result=result)
    found = page("GET", f"/history/{id}").json()
    assert datetime.fromisoformat(found.pop("created_at")).tzinfo is not None
    assert found == {"_id": id, "user_id": page.user, "name": "a name", "params": PARAMS, "result": RESULT}


def test_the_list_is_newest_first_and_without_curves(page: Page) -> None:
    ids = [_import(page, name=None), _import(page)]
    listed = page("GET", "/history").json()
    assert [item["_id"] for item in listed] == ids[::-1]
    assert [item["name"] for item in listed] == ["a name", None]
    assert listed[0]["params"] == PARAMS
    assert listed[0]["result"] == {key: RESULT[key] for key in ("metrics", "name", "timing")}
    assert (listed[0]["is_local"], listed[0]["hf_url"]) == (False, None)


def test_the_list_has_at_most_fifty(page: Page) -> None:
    ids = [_import(page, result={}) for _ in range(52)]
    assert [item["_id"] for item in page("GET", "/history").json()] == ids[:1:-1]


def test_the_list_says_which_models_are_there(site: Site, trained: Trained) -> None:
    page = site.page(trained.owner)
    id = _import(page, result=RESULT | {"model_id": trained.id})
    listed = {item["_id"]: item["is_local"] for item in page("GET", "/history").json()}
    assert listed[id] is True


def test_a_run_whose_model_is_gone_is_kept_without_it(site: Site) -> None:
    page = site.page()
    gone = _train(site, page.user, labels=LABELLED)
    assert page("DELETE", f"/models/{gone.id}").status_code == 200
    other = _train(site, page.user, labels=LABELLED)
    listed = page("GET", "/history")
    assert listed.status_code == 200, listed.text
    assert [run["result"]["model_id"] for run in listed.json()] == [other.id, None]
    looked = page("GET", f"/jobs/{gone.job.rpartition('/')[2]}")
    assert looked.status_code == 200, looked.text
    assert looked.json()["result"]["model_id"] is None
    assert looked.json()["result"]["model_size_mb"] is None


def test_jobs_of_other_pipelines_are_none_of_the_old_app_whatever_their_labels(site: Site) -> None:
    page = site.page()
    foreign = _job(site, page.user, "toy.line", {}, labels=LABELLED | {"guidehall-legacy-call": "submit"})
    trained = _train(site, page.user, labels=LABELLED | {"guidehall-legacy-call": "submit"})
    listed = page("GET", "/history")
    assert listed.status_code == 200, listed.text
    assert [run["result"]["model_id"] for run in listed.json()] == [trained.id]
    assert page("GET", f"/jobs/{foreign.rpartition('/')[2]}").status_code == 404
    shown = page("GET", "/queue").json()["job_ids"]
    assert trained.job.rpartition("/")[2] in shown
    assert foreign.rpartition("/")[2] not in shown


def test_a_run_that_cannot_be_marked_as_kept_hides_no_other(site: Site) -> None:
    page = site.page()
    # As many labels as a job may have: there is no place for one more.
    full = _train(site, page.user, labels=LABELLED | {f"film-{number}": "x" for number in range(31)})
    other = _train(site, page.user, labels=LABELLED)
    for _ in range(2):
        listed = page("GET", "/history")
        assert listed.status_code == 200, listed.text
        assert [run["result"]["model_id"] for run in listed.json()] == [other.id, full.id]


def test_a_run_is_renamed(page: Page) -> None:
    id = _import(page)
    for name, kept in (("another", "another"), ("x" * 80, "x" * 80), ("  ", None), (None, None)):
        answer = page("PATCH", f"/history/{id}", json={"name": name})
        assert (answer.status_code, answer.json()) == (200, {"success": True, "id": id, "name": kept})
        found = page("GET", f"/history/{id}").json()
        assert found["name"] == kept
        assert datetime.fromisoformat(found["updated_at"]) > datetime.fromisoformat(found["created_at"])
    assert page("PATCH", f"/history/{id}", json={"name": "x" * 81}).status_code == 400
    assert page("PATCH", f"/history/{id}", json={"name": 3}).status_code == 422


def test_a_run_is_forgotten(page: Page) -> None:
    id = _import(page)
    assert page("DELETE", f"/history/{id}").json() == {"success": True}
    assert page("GET", "/history").json() == []
    for method in ("GET", "DELETE"):
        assert page(method, f"/history/{id}").status_code == 404
    assert page("PATCH", f"/history/{id}", json={"name": "a"}).status_code == 404


def test_history_ids_are_checked(page: Page) -> None:
    for id in ("x", "0" * 23, "0" * 25, "g" * 24, "0" * 23 + "A"):
        assert page("GET", f"/history/{id}").status_code == 400
        assert page("DELETE", f"/history/{id}").status_code == 400
        assert page("PATCH", f"/history/{id}", json={"name": "a"}).status_code == 400
    assert page("GET", f"/history/{'0' * 24}").status_code == 404


def test_nobody_sees_the_history_of_another(site: Site) -> None:
    id = _import(site.page())
    for other in (site.page(), site.page(production=True)):
        assert other("GET", f"/history/{id}").status_code == 404
        assert other("PATCH", f"/history/{id}", json={"name": "mine"}).status_code == 404
        assert other("DELETE", f"/history/{id}").status_code == 404
        assert other("GET", "/history").json() == []


def test_history_needs_a_user_but_a_wrong_body_is_told_first(site: Site) -> None:
    for production in (False, True):
        guest = site.page(None, production=production)
        for method, path in (("GET", "/history"), ("GET", "/history/x"), ("DELETE", "/history/x")):
            assert guest(method, path).status_code == 401
        assert guest("POST", "/history", json={**PARAMS, "result": RESULT}).status_code == 401
        assert is_missing(guest("POST", "/history", json=PARAMS), "result")
        assert guest("PATCH", "/history/x", json={"name": 3}).status_code == 422


def test_history_without_storage_is_a_503_for_all(site: Site) -> None:
    gateway = Gateway(Identity(site.platform.data / "identity"))
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{gateway.port}", timeout=60) as client:
            for user in (None, "ada"):
                page = Page(client, user, False)
                assert page("GET", "/history").status_code == 503
                assert page("POST", "/history", json={**PARAMS, "result": {}}).status_code == 503
                assert page("POST", "/history", json={}).status_code == 422
                assert page("GET", "/health").json()["pyreflect_available"] is False
    finally:
        gateway.stop()


def test_a_run_takes_its_model_along_a_copy_does_not(site: Site) -> None:
    trained = _train(site, f"u-{uuid.uuid4().hex[:8]}")
    page = site.page(trained.owner)
    path = f"/models/{trained.id}/info"
    copy = _import(page, result=RESULT | {"model_id": trained.id})
    runs = [site.keep_run(trained.owner, trained.job, trained.version) for _ in range(2)]
    for gone in (copy, runs[0]):
        assert page("DELETE", f"/history/{gone}").status_code == 200
        assert page("GET", path).json()["source"] == "local"
    assert page("DELETE", f"/history/{runs[1]}").status_code == 200
    assert page("GET", path).json()["source"] == "unknown"


def test_a_copy_keeps_the_model_of_a_run_that_is_gone(site: Site) -> None:
    trained = _train(site, f"u-{uuid.uuid4().hex[:8]}")
    page = site.page(trained.owner)
    run = site.keep_run(trained.owner, trained.job, trained.version)
    _import(page, result=RESULT | {"model_id": trained.id})
    assert page("DELETE", f"/history/{run}").status_code == 200
    assert page("GET", f"/models/{trained.id}/info").json()["source"] == "local"


# 1.10 Models


def test_a_model_comes_as_the_package_reads_it(site: Site, trained: Trained) -> None:
    for production in (False, True):
        answer = site.page(trained.owner, production=production)("GET", f"/models/{trained.id}")
        assert answer.status_code == 200
        named = answer.headers["content-disposition"]
        assert named == f'attachment; filename="pyreflect_model_{trained.id[:8]}.pth"'
        assert int(answer.headers["content-length"]) == len(answer.content)
        state = torch.load(io.BytesIO(answer.content), weights_only=True)
        # The names and shapes of the package's own network.
        assert state.keys() == Cnn(CnnShape(1, 4, 3, 308, 20)).state_dict().keys()
        assert all(tensor.isfinite().all() for tensor in state.values())


def test_model_info(site: Site, trained: Trained) -> None:
    found = site.page(trained.owner)("GET", f"/models/{trained.id}/info").json()
    assert found == {"size_mb": pytest.approx(0.19, abs=0.02), "source": "local", "download_url": None}


def test_info_of_an_unknown_model_has_nulls(page: Page) -> None:
    answer = page("GET", "/models/no-such/info")
    assert answer.status_code == 200
    found = answer.json()
    assert (found["size_mb"], found["source"], found["download_url"]) == (None, "unknown", None)
    assert "no-such" in found["error"]


def test_unknown_models(page: Page) -> None:
    assert page("GET", "/models/no-such").status_code == 404
    assert page("DELETE", "/models/no-such").status_code == 404
    assert page("GET", "/models/no-such/training-data/nr_train").status_code == 404


def test_model_ids_have_no_slashes(page: Page) -> None:
    for id in ("a%2Fb", "..%2F..%2Fetc%2Fpasswd"):
        assert page("GET", f"/models/{id}").status_code == 400
        assert page("DELETE", f"/models/{id}").status_code == 400


def test_the_curves_of_a_model(site: Site, trained: Trained) -> None:
    page = site.page(trained.owner)
    info = page("GET", f"/models/{trained.id}/training-data-info").json()
    assert info == {
        "nr_size_mb": pytest.approx(0.03, abs=0.01), "sld_size_mb": 0, "nr_url": None, "sld_url": None,
    }  # fmt: skip
    for kind, points in (("nr_train", 308), ("sld_train", 20)):
        answer = page("GET", f"/models/{trained.id}/training-data/{kind}")
        assert answer.status_code == 200
        assert int(answer.headers["content-length"]) == len(answer.content)
        assert np.load(io.BytesIO(answer.content)).shape == (12, 2, points)
    assert page("GET", f"/models/{trained.id}/training-data/other").status_code == 400


def test_models_of_others_are_forbidden(site: Site, trained: Trained) -> None:
    for page in (site.page(), site.page(production=True), site.page(None)):
        for method, path in (
            ("GET", ""), ("GET", "/info"), ("DELETE", ""), ("GET", "/training-data-info"),
            ("GET", "/training-data/nr_train"),
        ):  # fmt: skip
            assert page(method, f"/models/{trained.id}{path}").status_code == 403
    assert site.page(None, production=True)("GET", f"/models/{trained.id}").status_code == 401
    assert site.page(None, production=True)("GET", f"/models/{trained.id}/info").status_code == 401


def test_models_of_guests_are_anybodys_on_one_machine_and_in_production_those_of_who_has_the_run(
    site: Site,
) -> None:
    trained = _train(site, None)
    path = f"/models/{trained.id}"
    assert site.page(None)("GET", path).status_code == 200
    assert site.page()("GET", path).status_code == 200
    page = site.page(production=True)
    assert page("GET", path).status_code == 403
    site.keep_run(page.user or "", trained.job, trained.version)
    assert page("GET", path).status_code == 200
    assert page("GET", f"{path}/training-data/nr_train").status_code == 200
    assert page("DELETE", path).json() == {"status": "deleted", "model_id": trained.id}
    assert page("GET", path).status_code == 404


def test_a_model_is_deleted(site: Site) -> None:
    trained = _train(site, f"u-{uuid.uuid4().hex[:8]}")
    page = site.page(trained.owner, production=True)
    answer = page("DELETE", f"/models/{trained.id}")
    assert (answer.status_code, answer.json()) == (200, {"status": "deleted", "model_id": trained.id})
    assert page("DELETE", f"/models/{trained.id}").status_code == 404
    assert page("GET", f"/models/{trained.id}").status_code == 404


def _put(page: Page, *fields: Any, token: str = TOKEN) -> Answer:
    return page("POST", "/models/upload", files=list(fields), headers={"X-Model-Upload-Token": token})


def test_weights_of_a_worker_elsewhere_are_put_down(site: Site) -> None:
    page, id = site.page(), f"m-{uuid.uuid4().hex[:8]}"
    fields = [("model_id", (None, id)), ("user_id", (None, page.user)), ("file", ("m.pth", pth()))]
    answer = _put(site.page(None), *fields)
    assert answer.status_code == 200, answer.text
    size = answer.json()["size_mb"]
    assert answer.json() == {"status": "stored", "model_id": id, "size_mb": size, "evicted": []}
    assert page("GET", f"/models/{id}/info").json()["size_mb"] == size > 0
    content = page("GET", f"/models/{id}").content
    state = torch.load(io.BytesIO(content), weights_only=True)
    assert all(torch.equal(state[name], value) for name, value in NETWORK.items())
    assert site.page()("GET", f"/models/{id}").status_code == 403
    assert page("DELETE", f"/models/{id}").status_code == 200
    assert page("GET", f"/models/{id}").status_code == 404


def test_weights_that_somebody_else_put_down_stay_when_a_model_is_deleted(site: Site) -> None:
    page, trained = site.page(), _train(site, None)
    fields = [("model_id", (None, trained.id)), ("user_id", (None, page.user)), ("file", ("m.pth", pth()))]
    assert _put(site.page(None), *fields).status_code == 200
    assert site.page(None)("DELETE", f"/models/{trained.id}").status_code == 200
    state = torch.load(io.BytesIO(page("GET", f"/models/{trained.id}").content), weights_only=True)
    assert state.keys() == NETWORK.keys()


def test_with_statistics_weights_become_a_model(site: Site) -> None:
    page, id = site.page(), f"m-{uuid.uuid4().hex[:8]}"
    statistics = ("statistics", ("s.json", json.dumps(STATISTICS).encode()))
    fields = [
        ("model_id", (None, id)),
        ("user_id", (None, page.user)),
        ("file", ("m.pth", pth())),
        statistics,
    ]
    assert _put(site.page(None), *fields).status_code == 200
    (job,) = site.shared.get("/api/v1/jobs", headers=site.headers(page.user)).json()["jobs"]
    with site.platform.client() as client:
        assert client.wait(job["name"].rpartition("/")[2], timeout=WAIT_SECONDS).state is JobState.SUCCEEDED
    found = site.shared.get(f"/api/v1/models/{id}", headers=site.headers(page.user))
    assert found.status_code == 200
    assert page("GET", f"/models/{id}").status_code == 200


def test_weights_of_nobody_are_put_down_too(site: Site) -> None:
    id = f"m-{uuid.uuid4().hex[:8]}"
    fields = [("model_id", (None, id)), ("file", ("m.pth", pth()))]
    assert _put(site.page(None), *fields).status_code == 200
    assert site.page()("GET", f"/models/{id}").status_code == 200
    assert site.page(production=True)("GET", f"/models/{id}").status_code == 403


def test_uploads_of_models_are_checked(site: Site) -> None:
    page = site.page(None)
    id, file = ("model_id", (None, "a-model")), ("file", ("m.pth", pth()))
    assert _put(page, id, file, token="another").status_code == 401
    assert page("POST", "/models/upload", files=[id, file]).status_code == 401
    assert is_missing(_put(page, id), "file")
    assert is_missing(_put(page, ("user_id", (None, "ada"))), "file", "model_id")
    assert _put(page, file, id).status_code == 400
    assert _put(page, ("model_id", (None, "../a")), file).status_code == 400
    assert _put(page, id, ("file", ("m.pth", b"no network"))).status_code == 400
    assert _put(page, id, ("user_id", (None, "a/b")), file).status_code == 400
    assert page("GET", "/models/a-model").status_code == 404


def test_uploads_of_models_are_closed_without_a_token_in_the_settings(site: Site) -> None:
    with httpx.Client(base_url=site.platform.endpoints["gateway"], timeout=60) as client:
        page = Page(client, None, False)
        assert _put(page, ("model_id", (None, "a")), ("file", ("m.pth", pth()))).status_code == 503


# 1.11 Cross-cutting


def test_preflights_are_answered_for_known_origins_alone(site: Site) -> None:
    asked = {"Access-Control-Request-Method": "DELETE", "Access-Control-Request-Headers": "x-user-id"}
    known = site.local.options("/api/upload", headers={"Origin": "http://localhost:3000", **asked})
    assert known.status_code == 200
    assert known.headers["access-control-max-age"] == "600"
    assert known.headers["access-control-allow-credentials"] == "true"
    assert "x-user-id" in known.headers["access-control-allow-headers"]
    foreign = site.local.options("/api/upload", headers={"Origin": "http://elsewhere", **asked})
    assert foreign.status_code == 400


def test_wrong_methods_and_unknown_paths_have_the_same_shape(page: Page) -> None:
    assert page("PUT", "/upload").status_code == 405
    assert page("GET", "/no-such-path").status_code == 404
