"""`python -m model.onnx_export` is `grainmill onnx-export`."""

from __future__ import annotations

from .commands.onnx_export import run
from .commands.shared import run_tool

if __name__ == "__main__":
    raise SystemExit(run_tool(run, "model.onnx_export"))
