"""What the server knows of model versions, and which one answers. No I/O."""

from __future__ import annotations

import enum
import hashlib
import re
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from guidehall.core import names
from guidehall.core.errors import InvalidArgument
from guidehall.science.pipeline import Manifest
from services.inference.execution import Served

_MODEL_ID = re.compile(r"[A-Za-z0-9_~@+-][A-Za-z0-9._~@+-]{0,127}")


@dataclass(frozen=True, order=True)
class ModelKey:
    """A model of a project."""

    project: str
    model: str

    def __str__(self) -> str:
        return names.MODEL.format(project=self.project, model=self.model)


@dataclass(frozen=True)
class Reference:
    """What a caller asked for.

    Attributes:
        version: its number, or a tag that points to it; None for the newest that is ready.
    """

    key: ModelKey
    version: int | str | None = None

    def __str__(self) -> str:
        return str(self.key) if self.version is None else f"{self.key}/versions/{self.version}"

    @classmethod
    def of_protocol(cls, model_name: str, model_version: str) -> Reference:
        """From the two names of the Open Inference Protocol.

        Args:
            model_name: id of a model in the default project, or a model's resource name.
            model_version: a number, a tag, or empty.

        Raises:
            InvalidArgument: not such names.
        """
        ids = {"version": model_version or "latest"}
        version = names.model_version_of(ids, "model_version")
        if "/" in model_name:
            return cls(ModelKey(**names.MODEL.parse(model_name, "model_name")), version)
        if not _MODEL_ID.fullmatch(model_name):
            allowed = f"a model's id, or a name of the form {names.MODEL.template}"
            raise InvalidArgument.field("model_name", model_name, allowed)
        return cls(ModelKey(names.DEFAULT_PROJECT, model_name), version)

    @classmethod
    def of_resource(cls, name: str, field_name: str) -> Reference:
        """From the resource name of a model or of one of its versions.

        Raises:
            InvalidArgument: neither.
        """
        if "/versions/" not in name:
            return cls(ModelKey(**names.MODEL.parse(name, field_name)))
        ids = names.MODEL_VERSION.parse(name, field_name)
        return cls(ModelKey(ids["project"], ids["model"]), names.model_version_of(ids, field_name))


@dataclass(frozen=True)
class Published:
    """A model version as storage describes it.

    Attributes:
        manifest: the document as JSON; parsed only when it is needed.
        published_at: seconds since the epoch.
        tags: that point to it now.
        pinned: it is to be kept in memory.
    """

    key: ModelKey
    version: int
    owner: str
    architecture: str
    manifest: bytes
    manifest_sha256: str
    weights_sha256: str
    weights_bytes: int
    published_at: float
    readers: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    pinned: bool = False

    @property
    def project(self) -> str:
        """Id of its project."""
        return self.key.project

    @property
    def name(self) -> str:
        """Resource name."""
        return f"{self.key}/versions/{self.version}"

    @property
    def digest(self) -> str:
        """SHA-256 over the digests of manifest and weights: names what computed an answer."""
        return hashlib.sha256(f"{self.manifest_sha256}{self.weights_sha256}".encode()).hexdigest()

    def read_manifest(self) -> Manifest:
        """The manifest.

        Raises:
            InvalidModel: of a format unknown here.
        """
        return Manifest.from_json(self.manifest)


class State(enum.Enum):
    """States of the Open Inference Protocol's model repository; nothing here is ever UNKNOWN."""

    READY = "READY"
    UNAVAILABLE = "UNAVAILABLE"
    LOADING = "LOADING"
    UNLOADING = "UNLOADING"


@dataclass(frozen=True)
class Failure:
    """Why a version cannot be loaded.

    Attributes:
        reason: for people; holds no path and no traceback.
        retry_at: monotonic seconds after which it may be tried again; None when trying again is of no use.
    """

    reason: str
    retry_at: float | None


@dataclass(eq=False)
class Entry:
    """A version and what has become of it in this process.

    Attributes:
        proved: it was loaded once and gave its own example's answer.
        served: the loaded model, while it is in memory.
        held_back: unloaded on request; takes no work until it is loaded on request.
        leaving: the model that was unloaded, while calls that run still hold it.
    """

    published: Published
    proved: bool = False
    loading: bool = False
    held_back: bool = False
    served: Served | None = None
    failure: Failure | None = None
    leaving: weakref.ref[Served] | None = None

    def unload(self) -> None:
        """Lets go of the model; running calls keep it until they end."""
        if self.served is not None:
            self.leaving = weakref.ref(self.served)
            self.served = None

    @property
    def state(self) -> State:
        """What to tell callers."""
        if self.loading:
            return State.LOADING
        if self.held_back:
            leaving = None if self.leaving is None else self.leaving()
            return State.UNLOADING if leaving is not None and leaving.busy else State.UNAVAILABLE
        return State.READY if self.proved and self.failure is None else State.UNAVAILABLE

    @property
    def reason(self) -> str:
        """Why it is not ready; empty when it is."""
        if self.held_back:
            return "unloaded on request"
        if self.failure is not None:
            return self.failure.reason
        return "" if self.proved or self.loading else "loaded when first used"

    def usable(self, now: float) -> bool:
        """Whether it may be tried at `now` (monotonic seconds)."""
        if self.held_back:
            return False
        return self.failure is None or (self.failure.retry_at is not None and self.failure.retry_at <= now)


@dataclass
class Catalogue:
    """All versions known here, by model; newest first within one."""

    _models: dict[ModelKey, dict[int, Entry]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Entry]:
        return (entry for key in sorted(self._models) for entry in self.versions(key))

    def versions(self, key: ModelKey) -> list[Entry]:
        """Versions of a model, newest first; empty when it is not known."""
        known: Mapping[int, Entry] = self._models.get(key, {})
        return [known[version] for version in sorted(known, reverse=True)]

    def find(self, reference: Reference) -> list[Entry]:
        """The versions that may answer, the best first; empty when there is none."""
        if reference.version is None:
            return self.versions(reference.key)
        if isinstance(reference.version, str):
            return [e for e in self.versions(reference.key) if reference.version in e.published.tags][:1]
        entry = self._models.get(reference.key, {}).get(reference.version)
        return [] if entry is None else [entry]

    def add(self, published: Published) -> Entry:
        """The entry of this version; a new one, or the one it had with what storage says now."""
        versions = self._models.setdefault(published.key, {})
        entry = versions.get(published.version)
        if entry is None or entry.published.digest != published.digest:
            # Unloading holds for the model: a version that is published later does not bring it back.
            held_back = bool(versions) and all(other.held_back for other in versions.values())
            entry = versions[published.version] = Entry(published, held_back=held_back)
        else:
            entry.published = published
        return entry

    def drop(self, entries: Iterable[Entry]) -> None:
        """Forgets these versions."""
        for entry in entries:
            key, version = entry.published.key, entry.published.version
            versions = self._models.get(key, {})
            if versions.get(version) is entry:
                del versions[version]
                if not versions:
                    del self._models[key]
