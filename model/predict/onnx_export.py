"""The image path as two ONNX files: an encoder, run once an image, and a decoder with the granularity as an input.

    grainmill onnx-export RUN --output onnx/        (or python -m model.onnx_export ...)

Both are compared with torch by onnxruntime before the command is done. LoRA is folded into the weights first. Points
are in pixels of the model's square input; `about.json` beside the files says how an image gets there and back.

encoder.onnx    image (1, 3, S, S) float32, RGB / 255, normalised
                -> image_embeddings, high_res_features_0 (stride 4), high_res_features_1 (stride 8)
decoder.onnx    these three, point_coords (N, K, 2) float32 x y, point_labels (N, K) int64 (1 inside, 0 outside, 2 and
                3 a box's corners, -1 padding), mask_input (N, 1, S / 4, S / 4) float32 logits, has_mask_input (N,)
                float32 0 or 1, granularity (N,) float32
                -> masks (N, S / 4, S / 4) float32 logits, iou_predictions (N,)

N and K are free. torch's exporter by tracing is used: the newer one wants a further package and takes several times as
long.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

from pipeline.errors import GrainmillError, InputError

from ..network.granular import GranularSam2, ImageFeatures
from ..network.pixels import IMAGE_MEAN, IMAGE_STD
from .coco_json import json_bytes
from .output_files import OutputFiles

ONNX_FORMAT: Final = "grainmill-onnx/1"
OPSET: Final = 17
MAX_DIFFERENCE: Final = 1e-3
"""Between onnxruntime and torch, as a share of the largest value; more is an error. Measured: some 1e-5."""

FEATURE_NAMES: Final = ("image_embeddings", "high_res_features_0", "high_res_features_1")
PROMPT_NAMES: Final = ("point_coords", "point_labels", "mask_input", "has_mask_input", "granularity")
ANSWER_NAMES: Final = ("masks", "iou_predictions")


class Encoder(nn.Module):
    """The first step: an image to its features, see the module's docstring."""

    def __init__(self, model: GranularSam2) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        features = self.model.encode(image)
        return features.embedding_BCHW, *features.high_res


class Decoder(nn.Module):
    """The second step: features and N prompts to masks."""

    def __init__(self, model: GranularSam2) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        embedding: Tensor,
        high_res_0: Tensor,
        high_res_1: Tensor,
        points: Tensor,
        labels: Tensor,
        mask_input: Tensor,
        has_mask: Tensor,
        granularity: Tensor,
    ) -> tuple[Tensor, Tensor]:
        count = points.shape[0]
        features = ImageFeatures(
            embedding_BCHW=embedding.expand(count, -1, -1, -1),
            high_res=(high_res_0.expand(count, -1, -1, -1), high_res_1.expand(count, -1, -1, -1)),
        )
        encoder = self.model.base.sam_prompt_encoder
        sparse, masked = encoder(points=(points, labels), boxes=None, masks=mask_input)
        unmasked = encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        dense = torch.where(has_mask.reshape(-1, 1, 1, 1) > 0, masked, unmasked)
        decoded = self.model.decode_prompts(features, sparse, dense, granularity, self.model.clicks((points, labels)))
        return decoded.logits_NMHW[:, 0], decoded.iou_NM[:, 0]


@torch.no_grad()
def export_onnx(model: GranularSam2, folder: Path) -> dict[str, Any]:
    """Writes `encoder.onnx`, `decoder.onnx` and `about.json`, once they are compared with torch.

    Args:
        model: on the CPU, in evaluation mode. Its LoRA is folded.
        folder: made if it is missing; older files are replaced.

    Returns:
        What `about.json` holds.

    Raises:
        InputError: the extra [onnx] is missing, or no such folder can be.
        StorageError: a full disk, missing rights.
        GrainmillError: onnxruntime and torch differ.
    """
    try:
        import onnx  # noqa: F401  (torch's exporter wants it)
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise InputError(f"ONNX export needs the extra [onnx]: pip install 'grainmill[onnx]' ({error})") from error
    for layer in model.lora_modules():
        layer.folded = layer.folded_weight()
    with OutputFiles(folder) as files:
        return _write(model, files)


def _write(model: GranularSam2, files: OutputFiles) -> dict[str, Any]:
    side = model.image_size
    encoder, decoder = Encoder(model).eval(), Decoder(model).eval()
    image = torch.zeros(1, 3, side, side)
    features = encoder(image)
    with files.writing("encoder.onnx") as path, _positions_as_constants(model):
        _export(encoder, (image,), path, ["image"], list(FEATURE_NAMES), {})
    free = {"point_coords": {0: "N", 1: "K"}, "point_labels": {0: "N", 1: "K"}}
    free |= {name: {0: "N"} for name in (*PROMPT_NAMES[2:], *ANSWER_NAMES)}
    prompts = random_prompts(side, count=2, points=3)
    names = [*FEATURE_NAMES, *PROMPT_NAMES]
    with files.writing("decoder.onnx") as path:
        _export(decoder, (*features, *prompts), path, names, list(ANSWER_NAMES), free)
    about = {
        "format": ONNX_FORMAT,
        **about_model(model),
        "opset": OPSET,
        "largest_difference": _compare(encoder, decoder, files.scratch),
    }
    files.write("about.json", json_bytes(about))
    return about


