"""Reading measured curves and whole projects from files. Needs no torch.

`read_curves` reads what instruments, reduction programs and simulations write: numpy arrays, text in columns,
ORSO text files, reduced NeXus files. `project.read_project` reads the folder of a pyreflect project. Nothing
that is read here is unpickled, and no file is opened because another one names it. What is read and how is in
docs/reference/curve-files.md.
"""

from __future__ import annotations

from guidehall.science.reflectometry.formats.common import QUnit
from guidehall.science.reflectometry.formats.read import read_curves

__all__ = ["QUnit", "read_curves"]
