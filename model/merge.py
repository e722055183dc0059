"""`python -m model.merge` is `grainmill merge`."""

from __future__ import annotations

from .commands.merge import run
from .commands.shared import run_tool

if __name__ == "__main__":
    raise SystemExit(run_tool(run, "model.merge"))
