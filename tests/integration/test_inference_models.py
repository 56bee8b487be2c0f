"""Models from storage to answers: versions, faults, memory, restarts, and who sees what."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import urllib3
from minio import Minio

from guidehall.contracts.common.v1 import common_pb2
from guidehall.contracts.identity.v1 import audit_pb2, audit_pb2_grpc
from guidehall.contracts.models.v1 import models_pb2
from guidehall.contracts.prediction.v1 import prediction_pb2, prediction_pb2_grpc
from guidehall.core.auth import Role
from guidehall.core.errors import (
    AppError,
    InvalidArgument,
    NotFound,
    Unauthenticated,
    Unavailable,
    from_rpc_error,
)
from tests.fixtures.inference import (
    OWNER,
    READY,
    StartInference,
    as_user,
    line_model,
    models_stub,
    publish,
)
from tests.fixtures.storage import StorageSite
from tests.processes import Server

Metadata = Sequence[tuple[str, str]]
MODEL = "projects/default/models/{}"


def predict(server: Server, model: str, rows: int = 1, *, metadata: Metadata = ()) -> tuple[list[float], int]:
    """The model's answers at x = 1, and the version that gave them."""
    x = np.ones((rows, 1), np.float32)
    tensor = common_pb2.Tensor(datatype="FP32", shape=x.shape, content=x.tobytes())
    name = model if "/" in model else MODEL.format(model)
    request = prediction_pb2.PredictRequest(model=name, inputs={"x": tensor})
    with grpc.insecure_channel(server.target) as channel:
        try:
            answer = prediction_pb2_grpc.PredictionServiceStub(channel).Predict(
                request, timeout=10, metadata=metadata
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
    assert len(answer.model_digest) == 64
    y = np.frombuffer(answer.outputs["y"].content, np.float32)
    return y.tolist(), int(answer.model_version.rsplit("/", 1)[1])


def eventually(condition: Any, seconds: float = 30) -> None:
    """Waits for what another process does in its own time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def test_a_version_answers_by_name_by_number_and_as_the_latest(
    storage: StorageSite, inference: Server
) -> None:
    publish(storage, "numbers", line_model(slope=1))
    assert predict(inference, "numbers", rows=3) == ([1, 1, 1], 1)
    publish(storage, "numbers", line_model(slope=2))
    assert predict(inference, MODEL.format("numbers") + "/versions/2") == ([2], 2)
    assert predict(inference, MODEL.format("numbers") + "/versions/1") == ([1], 1)
    assert predict(inference, MODEL.format("numbers") + "/versions/latest") == ([2], 2)


def test_a_new_version_takes_over_without_being_asked_for(storage: StorageSite, inference: Server) -> None:
    publish(storage, "takeover", line_model(slope=1))
    assert predict(inference, "takeover") == ([1], 1)
    publish(storage, "takeover", line_model(slope=2))
    eventually(lambda: predict(inference, "takeover") == ([2], 2))


def test_a_new_model_of_somebody_is_loaded_when_first_used(storage: StorageSite, inference: Server) -> None:
    publish(storage, "unasked", line_model(slope=1))
    listed: list[Any] = []

    def is_known() -> bool:
        with triton.InferenceServerClient(inference.target) as client:
            index = client.get_model_repository_index()
        listed[:] = [model for model in index.models if model.name.endswith("unasked")]
        return bool(listed)

    eventually(is_known)
    assert [(model.state, model.reason) for model in listed] == [("UNAVAILABLE", "loaded when first used")]
    assert predict(inference, "unasked") == ([1], 1)


WRONG_EXAMPLE = {
    "inputs": {"x": {"shape": [1, 1], "values": [1.0]}},
    "outputs": {"y": {"shape": [1, 1], "values": [99.0]}},
}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"example": WRONG_EXAMPLE}, "the model answers differently from when it was made"),
        ({"architecture": "toy.line/2"}, "architecture: got toy.line/2"),
        ({"format_version": 2}, "manifest.format_version"),
        ({"inputs": [{"name": "w", "datatype": "FP32", "shape": [-1, 1]}]}, "the tensors are not those"),
    ],
)
def test_a_bad_newer_version_says_why_and_leaves_the_older_one_alone(
    storage: StorageSite, inference: Server, changes: dict[str, Any], reason: str
) -> None:
    name = f"bad-{next(iter(changes)).replace('_', '-')}"
    good = line_model(slope=1)
    publish(storage, name, good)
    assert predict(inference, name) == ([1], 1)
    publish(storage, name, good.changed(**changes))
    with pytest.raises(Unavailable, match=reason) as caught:
        predict(inference, MODEL.format(name) + "/versions/2")
    assert caught.value.reason == "MODEL_NOT_READY"
    assert caught.value.retry_after_seconds is None
    assert "Traceback" not in caught.value.message
    assert predict(inference, name) == ([1], 1)


def test_weights_that_changed_in_the_object_store_are_not_served(
    storage: StorageSite, start_inference: StartInference
) -> None:
    publish(storage, "tampered", line_model(slope=1))
    before = storage.stored_keys()
    model = line_model(slope=2)
    publish(storage, "tampered", model)
    (key,) = storage.stored_keys() - before
    overwrite(storage, key, model.weights[:-1] + b"\x7f")
    server = start_inference()
    with pytest.raises(Unavailable) as caught:
        predict(server, MODEL.format("tampered") + "/versions/2")
    assert "SHA-256" in caught.value.message
    assert predict(server, "tampered") == ([1], 1)


def overwrite(storage: StorageSite, key: str, content: bytes) -> None:
    """Changes an object behind storage's back."""
    s3 = storage.backing.s3
    pool = urllib3.PoolManager()
    client = Minio(
        s3.endpoint, access_key=s3.access_key, secret_key=s3.secret_key, secure=False, http_client=pool
    )
    client.put_object(storage.bucket, key, io.BytesIO(content), len(content))
    pool.clear()


def test_a_deleted_model_is_gone_and_comes_back(storage: StorageSite, inference: Server) -> None:
    publish(storage, "mortal", line_model(slope=1))
    assert predict(inference, "mortal") == ([1], 1)
    owner, name = as_user(storage, OWNER), MODEL.format("mortal")
    with models_stub(storage) as models:
        models.DeleteModel(models_pb2.DeleteModelRequest(name=name), timeout=10, metadata=owner)
        eventually(lambda: refused(inference, "mortal") is NotFound)
        models.UndeleteModel(models_pb2.UndeleteModelRequest(name=name), timeout=10, metadata=owner)
    eventually(lambda: refused(inference, "mortal") is None)


def refused(server: Server, model: str) -> type[AppError] | None:
    try:
        predict(server, model)
    except AppError as error:
        return type(error)
    return None


def test_the_least_recently_used_model_makes_room(
    storage: StorageSite, start_inference: StartInference, tmp_path: Path
) -> None:
    size = 400_000
    for slope in (1, 2, 3):
        publish(storage, f"large-{slope}", line_model(slope, padding_bytes=size))
    giant = line_model(4, padding_bytes=4 * size)
    publish(storage, "giant", giant)
    server = start_inference(REPOSITORY__MEMORY_BYTES=int(2.5 * size), REPOSITORY__PINS='["large-1"]')
    for slope in (1, 2, 3, 2, 1):
        assert predict(server, f"large-{slope}")[0] == [slope]
    unloaded = [json.loads(line)["model"] for line in server.log if "unloaded to make room" in line]
    assert unloaded
    assert not any("large-1/" in name for name in unloaded), "a pinned model was unloaded"
    with pytest.raises(Unavailable, match="memory budget"):
        predict(server, "giant")
    fetched = {path.name for path in (tmp_path / "cache" / "weights").iterdir()}
    assert hashlib.sha256(line_model(1, padding_bytes=size).weights).hexdigest() in fetched
    assert hashlib.sha256(giant.weights).hexdigest() not in fetched
    assert predict(server, "large-1")[0] == [1]


@pytest.mark.slow
def test_restarts_find_the_models_on_disk_and_mend_what_is_damaged(
    storage: StorageSite, start_inference: StartInference, tmp_path: Path
) -> None:
    publish(storage, "survivor", line_model(slope=7))
    server = start_inference()
    assert predict(server, "survivor") == ([7], 1)
    server.stop()
    for path in (tmp_path / "cache" / "weights").iterdir():
        path.write_bytes(b"x" + path.read_bytes()[1:])
    server = start_inference()
    assert predict(server, "survivor") == ([7], 1)
    server.stop()
    alone = start_inference(STORAGE__TARGET="127.0.0.1:1")
    assert predict(alone, "survivor") == ([7], 1)
    with pytest.raises(Unavailable):
        predict(alone, "never-heard-of")


@pytest.mark.slow
def test_what_the_disk_cannot_hold_drives_nothing_off_it(
    storage: StorageSite, start_inference: StartInference, tmp_path: Path
) -> None:
    publish(storage, "modest", line_model(slope=1))
    publish(storage, "vast", line_model(2, padding_bytes=400_000))
    server = start_inference(REPOSITORY__CACHE_BYTES=200_000, REPOSITORY__WARM_MODELS=0)
    assert predict(server, "modest") == ([1], 1)
    with pytest.raises(Unavailable, match="disk cache holds 200000"):
        predict(server, "vast")
    assert len(list((tmp_path / "cache" / "weights").iterdir())) == 1


def test_a_server_that_knows_nothing_is_up_but_not_ready(start_inference: StartInference) -> None:
    server = start_inference(ready=False, STORAGE__TARGET="127.0.0.1:1")
    server.wait_serving("")
    assert not server.serving(READY)


def test_a_server_is_ready_when_every_pinned_model_is_loaded(
    storage: StorageSite, start_inference: StartInference
) -> None:
    server = start_inference(ready=False, REPOSITORY__PINS='["pinned-late"]', REPOSITORY__RETRY_SECONDS=0.2)
    health = f"http://127.0.0.1:{json.loads(server.wait_for('ops_port'))['ops_port']}/health"

    def missing() -> list[str]:
        body: dict[str, Any] = urllib3.request("GET", health, retries=False).json()
        assert not body["ready"]
        return body.get("missing", [])

    name = MODEL.format("pinned-late")
    eventually(lambda: missing() == [f"{name}: not in storage"])
    model = line_model(slope=3)
    publish(storage, "pinned-late", model.changed(example=WRONG_EXAMPLE))
    eventually(lambda: any("answers differently" in reason for reason in missing()))
    assert name in server.wait_for("the model answers differently")
    assert not server.serving(READY)
    publish(storage, "pinned-late", model)
    server.wait_serving()
    assert urllib3.request("GET", health, retries=False).json() == {"ready": True}
    assert predict(server, "pinned-late") == ([3], 2)


def tag(storage: StorageSite, model: str, version: int | None, tag: str = "production") -> None:
    """Points a tag to a version, or takes it away."""
    owner, name = as_user(storage, OWNER), MODEL.format(model)
    with models_stub(storage) as models:
        if version is None:
            request = models_pb2.DeleteModelTagRequest(name=name, tag=tag)
            models.DeleteModelTag(request, timeout=10, metadata=owner)
        else:
            moved = models_pb2.SetModelTagRequest(name=name, tag=tag, version=version)
            models.SetModelTag(moved, timeout=10, metadata=owner)


def test_a_tag_is_followed_where_it_goes(storage: StorageSite, inference: Server) -> None:
    tagged = MODEL.format("tagged") + "/versions/production"
    publish(storage, "tagged", line_model(slope=1))
    publish(storage, "tagged", line_model(slope=2))
    assert refused(inference, tagged) is NotFound
    tag(storage, "tagged", 1)
    # Before the event has come, storage itself is asked.
    assert predict(inference, tagged) == ([1], 1)
    tag(storage, "tagged", 2)
    eventually(lambda: predict(inference, tagged) == ([2], 2))
    # Back again, and as the Open Inference Protocol names it.
    tag(storage, "tagged", 1)
    eventually(lambda: predict(inference, tagged) == ([1], 1))
    with triton.InferenceServerClient(inference.target) as client:
        x = triton.InferInput("x", [1, 1], "FP32")
        x.set_data_from_numpy(np.ones((1, 1), np.float32))
        answer = client.infer("tagged", [x], model_version="production")
    assert answer.get_response().model_version == "1"
    assert predict(inference, "tagged") == ([2], 2)
    tag(storage, "tagged", None)
    eventually(lambda: refused(inference, tagged) is NotFound)


def test_a_version_that_a_tag_moves_to_is_loaded_before_it_is_asked(
    storage: StorageSite, inference: Server
) -> None:
    publish(storage, "moving", line_model(slope=1))
    publish(storage, "moving", line_model(slope=2))
    # Both are known before the first question: it loads the newer one alone.
    eventually(lambda: set(states(inference, "moving")) == {"1", "2"})
    assert predict(inference, "moving") == ([2], 2)
    assert states(inference, "moving")["1"] == "UNAVAILABLE"
    tag(storage, "moving", 1)
    eventually(lambda: states(inference, "moving")["1"] == "READY")


def states(server: Server, model: str) -> dict[str, str]:
    """States of a model's versions; READY is what was loaded, and answered its example."""
    with triton.InferenceServerClient(server.target) as client:
        index = client.get_model_repository_index().models
    return {line.version: line.state for line in index if line.name.rpartition("/")[2] == model}


def test_a_tag_that_moved_while_nobody_listened_is_read_at_start(
    storage: StorageSite, start_inference: StartInference
) -> None:
    tagged = MODEL.format("unheard") + "/versions/production"
    publish(storage, "unheard", line_model(slope=1))
    publish(storage, "unheard", line_model(slope=2))
    tag(storage, "unheard", 1)
    server = start_inference()
    assert predict(server, tagged) == ([1], 1)
    server.stop()
    tag(storage, "unheard", 2)
    server = start_inference()
    assert predict(server, tagged) == ([2], 2)


def pin(storage: StorageSite, model: str, version: int, pinned: bool = True) -> None:
    name = MODEL.format(model) + f"/versions/{version}"
    request = models_pb2.UpdateModelVersionRequest(
        model_version=models_pb2.ModelVersion(name=name, pinned=pinned)
    )
    request.update_mask.paths.append("pinned")
    with models_stub(storage) as models:
        models.UpdateModelVersion(request, timeout=10, metadata=as_user(storage, "op", Role.OPERATOR))


def test_pinned_versions_are_loaded_at_start_or_at_once_and_stay(
    storage: StorageSite, start_inference: StartInference
) -> None:
    size = 400_000
    for slope in (1, 2):
        publish(storage, "steady", line_model(slope, padding_bytes=size))
    for slope in (3, 4, 5):
        publish(storage, f"passing-{slope}", line_model(slope, padding_bytes=size))
    pin(storage, "steady", 1)
    try:
        server = start_inference(REPOSITORY__MEMORY_BYTES=int(3.5 * size), REPOSITORY__WARM_MODELS=0)
        eventually(lambda: states(server, "steady") == {"1": "READY", "2": "UNAVAILABLE"})
        pin(storage, "steady", 2)
        eventually(lambda: states(server, "steady") == {"1": "READY", "2": "READY"})
        for slope in (3, 4, 5):
            assert predict(server, f"passing-{slope}")[0] == [slope]
        unloaded = [json.loads(line)["model"] for line in server.log if "unloaded to make room" in line]
        assert len(unloaded) == 2
        assert not any("steady" in name for name in unloaded)
    finally:
        for version in (1, 2):
            pin(storage, "steady", version, pinned=False)


def test_inputs_are_checked_by_name(storage: StorageSite, inference: Server) -> None:
    publish(storage, "strict", line_model(slope=1))
    with grpc.insecure_channel(inference.target) as channel:
        stub = prediction_pb2_grpc.PredictionServiceStub(channel)
        tensor = common_pb2.Tensor(datatype="FP32", shape=[2, 1], content=bytes(7))
        request = prediction_pb2.PredictRequest(model=MODEL.format("strict"), inputs={"x": tensor})
        with pytest.raises(grpc.RpcError) as caught:
            stub.Predict(request, timeout=10)
        # The model comes first: values that nobody would take are not read.
        request.model = MODEL.format("nothing")
        with pytest.raises(grpc.RpcError) as unknown:
            stub.Predict(request, timeout=10)
    assert isinstance(from_rpc_error(unknown.value), NotFound)
    error = from_rpc_error(caught.value)
    assert isinstance(error, InvalidArgument)
    assert error.violations[0].field == "inputs.x"
    with pytest.raises(InvalidArgument) as named:
        predict(inference, "projects/default/datasets/strict")
    assert named.value.violations[0].field == "model"


def test_a_model_is_there_for_its_owner_and_operators_only(storage: StorageSite, inference: Server) -> None:
    publish(storage, "private", line_model(slope=1))
    mallory = as_user(storage, "mallory")
    assert predict(inference, "private", metadata=as_user(storage, OWNER)) == ([1], 1)
    assert predict(inference, "private", metadata=as_user(storage, "olga", Role.OPERATOR)) == ([1], 1)
    with pytest.raises(NotFound) as hidden:
        predict(inference, "private", metadata=mallory)
    with pytest.raises(NotFound) as missing:
        predict(inference, "nothing", metadata=mallory)
    assert hidden.value.message.replace("private", "nothing") == missing.value.message


def test_loading_and_unloading_on_request_are_in_the_audit_log(
    storage: StorageSite, inference: Server
) -> None:
    publish(storage, "audited", line_model(slope=1))
    owner, name = dict(as_user(storage, OWNER)), MODEL.format("audited")
    with triton.InferenceServerClient(inference.target) as client:
        client.unload_model("audited", headers=owner)
        client.load_model("audited", headers=owner)
    with grpc.insecure_channel(storage.target) as channel:
        listed = audit_pb2_grpc.AuditServiceStub(channel).ListAuditEvents(
            audit_pb2.ListAuditEventsRequest(filter=f'resource = "{name}" AND service = "inference"'),
            timeout=10,
            metadata=as_user(storage, "olga", Role.OPERATOR),
        )
    done = [(event.subject, event.method.rpartition("/")[2], event.outcome) for event in listed.events]
    assert done == [(OWNER, "RepositoryModelLoad", "OK"), (OWNER, "RepositoryModelUnload", "OK")]
    assert all(len(event.trace_id) == 32 for event in listed.events)


def test_with_tokens_required_nobody_gets_in_without_one(
    storage: StorageSite, start_inference: StartInference
) -> None:
    publish(storage, "guarded", line_model(slope=1))
    server = start_inference(AUTH__MODE="token")
    assert refused(server, "guarded") is Unauthenticated
    assert predict(server, "guarded", metadata=as_user(storage, OWNER)) == ([1], 1)
