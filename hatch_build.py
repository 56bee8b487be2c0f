"""Compiles the reflectometry engine when the package is built and there is a C compiler.

Without one the package is pure Python and calculates with torch. Set GUIDEHALL_ENGINE=none to leave it out,
CC to choose the compiler.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_SOURCE = "guidehall/science/reflectometry/native/engine.c"
_LIBRARY = "guidehall/science/reflectometry/native/engine.so"
_NEW_LIBRARY = "guidehall/science/reflectometry/native/engine.new.so"
# No -march: the library chooses its instruction set when it is loaded.
_FLAGS = "-O3 -std=gnu11 -fno-math-errno -fno-trapping-math -fopenmp-simd -fPIC -shared -fvisibility=hidden"


class EngineHook(BuildHookInterface):  # type: ignore[type-arg]
    """The hook that hatchling calls."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Puts the library into the wheel, or for an editable installation beside its source."""
        if os.environ.get("GUIDEHALL_ENGINE") == "none":
            return
        editable = version == "editable"
        # Beside its place first: whoever has the old one loaded keeps it whole.
        library = Path(self.root, _NEW_LIBRARY) if editable else Path(tempfile.mkdtemp()) / "engine.so"
        command = [*shlex.split(os.environ.get("CC", "cc")), *_FLAGS.split()]
        try:
            subprocess.run([*command, "-o", library, Path(self.root, _SOURCE), "-lm"], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            self.app.display_warning(f"the reflectometry engine was not compiled, torch serves: {error}")
            return
        if editable:
            library.replace(Path(self.root, _LIBRARY))
        else:
            build_data["force_include"][str(library)] = _LIBRARY
        # Any Python 3 loads it, but only this platform.
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"
