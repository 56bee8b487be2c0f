"""A platform with one thing of each kind, for requests to name."""

from __future__ import annotations

import base64
import io
from typing import Any

import httpx
import numpy as np

IDLE_POOL = "idle"
USER, PASSWORD = "ada", "a password of hers"
GROUP, ROBOT = "film", "film-robot"
# One is deleted and comes back while the requests go on, the other stays.
SPARE_MODEL, TAGGED_MODEL = "spare", "tagged"
_FILM = {
    "stack": {
        "fronting": {"name": "air", "sld": 0},
        "layers": [{"name": "film", "thickness": 200, "sld": 4, "roughness": 5}],
        "backing": {"name": "silicon", "sld": 2.07, "roughness": 3},
    }
}
_JOB: dict[str, Any] = {"pipeline": "toy.line", "params": {"steps": 5, "points": 10}}


def furnish(url: str, administrator: str) -> dict[str, Any]:
    """Makes them; gives what `hooks` reads.

    Args:
        url: of the gateway.
        administrator: a token.
    """
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {administrator}"}, timeout=60) as http:

        def post(path: str, body: Any = None, **options: Any) -> Any:
            answer = http.post(path, json={} if body is None else body, **options)
            assert answer.is_success, (path, answer.text)
            return answer.json()

        enrolled = post(f"/api/v1/pools/{IDLE_POOL}/credentials")
        credential = enrolled["credential"]["name"]
        job = _finished(http, post("/api/v1/jobs", _JOB)["name"])
        for model in (SPARE_MODEL, TAGGED_MODEL):
            trains_it = _JOB | {"params": _JOB["params"] | {"model_name": model}}
            _finished(http, post("/api/v1/jobs", trains_it)["name"])
        result = http.get(f"/api/v1/results/{job}").json()
        dataset = _last(post("/api/v1/datasets")["name"])
        http.post(
            f"/api/v1/datasets/{dataset}/versions",
            params={"filename": "points.npy"},
            content=_npy(),
            headers={"Content-Type": "application/octet-stream"},
        ).raise_for_status()
        for user, role in ((USER, "SCIENTIST"), ("grace", "ADMIN")):
            post("/api/v1/users", {"user_id": user, "roles": [role]})
            post(f"/api/v1/users/{user}:set-password", {"password": PASSWORD})
        post("/api/v1/groups", {"group_id": GROUP})
        http.put(f"/api/v1/groups/{GROUP}/members/{USER}", json={"role": "MANAGER"}).raise_for_status()
        robot = post(f"/api/v1/groups/{GROUP}/service-accounts", {"user_id": ROBOT})["name"]
        post("/api/v1/users", {"user_id": "gone"})
        erasure = post("/api/v1/users/gone:erase")["name"]
        linked = post(f"/api/v1/users/{USER}/identities", {"provider": "facility", "subject": "hers"})["name"]
        key = post(f"/api/v1/users/{USER}/keys")["api_key"]["name"]
        session = post("/auth/login", {"user": USER, "password": PASSWORD})["session"]["name"]
        invitation = post("/api/v1/invitations")["invitation"]["name"]
        worker = http.get("/api/v1/workers").json()["workers"][0]["name"]
        return {
            "url": url,
            "key": post("/api/v1/users/grace/keys")["secret"],
            "job": _JOB,
            "idle_pool": IDLE_POOL,
            "spare_model": SPARE_MODEL,
            "tagged_model": TAGGED_MODEL,
            "worker": {"pool": worker.split("/")[1], "worker": _last(worker)},
            "predict": {"model": "line", "inputs": {"x": _tensor(np.zeros((2, 1), np.float32))}},
            "analyze": {"curve": {"q": [0.01, 0.02, 0.03], "r": [1.0, 0.1, 0.01]}},
            "simulate": {"params": _FILM},
            "user": USER,
            "password": PASSWORD,
            "group": GROUP,
            "robot": ROBOT,
            "worker_token": enrolled["token"],
            "resources": [
                f"projects/default/jobs/{job}",
                f"projects/default/datasets/{dataset}/versions/1",
                f"projects/default/datasets/{dataset}",
                "projects/default/models/line/versions/1",
                "projects/default/models/line",
                result["name"],
                result["artifacts"][0]["name"],
                f"users/{USER}",
                f"groups/{GROUP}",
                f"projects/group.{GROUP}",
                f"pools/{IDLE_POOL}",
                f"pipelines/{_JOB['pipeline']}",
                *(key, session, invitation, credential, worker, robot, erasure, linked),
            ],
            "names": {
                "job": job,
                "result": job,
                "artifact": _last(result["artifacts"][0]["name"]),
                "pipeline": _JOB["pipeline"],
                "model": "line",
                "version": 1,
                "tag": "production",
                "dataset": dataset,
                "pool": IDLE_POOL,
                "credential": _last(credential),
                "user": USER,
                "key": _last(key),
                "session": _last(session),
                "invitation": _last(invitation),
                "group": GROUP,
                "erasure": _last(erasure),
                "identity": _last(linked),
            },
        }


def _npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.arange(20.0).reshape(10, 2), allow_pickle=False)
    return file.getvalue()


def _tensor(values: np.ndarray[Any, Any]) -> dict[str, Any]:
    content = base64.b64encode(values.tobytes()).decode()
    return {"datatype": "FP32", "shape": values.shape, "content": content}


def _last(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _finished(http: httpx.Client, name: str) -> str:
    """Waits for a job's result by its events, the last of which says that it is published."""
    job = _last(name)
    with http.stream("GET", f"/api/v1/jobs/{job}/events", timeout=120) as events:
        for _ in events.iter_raw():
            pass
    return job
