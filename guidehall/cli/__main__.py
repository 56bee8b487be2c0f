from __future__ import annotations

from guidehall.cli import main

main()