def about_model(model: GranularSam2) -> dict[str, Any]:
    """What a program that has the files alone must know of the model, and of how an image becomes its input."""
    return {
        "size": model.size,
        "adapter": model.adapter,
        "sight": asdict(model.sight),
        "trunk": model.trunk and model.trunk.name,
        "image_size": model.image_size,
        "mean": list(IMAGE_MEAN),
        "std": list(IMAGE_STD),
        "resize": "bilinear with antialiasing to image_size x image_size, aspect ratio not kept",
    }


@contextmanager
def _positions_as_constants(model: GranularSam2) -> Iterator[None]:
    """Hiera's positions, which depend on the image's size alone, as numbers instead of the operations that make them.

    Of those (a tile by traced shapes) onnxruntime warns: "Error merging shape info for output".
    """
    trunk = model.base.image_encoder.trunk
    if not hasattr(trunk, "_get_pos_embed"):  # another trunk
        yield
        return
    cells = model.image_size // trunk.patch_embed.proj.stride[0]
    positions = trunk._get_pos_embed((cells, cells))
    trunk._get_pos_embed = lambda hw: positions  # an attribute of this instance, in front of the class's method
    try:
        yield
    finally:
        del trunk._get_pos_embed


def _export(
    module: nn.Module,
    arguments: tuple[Tensor, ...],
    path: Path,
    inputs: list[str],
    outputs: list[str],
    free: dict[str, dict[int, str]],
) -> None:
    with warnings.catch_warnings():
        # The tracing exporter is called old, and tells of every Python number that it holds for constant: image sizes.
        for kind in (DeprecationWarning, UserWarning, FutureWarning, TracerWarning):
            warnings.simplefilter("ignore", kind)
        torch.onnx.export(
            module,
            arguments,
            str(path),
            input_names=inputs,
            output_names=outputs,
            dynamic_axes=free,
            opset_version=OPSET,
            dynamo=False,
        )


def random_prompts(side: int, *, count: int, points: int, seed: int = 0) -> tuple[Tensor, ...]:
    """N prompts of K points, every second one with a mask; for tracing and comparing."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.rand(count, points, 2, generator=generator) * side,
        torch.randint(0, 2, (count, points), generator=generator),
        torch.randn(count, 1, side // 4, side // 4, generator=generator) * 4,
        (torch.arange(count) % 2).float(),
        torch.linspace(0.1, 1.0, count),
    )


def _compare(encoder: Encoder, decoder: Decoder, folder: Path) -> float:
    """Largest difference between onnxruntime and torch over an image and prompts of several shapes."""

    def run(name: str, inputs: tuple[str, ...]) -> Callable[..., tuple[Tensor, ...]]:
        session = session_of(folder / name)

        def answer(*values: Tensor) -> tuple[Tensor, ...]:
            given = {key: value.numpy() for key, value in zip(inputs, values, strict=True)}
            return tuple(torch.from_numpy(each) for each in session.run(None, given))

        return answer

    return largest_difference(
        encoder,
        decoder,
        run("encoder.onnx", ("image",)),
        run("decoder.onnx", (*FEATURE_NAMES, *PROMPT_NAMES)),
        by="onnxruntime",
    )


def largest_difference(
    encoder: Encoder,
    decoder: Decoder,
    their_encoder: Callable[..., tuple[Tensor, ...]],
    their_decoder: Callable[..., tuple[Tensor, ...]],
    *,
    by: str,
) -> float:
    """Between the model and what was exported of it, as a share of the largest value, over prompts of several shapes.

    Raises:
        GrainmillError: it is too large.
    """
    side = encoder.model.image_size
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    features = encoder(image)
    worst = _difference(their_encoder(image), features)
    for count, points in ((1, 1), (3, 2), (2, 4)):
        arguments = (*features, *random_prompts(side, count=count, points=points, seed=count))
        worst = max(worst, _difference(their_decoder(*arguments), decoder(*arguments)))
    if worst > MAX_DIFFERENCE:
        raise GrainmillError(
            f"the exported files: {by} differs from torch by {worst:.2g} of the largest value, expected at most "
            f"{MAX_DIFFERENCE:g}; they were not kept; other versions of torch or onnxruntime may export it right"
        )
    return worst


def session_of(path: Path) -> Any:
    """An onnxruntime session on the CPU, silent but for errors."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _difference(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    return max(
        float((one - other).abs().max()) / max(1e-6, float(other.abs().max()))
        for one, other in zip(found, expected, strict=True)
    )
