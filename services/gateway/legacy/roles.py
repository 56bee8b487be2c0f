"""What the files of a real-data run are for, and which of them each user has: the settings.yml of the old web
app, kept in storage for every user alone.

The document there has, besides the versions by role, `settings`: "paths" (role to path, as the old app wrote
them), "files" (path to dataset version, of all that was uploaded) and "other" (what else a settings file
said).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, Literal

import grpc

from guidehall.contracts.datasets.v1 import datasets_pb2
from guidehall.core.errors import InvalidArgument
from guidehall.core.names import UPLOAD_ROLES
from services.gateway.backends import Backends
from services.gateway.messages import struct_json, to_struct

Kind = Literal["curves", "profiles", "table", "statistics", "weights"]

# Somebody else, such as the same page in another window, may write in between.
_ATTEMPTS = 5
_MAX_FILES = 500


@dataclass(frozen=True)
class Role:
    """What a file is for.

    Attributes:
        key: where settings.yml names it.
        place: the folder that the old app kept it in.
    """

    name: str
    key: tuple[str, str, str]
    place: str
    kind: Kind

    def path_of(self, filename: str) -> str:
        """Where the old app would have it."""
        return f"{self.place}/{filename}"


MODEL_ROLE, STATISTICS_ROLE = "nr_sld_model", "normalization_stats"
_NR, _CHI = "nr_predict_sld", "sld_predict_chi"
ROLES: Mapping[str, Role] = {
    role.name: role
    for role in (
        Role("nr_train", (_NR, "file", "nr_train"), "data/curves", "curves"),
        Role("sld_train", (_NR, "file", "sld_train"), "data/curves", "curves"),
        Role("experimental_nr", (_NR, "file", "experimental_nr_file"), "data/curves/expt", "curves"),
        Role(STATISTICS_ROLE, (_NR, "models", "normalization_stats"), "data", "statistics"),
        Role(MODEL_ROLE, (_NR, "models", "model"), "data/models", "weights"),
        Role(
            "sld_chi_experimental_profile",
            (_CHI, "file", "model_experimental_sld_profile"),
            "data",
            "profiles",
        ),
        Role("sld_chi_model_sld_file", (_CHI, "file", "model_sld_file"), "data", "profiles"),
        Role("sld_chi_model_chi_params_file", (_CHI, "file", "model_chi_params_file"), "data", "table"),
    )
}  # fmt: skip


@dataclass
class Files:
    """One user's files and what each is for.

    Attributes:
        paths: by role.
        files: dataset versions by path.
        models: model versions by role: what has been made of uploaded networks.
        other: what a settings file says beside paths.
    """

    paths: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    other: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, document: datasets_pb2.UploadRoles) -> Files:
        """As storage keeps them; what is none of it counts as nothing."""
        kept = struct_json(document.settings)
        other = kept.get("other")
        return cls(
            {role: path for role, path in _texts(kept.get("paths")).items() if role in ROLES},
            _texts(kept.get("files")),
            dict(document.model_versions),
            other if isinstance(other, dict) else {},
        )

    def versions(self) -> dict[str, str]:
        """The dataset version of every role that has one."""
        return {role: self.files[path] for role, path in self.paths.items() if path in self.files}

    def keep(self, role: Role, filename: str, version: str) -> str:
        """Notes a file where its role has its files; one of that name is replaced. Returns its path.

        Raises:
            InvalidArgument: there are too many.
        """
        path = role.path_of(filename)
        if path not in self.files and len(self.files) >= _MAX_FILES:
            raise InvalidArgument.field(
                "files", f"{len(self.files) + 1} files", f"at most {_MAX_FILES} of a user"
            )
        self.files[path] = version
        return path

    def assign(self, role: Role, filename: str, version: str) -> None:
        """Keeps a file and gives it to its role.

        Raises:
            InvalidArgument: there are too many.
        """
        self.paths[role.name] = self.keep(role, filename, version)
        if role.kind in ("statistics", "weights"):
            # What was made of the ones before.
            self.models.pop(MODEL_ROLE, None)

    def replace_settings(self, settings: Mapping[str, Any]) -> None:
        """Takes over a settings file whole: what it does not name has no file any more."""
        self.paths = {}
        self.models = {}
        self.other = {key: value for key, value in settings.items() if key not in (_NR, _CHI)}
        for section in (_NR, _CHI):
            if isinstance(found := settings.get(section), dict):
                self.other[section] = {
                    key: value for key, value in found.items() if key not in ("file", "models")
                }
        for role in ROLES.values():
            named = _at(settings, role.key)
            if isinstance(named, str) and (filename := base_name(named)):
                self.paths[role.name] = role.path_of(filename)
        models = _at(settings, (_NR, "models"))
        if isinstance(models, dict):
            paths = {role.key[2] for role in ROLES.values()}
            self.other[_NR]["models"] = {key: value for key, value in models.items() if key not in paths}

    def tree(self, leaf: Callable[[Role], Any]) -> dict[str, Any]:
        """Something about each role, where settings.yml has it."""
        result: dict[str, Any] = {}
        for role in ROLES.values():
            section, group, key = role.key
            result.setdefault(section, {}).setdefault(group, {})[key] = leaf(role)
        return result

    def listed(self, place: str, extensions: tuple[str, ...]) -> list[str]:
        """Names of the files in a folder, not below it."""
        found = (PurePosixPath(path) for path in self.files)
        return sorted(path.name for path in found if str(path.parent) == place and path.suffix in extensions)


def base_name(text: str) -> str:
    """The last part of a path of any system; empty when there is none that can be kept."""
    name = PurePosixPath(PureWindowsPath(text).as_posix()).name
    if re.search(r"[\x00-\x1f\x7f]", name) or name in ("", ".", "..") or len(name.encode()) > 255:
        return ""
    return name


async def read(backends: Backends, user: str) -> Files:
    """A user's files."""
    return Files.of(await _document(backends, user))


async def change(backends: Backends, user: str, apply: Callable[[Files], None]) -> Files:
    """Changes a user's files, and again where somebody was quicker.

    Raises:
        InvalidArgument: it cannot be kept.
    """
    for attempt in range(_ATTEMPTS):
        document = await _document(backends, user)
        files = Files.of(document)
        apply(files)
        kept = {"paths": files.paths, "files": files.files, "other": files.other}
        changed = datasets_pb2.UploadRoles(
            name=document.name,
            dataset_versions=files.versions(),
            model_versions=files.models,
            settings=to_struct(kept, "settings"),
            etag=document.etag,
        )
        request = datasets_pb2.UpdateUploadRolesRequest(upload_roles=changed)
        try:
            await backends.upload_roles.UpdateUploadRoles(request, timeout=backends.timeouts.call)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.ABORTED or attempt == _ATTEMPTS - 1:
                raise
        else:
            return files
    raise AssertionError("the last attempt returns or raises")


async def _document(backends: Backends, user: str) -> datasets_pb2.UploadRoles:
    request = datasets_pb2.GetUploadRolesRequest(name=UPLOAD_ROLES.format(user=user))
    return await backends.upload_roles.GetUploadRoles(request, timeout=backends.timeouts.call)


def _texts(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    return {key: text for key, text in value.items() if isinstance(text, str)}


def _at(settings: Any, key: tuple[str, ...]) -> Any:
    for part in key:
        settings = settings.get(part) if isinstance(settings, dict) else None
    return settings
