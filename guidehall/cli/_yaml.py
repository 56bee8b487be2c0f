"""YAML as people write numbers in it."""

from __future__ import annotations

import re

import yaml


class Loader(yaml.SafeLoader):
    """A safe loader that reads `1e-6` as a number, which YAML 1.1 takes for text."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
