"""What schemathesis sends, with names and bodies of things that are there; counts the answers.

The folder `GUIDEHALL_FUZZ` has `site.json`, what there is, and gets `answers.json`.
"""

from __future__ import annotations

import atexit
import itertools
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import schemathesis
from schemathesis import GenerationMode

_FOLDER = Path(os.environ["GUIDEHALL_FUZZ"])
_SITE: dict[str, Any] = json.loads((_FOLDER / "site.json").read_text())
# One request of three stays as it was drawn: with names of nothing and bodies that are wrong.
_DRAWN_EVERY = 3

_http = httpx.Client(base_url=_SITE["url"], headers={"Authorization": f"Bearer {_SITE['key']}"}, timeout=30)
_numbers = itertools.count(1)
_calls: Counter[str] = Counter()
_answers: defaultdict[str, Counter[int]] = defaultdict(Counter)


def _post(path: str, body: Any = None, **options: Any) -> Any:
    answer = _http.post(path, json={} if body is None else body, **options)
    answer.raise_for_status()
    return answer.json() if answer.content else {}


def _fresh(prefix: str) -> str:
    return f"{prefix}-{next(_numbers)}"


def _last(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _queued() -> str:
    """A job that no worker takes."""
    return _last(_post("/api/v1/jobs", _SITE["job"] | {"pool": _SITE["idle_pool"]})["name"])


def _after(method: str) -> str:
    job = _queued()
    _post(f"/api/v1/jobs/{job}:{method}")
    return job


def _dataset() -> str:
    return _last(_post("/api/v1/datasets")["name"])


def _tag() -> dict[str, str]:
    model, tag = _SITE["tagged_model"], _fresh("tag")
    _http.put(f"/api/v1/models/{model}/tags/{tag}", json={"version": 1}).raise_for_status()
    return {"model": model, "tag": tag}


def _user() -> str:
    name = _fresh("visitor")
    _post("/api/v1/users", {"user_id": name, "roles": ["SCIENTIST"]})
    return name


def _group() -> str:
    name = _fresh("group")
    _post("/api/v1/groups", {"group_id": name})
    return name


def _robot() -> str:
    name = _fresh("robot")
    _post(f"/api/v1/groups/{_SITE['group']}/service-accounts", {"user_id": name})
    return name


def _identity() -> str:
    link = {"provider": "facility", "subject": _fresh("subject")}
    return _last(_post(f"/api/v1/users/{_SITE['user']}/identities", link)["name"])


def _readers() -> dict[str, list[str]]:
    return {"add": [f"group:{_SITE['group']}"], "remove": [f"user:{_SITE['user']}"]}


def _account() -> dict[str, str]:
    """Of somebody new: others are disabled and erased while the requests go on."""
    name = _user()
    _post(f"/api/v1/users/{name}:set-password", {"password": _SITE["password"]})
    return {"user": name, "password": _SITE["password"]}


def _session() -> dict[str, str]:
    _, user, _, session = _post("/auth/login", _account())["session"]["name"].split("/")
    return {"user": user, "session": session}


def _refresh() -> dict[str, str]:
    return {"refresh_token": _post("/auth/login", _account())["refresh_token"]}


# What a path names, where the operation needs a thing of its own: it changes or ends it.
_OWN: dict[str, Callable[[], dict[str, str]]] = {
    "DELETE /api/v1/jobs/{job}": lambda: {"job": _after("cancel")},
    "POST /api/v1/jobs/{job}:retry": lambda: {"job": _after("cancel")},
    "POST /api/v1/jobs/{job}:cancel": lambda: {"job": _queued()},
    "POST /api/v1/jobs/{job}:pause": lambda: {"job": _queued()},
    "POST /api/v1/jobs/{job}:resume": lambda: {"job": _after("pause")},
    "POST /api/v1/jobs/{job}:stop": lambda: {"job": _queued()},
    "DELETE /api/v1/datasets/{dataset}": lambda: {"dataset": _dataset()},
    "DELETE /api/v1/models/{model}": lambda: {"model": _SITE["spare_model"]},
    "POST /api/v1/models/{model}:undelete": lambda: {"model": _SITE["spare_model"]},
    "DELETE /api/v1/models/{model}/tags/{tag}": _tag,
    "PATCH /api/v1/users/{user}": lambda: {"user": _user()},
    "POST /api/v1/users/{user}:set-password": lambda: {"user": _user()},
    "POST /api/v1/users/{user}/sessions:revoke": lambda: {"user": _SITE["user"]},
    "POST /api/v1/users/{user}/keys/{key}:revoke": lambda: {
        "user": _SITE["user"],
        "key": _last(_post(f"/api/v1/users/{_SITE['user']}/keys")["api_key"]["name"]),
    },
    "POST /api/v1/users/{user}/sessions/{session}:revoke": _session,
    "POST /api/v1/pools/{pool}/credentials/{credential}:revoke": lambda: {
        "pool": _SITE["idle_pool"],
        "credential": _last(_post(f"/api/v1/pools/{_SITE['idle_pool']}/credentials")["credential"]["name"]),
    },
    "POST /api/v1/workers/{pool}/{worker}:drain": lambda: _SITE["worker"],
    "POST /api/v1/workers/{pool}/{worker}:reinstate": lambda: _SITE["worker"],
    "POST /api/v1/users/{user}:erase": lambda: {"user": _user()},
    "DELETE /api/v1/users/{user}/identities/{identity}": lambda: {
        "user": _SITE["user"],
        "identity": _identity(),
    },
    "DELETE /api/v1/groups/{group}": lambda: {"group": _group()},
    "PUT /api/v1/groups/{group}/members/{user}": lambda: {"user": _user()},
    "DELETE /api/v1/groups/{group}/members/{user}": lambda: {"user": _user()},
    "DELETE /api/v1/service-accounts/{user}": lambda: {"user": _robot()},
    "POST /api/v1/service-accounts/{user}:disable": lambda: {"user": _SITE["robot"]},
    "POST /api/v1/service-accounts/{user}:enable": lambda: {"user": _SITE["robot"]},
    "DELETE /api/v1/invitations/{invitation}": lambda: {
        "invitation": _last(_post("/api/v1/invitations")["invitation"]["name"])
    },
}

# Bodies that mean something; the schema alone seldom gives one.
_BODIES: dict[str, Callable[[], Any]] = {
    "POST /api/v1/jobs": lambda: _SITE["job"] | {"pool": _SITE["idle_pool"]},
    "POST /api/v1/jobs:batch": lambda: {"requests": [_SITE["job"] | {"pool": _SITE["idle_pool"]}] * 2},
    "POST /api/v1/jobs:purge": lambda: {"filter": 'state="FAILED"'},
    "POST /api/v1/jobs/{job}:retry": lambda: {"pool": _SITE["idle_pool"]},
    "PATCH /api/v1/jobs/{job}": lambda: {"display_name": _fresh("name")},
    "POST /api/v1/datasets": lambda: {"dataset_id": _fresh("dataset")},
    "PATCH /api/v1/datasets/{dataset}": lambda: {"display_name": _fresh("name")},
    "PATCH /api/v1/models/{model}": lambda: {"display_name": _fresh("name")},
    "PUT /api/v1/models/{model}/tags/{tag}": lambda: {"version": 1},
    "POST /api/v1/jobs/{job}:share": _readers,
    "POST /api/v1/datasets/{dataset}:share": _readers,
    "POST /api/v1/models/{model}:share": _readers,
    "POST /api/v1/results/{result}:share": _readers,
    "POST /api/v1/predict": lambda: _SITE["predict"],
    "POST /api/v1/analyze": lambda: _SITE["analyze"],
    "POST /api/v1/simulate": lambda: _SITE["simulate"],
    "POST /api/v1/users": lambda: {"user_id": _fresh("user")},
    "PATCH /api/v1/users/{user}": lambda: {"display_name": _fresh("name")},
    "POST /api/v1/users/{user}:set-password": lambda: {"password": _fresh("a password long enough")},
    "POST /api/v1/users/{user}/keys": dict,
    "POST /api/v1/pools/{pool}/credentials": dict,
    "POST /api/v1/workers/{pool}/{worker}:drain": dict,
    "POST /api/v1/users/{user}:erase": dict,
    "POST /api/v1/users/{user}/identities": lambda: {"provider": "facility", "subject": _fresh("subject")},
    "POST /api/v1/groups": lambda: {"group_id": _fresh("group")},
    "PUT /api/v1/groups/{group}/members/{user}": lambda: {"role": "READER"},
    "POST /api/v1/groups/{group}/service-accounts": lambda: {"user_id": _fresh("robot")},
    "POST /api/v1/invitations": dict,
    "POST /auth/device/code": dict,
    "POST /auth/login": _account,
    "POST /auth/refresh": _refresh,
    "POST /auth/logout": _refresh,
    "POST /auth/register": lambda: {"user": _fresh("member"), "password": "a password long enough"},
}

_QUERIES = {"POST /api/v1/datasets/{dataset}/versions": {"filename": "notes.txt"}}


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case, kwargs: dict[str, Any]) -> None:
    """Puts things that exist into two of three requests."""
    label = case.operation.label
    _calls[label] += 1
    if _calls[label] % _DRAWN_EVERY == 0:
        return
    if case.path_parameters:
        own = _OWN.get(label, dict)()
        case.path_parameters = {
            name: own.get(name, _SITE["names"].get(name, value))
            for name, value in case.path_parameters.items()
        }
    if case.meta is not None and case.meta.generation.mode is GenerationMode.NEGATIVE:
        case.query = dict(_QUERIES.get(label, {}))
    if label in _BODIES:
        case.body, case.media_type = _BODIES[label](), "application/json"


@schemathesis.hook
def after_call(
    context: schemathesis.HookContext, case: schemathesis.Case, response: schemathesis.Response
) -> None:
    """Counts. Another method is another operation."""
    if response.status_code != 405:
        _answers[case.operation.label][response.status_code] += 1


@atexit.register
def _tell() -> None:
    (_FOLDER / "answers.json").write_text(json.dumps(_answers))
