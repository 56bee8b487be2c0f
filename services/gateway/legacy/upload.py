"""POST /api/upload: files of real-data runs, each for a role, passed on to storage as they arrive."""

from __future__ import annotations

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from guidehall.core.errors import AppError, InvalidArgument
from services.gateway.api.common import BackendsDep
from services.gateway.backends import Backends
from services.gateway.legacy import roles
from services.gateway.legacy.common import OldRouter, user
from services.gateway.legacy.forms import (
    CLOSE,
    Form,
    MultipartParseError,
    NotAFormError,
    Part,
    is_small,
    malformed,
    missing,
    open_form,
)
from services.gateway.legacy.imports import import_uploaded
from services.gateway.legacy.received import Intake, ReceivedFile, blaming
from services.gateway.legacy.roles import Files, Role, base_name
from services.gateway.rate_limits import admit_upload

router = OldRouter()

# Each waits for its role, which may come after all of them, and is a transfer of the caller's in storage.
_MAX_FILES = 8


@router.post("/upload")
async def upload(request: Request, backends: BackendsDep) -> Response:
    """Takes files and what each is for, matched by position."""
    try:
        form = open_form(request)
    except NotAFormError:
        return missing("files")
    try:
        caller = user()
        await admit_upload(request)
    except (AppError, HTTPException):
        # A form without files is refused as one, whoever sends it, where finding out costs little.
        if is_small(request) and await _is_without_files(form):
            return missing("files")
        raise
    intake = Intake(backends, caller.subject, request.app.state.settings.http.max_upload_bytes)
    try:
        names = await _receive(form, intake)
        if not intake.files:
            return missing("files")
        return await _keep(backends, caller.subject, intake.files, names)
    except MultipartParseError as error:
        raise malformed(error) from None
    finally:
        intake.cancel()


async def _is_without_files(form: Form) -> bool:
    try:
        return not [part async for part in form.parts() if _is_file(part)]
    except MultipartParseError:
        return False


def _is_file(part: Part) -> bool:
    return part.name == "files" and part.filename is not None


async def _receive(form: Form, intake: Intake) -> list[str]:
    """Reads the form; the roles that it names."""
    names: list[str] = []
    async for part in form.parts():
        if _is_file(part):
            given = part.filename or ""
            if len(intake.files) == _MAX_FILES:
                raise HTTPException(400, f"files: got more than {_MAX_FILES}; allowed: {_MAX_FILES}", CLOSE)
            with blaming(given):
                if not (filename := base_name(given)):
                    raise InvalidArgument.field("filename", given, "the name of a file")
                await intake.take(filename, part.body)
        elif part.name == "roles":
            names.append((await part.text()).strip())
    return names


async def _keep(backends: Backends, user: str, files: list[ReceivedFile], names: list[str]) -> Response:
    """Has storage keep the files, gives them to their roles, and says what became of each."""
    kept: list[tuple[ReceivedFile, Role | None, str]] = []
    try:
        for place, file in enumerate(files):
            with blaming(file.filename):
                role = file.role(names[place] if place < len(names) else "")
                version = "" if file.upload is None else (await file.upload.finish()).name
            kept.append((file, role, version))
    except HTTPException:
        # The ones before the bad file stay, for nothing yet.
        await _change(backends, user, kept, assign=False)
        raise
    changed = await _change(backends, user, kept, assign=True)
    await import_uploaded(backends, user, changed)
    answer = {
        "saved": [file.filename for file, _, _ in kept],
        "metadata": [file.told(role) for file, role, _ in kept],
        "settings_updated": True,
    }
    return JSONResponse(answer)


async def _change(
    backends: Backends, user: str, kept: list[tuple[ReceivedFile, Role | None, str]], *, assign: bool
) -> Files:
    def apply(files: Files) -> None:
        for file, role, version in kept:
            if role is not None:
                (files.assign if assign else files.keep)(role, file.stored_name, version)
            elif assign and file.settings is not None:
                files.replace_settings(file.settings)

    return await roles.change(backends, user, apply)
