"""Stage 1 with a backbone: an image -> features of a frozen network of timm, on one grid or on several.

A plain transformer (`Backbone`) gives one grid of patch features. What they are depends on the family, as their users
found best:

    DINO (ViT-B/8, S/16, …)    keys of the last block: what MaskCut cuts (arXiv 2301.11320, section 3)
    DINOv2, DINOv3             final normalised tokens: what UnSAMv2 merges (arXiv 2511.13714, section 3.3)

A convolutional or hierarchical network (`Pyramid`: EfficientNet, ConvNeXt, …) gives maps at several strides.

For merge trees of superpixels either sees the whole image, enlarged and in its own proportions (`maps`), by itself;
for normalised cuts and crops a transformer sees squares in batches (`Backbone.__call__`). Weights come from a file, see
`timm_weights`.

Batches have a fixed shape: the last one of a call is filled up, so that an image's features do not depend on how many
others came with it. Grey pixels fill it; their features are thrown away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from ...environment.timm_weights import (
    is_plain_transformer,
    last_of_strides,
    load_pyramid,
    load_weights,
    make_pyramid,
    timm_package,
)
from ...errors import InputError
from ..atoms import Atoms
from ..config import FeaturesConfig, LayerName, MapScaling
from ..regions import FeatureMaps, Rgb

GPU_BATCH: Final = 16
"""Images of one pass on a GPU."""
FINEST_STRIDE: Final = 4
"""Of a pyramid's maps that are kept: finer ones know little and cost the most."""


class _FrozenNetwork:
    """What both kinds have: a device, a precision, the normalisation that the weights want.

    Args:
        name: of timm's model.
        device: of torch; None takes a GPU if there is one.
        batch_size: images of one pass; None is 16 on a GPU and 1 without, where more gain nothing.
    """

    stride_px: int
    """Sides of an input are multiples of it."""

    def __init__(self, name: str, *, device: str | None, batch_size: int | None) -> None:
        import torch

        self.name = name
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.batch_size = batch_size or (GPU_BATCH if self.device.type == "cuda" else 1)
        self.precision = torch.float32 if self.device.type == "cpu" else half_precision(name)

    def _install(self, model: Any) -> Any:
        """The model, ready to answer."""
        settings = timm_package().data.resolve_model_data_config(model)
        self._mean = np.array(settings["mean"], dtype=np.float32)
        self._std = np.array(settings["std"], dtype=np.float32)
        return model.eval().requires_grad_(False).to(self.device)

    def normalised(self, images: Sequence[NDArray[np.uint8]], size: int) -> Any:
        """(size, 3, H, W) float32 on the device, as the model expects it: RGB, its own mean and deviation.

        Filled up with zeros. Bytes travel, a quarter of what floats would be, and the device does the arithmetic: on a
        GPU the backbone took a sixteenth of the time that NumPy took for it (ViT-B/16, 768 px, one H200).
        """
        import torch

        mean, std = (torch.from_numpy(each).to(self.device) for each in (self._mean, self._std))
        pixels = (torch.from_numpy(np.stack(images)).to(self.device).float() / 255.0 - mean) / std
        batch = torch.zeros((size, 3, *pixels.shape[1:3]), device=self.device)
        batch[: len(images)] = pixels.permute(0, 3, 1, 2)
        return batch

    def enlarged(self, rgb: Rgb, config: FeaturesConfig) -> Rgb:
        """An image as `maps` shows it to the network: enlarged (cubic), each side the nearest multiple of a stride."""
        height, width = rgb.shape[:2]
        scale = min(config.enlargement, config.max_input_side_px / max(height, width))
        rows, columns = (nearest_multiple(side * scale, self.stride_px) for side in (height, width))
        method = cv2.INTER_CUBIC if rows * columns >= height * width else cv2.INTER_AREA
        return cv2.resize(rgb, (columns, rows), interpolation=method).astype(np.uint8, copy=False)

    def _expect_finite(self, finite: bool) -> None:
        if not finite:
            raise InputError(f"the backbone gives features that are not finite in {self.precision}; check its weights")


class Backbone(_FrozenNetwork):
    """A frozen transformer that turns images into patch features.

    Example:
        >>> backbone = Backbone("vit_small_patch16_224.dino", Path("dino_deitsmall16_pretrain.pth"))  # doctest: +SKIP
        >>> backbone([squashed(rgb, 480, 480)])[0].shape  # doctest: +SKIP
        (30, 30, 384)

    Args:
        name: of timm's model, with its tag: the tag says which normalisation the weights were trained with.
        checkpoint: its weights.
        device: of torch; None takes a GPU if there is one.
        batch_size: images of one pass; None is 16 on a GPU and 1 without, where more gain nothing.
        layer: `key`, `final`, or `auto` as in the table above.
        architecture: arguments for timm beside the name, for models that timm does not list.
    """

    def __init__(
        self,
        name: str,
        checkpoint: Path,
        *,
        device: str | None = None,
        batch_size: int | None = None,
        layer: LayerName = "auto",
        architecture: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(name, device=device, batch_size=batch_size)
        model = timm_package().create_model(
            name, pretrained=False, num_classes=0, dynamic_img_size=True, **dict(architecture or {})
        )
        load_weights(model, checkpoint, name=name)
        self._model = self._install(model)
        self.patch_px = self.stride_px = int(model.patch_embed.patch_size[0])
        self.depth = int(model.embed_dim)
        self.layer: LayerName = default_layer(name) if layer == "auto" else layer
        self._prefix_tokens = int(model.num_prefix_tokens)
        self._keys: list[Any] = []
        if self.layer == "key":
            projection = getattr(model.blocks[-1].attn, "qkv", None)
            if projection is None:
                raise InputError(f"--backbone timm:{name}: its last block has no joint q, k, v projection to read keys")
            # One hook for the model's life: the reference registers another one at every pass.
            projection.register_forward_hook(lambda module, inputs, output: self._keys.append(output))

    def __call__(self, images: Sequence[NDArray[np.uint8]], *, fixed_batch: bool = True) -> list[NDArray[np.float32]]:
        """Patch features of some images of one size.

        Args:
            images: each (H, W, 3) uint8, RGB, H and W multiples of `patch_px`.
            fixed_batch: every pass has `batch_size` images, whatever came along. False for images that belong
                together anyway (crops of one image): the last pass is filled up to a power of two only.

        Returns:
            For each (H / patch_px, W / patch_px, depth) float32, rows from the top.
        """
        found: list[NDArray[np.float32]] = []
        for start in range(0, len(images), self.batch_size):
            some = images[start : start + self.batch_size]
            size = self.batch_size if fixed_batch else min(1 << (len(some) - 1).bit_length(), self.batch_size)
            found += self._pass(some, size)
        return found

    def maps(self, rgb: Rgb, config: FeaturesConfig) -> FeatureMaps:
        """The grid of tokens of one whole image (h, w, 3), enlarged as `config` says."""
        [grid] = self([self.enlarged(rgb, config)], fixed_batch=False)
        return FeatureMaps((grid,), (self.patch_px,))

    def _pass(self, images: Sequence[NDArray[np.uint8]], size: int) -> list[NDArray[np.float32]]:
        import torch

        rows, columns = (side // self.patch_px for side in images[0].shape[:2])
        half = self.precision != torch.float32
        with torch.inference_mode(), torch.autocast(self.device.type, dtype=self.precision, enabled=half):
            tokens = self._model.forward_features(self.normalised(images, size))
            if self.layer == "key":
                if not self._keys:
                    raise InputError("the backbone's last block does not compute keys as one projection; use `final`")
                tokens = self._keys.pop()[..., self.depth : 2 * self.depth]
            patches = tokens[: len(images), self._prefix_tokens :].float()
            finite = bool(patches.isfinite().all())
        self._expect_finite(finite)
        return list(patches.cpu().numpy().reshape(len(images), rows, columns, self.depth))


class Pyramid(_FrozenNetwork):
    """A frozen convolutional or hierarchical network that turns an image into maps at several strides.

    Example:
        >>> pyramid = Pyramid("tf_efficientnet_lite0", Path("efficientnet-lite0.pth"))  # doctest: +SKIP
        >>> [each.shape for each in pyramid.maps(rgb, FeaturesConfig()).grids]  # doctest: +SKIP
        [(160, 240, 24), (80, 120, 40), (40, 60, 112), (20, 30, 320)]

    Args:
        name: of timm's model.
        checkpoint: its weights.
        device: of torch; None takes a GPU if there is one.
        batch_size: images that a worker mines at once; each goes through the network by itself all the same.

    Raises:
        InputError: timm makes no pyramid of it, or the weights are of another network.
    """

    def __init__(
        self, name: str, checkpoint: Path, *, device: str | None = None, batch_size: int | None = None
    ) -> None:
        import torch

        super().__init__(name, device=device, batch_size=batch_size)
        arguments = _any_size(name)
        model = make_pyramid(name, flag="--backbone", arguments=arguments)
        load_pyramid(model, checkpoint, name=name, arguments=arguments)
        strides = [int(each) for each in model.feature_info.reduction()]
        self.strides = tuple(sorted({each for each in strides if each >= FINEST_STRIDE}))
        """Of the maps, finest first."""
        self._places = last_of_strides(strides, self.strides)
        self._rows_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        self.stride_px = max(strides)
        self._model = self._install(model).to(memory_format=torch.channels_last)

    def maps(self, rgb: Rgb, config: FeaturesConfig) -> FeatureMaps:
        """All maps of one whole image (h, w, 3), enlarged as `config` says.

        Raises:
            InputError: a network with windows of a fixed size, which takes no image of this one.
        """
        import torch

        image = self.enlarged(rgb, config)
        half = self.precision != torch.float32
        with torch.inference_mode(), torch.autocast(self.device.type, dtype=self.precision, enabled=half):
            pixels = self.normalised([image], 1).contiguous(memory_format=torch.channels_last)
            try:
                found = self._model(pixels)
            except (AssertionError, RuntimeError, ValueError) as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                raise InputError(
                    f"--backbone timm:{self.name}: it does not take images of {image.shape[0]} x {image.shape[1]} px "
                    f"({' '.join(str(error).split())[:200]}); expected a network for any size, such as ConvNeXt"
                ) from error
            chosen = [
                found[place][0] if self._rows_last else found[place][0].permute(1, 2, 0) for place in self._places
            ]
            finite = all(bool(each.isfinite().all()) for each in chosen)
        self._expect_finite(finite)
        return FeatureMaps(tuple(each.float().cpu().contiguous().numpy() for each in chosen), self.strides)


def load_network(
    name: str,
    checkpoint: Path,
    *,
    device: str | None = None,
    batch_size: int | None = None,
    layer: LayerName = "auto",
) -> Backbone | Pyramid:
    """A network of timm by its kind.

    Args:
        name: of timm's model.
        checkpoint: its weights.
        device: as of `Backbone`, like the rest.
        batch_size: likewise.
        layer: of a transformer.

    Raises:
        InputError: weights of another network, or timm makes no pyramid of it.
    """
    import torch

    with torch.device("meta"):
        plain = is_plain_transformer(timm_package().create_model(name, pretrained=False, num_classes=0))
    if plain:
        return Backbone(name, checkpoint, device=device, batch_size=batch_size, layer=layer)
    return Pyramid(name, checkpoint, device=device, batch_size=batch_size)


def _any_size(name: str) -> dict[str, Any]:
    """For timm: networks with windows are built for one size unless told otherwise."""
    settings = timm_package().models.get_pretrained_cfg(name)
    return {"strict_img_size": False} if name.startswith("swin") and settings is not None else {}


def default_layer(name: str) -> LayerName:
    """`key` for DINO, `final` for its successors."""
    return "key" if name.partition(".")[2] == "dino" else "final"


def half_precision(name: str) -> Any:
    """On a GPU: float16, or bfloat16 for DINOv3, whose tokens outgrow float16."""
    import torch

    return torch.bfloat16 if "dinov3" in name else torch.float16


def squashed(rgb: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resized to exactly (height, width), area-averaged where it shrinks and Lanczos where it grows."""
    shrinks = height * width < rgb.shape[0] * rgb.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LANCZOS4
    return cv2.resize(rgb, (width, height), interpolation=method).astype(np.uint8, copy=False)


def nearest_multiple(side_px: float, patch_px: int) -> int:
    """The side's nearest multiple of a patch, at least one patch."""
    return max(round(side_px / patch_px), 1) * patch_px


def superpixel_features(maps: FeatureMaps, superpixels: Atoms, config: FeaturesConfig) -> NDArray[np.float64]:
    """The chosen maps of an image, scaled as `config` says and summed over each superpixel: (L, D) float64.

    Raises:
        InputError: a pyramid without a map at the strides that `config` wants.
    """
    chosen = list(maps.grids)
    if len(chosen) > 1:
        if absent := [each for each in config.map_strides if each not in maps.strides]:
            have, want = (", ".join(map(str, each)) for each in (maps.strides, absent))
            raise InputError(
                f"--backbone {config.backbone}: superpixels take their features from maps at stride {want}, found maps "
                f"at {have}; expected a network that has them, such as ConvNeXt or EfficientNet"
            )
        chosen = [maps.grids[maps.strides.index(each)] for each in config.map_strides]
    return np.concatenate(
        [pooled_on_superpixels(scaled_map(each, config.map_scaling), superpixels) for each in chosen], axis=1
    )


def scaled_map(grid: NDArray[np.float32], scaling: MapScaling) -> NDArray[np.float32]:
    """`centred`: (h, w, d) minus its mean over the grid, divided by the root mean square of its vectors' lengths.

    A map that is the same everywhere becomes zeros, which are at equal distance from everything.
    """
    if scaling == "none":
        return grid
    wide = grid.astype(np.float64)
    wide -= wide.mean(axis=(0, 1))
    length = float(np.sqrt(np.square(wide).sum(axis=2).mean()))
    return (wide / length if length > 1e-6 else np.zeros_like(wide)).astype(np.float32)


def pooled_on_superpixels(features: NDArray[np.float32], superpixels: Atoms) -> NDArray[np.float64]:
    """Patch features summed over each superpixel, bilinear between patch centres: (L, d) float64.

    Args:
        features: (h, w, d), of the whole image.
        superpixels: the over-segmentation, at any size.
    """
    from scipy.sparse import coo_array

    rows, columns, depth = features.shape
    height, width = superpixels.labels.shape
    shares = []
    for y, y_share in _between(height, rows):
        for x, x_share in _between(width, columns):
            patch = y[:, None] * columns + x[None, :]
            shares.append((y_share[:, None] * x_share[None, :], patch))
    weight = np.concatenate([share.ravel() for share, _ in shares])
    patches = np.concatenate([patch.ravel() for _, patch in shares])
    labels = np.tile(superpixels.labels.ravel(), len(shares))
    pooling = coo_array((weight, (labels, patches)), shape=(len(superpixels), rows * columns)).tocsr()
    return np.asarray(pooling @ features.reshape(-1, depth).astype(np.float64))


def _between(pixels: int, patches: int) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """For each pixel of a line the patch before and after it, and their shares."""
    place = np.clip((np.arange(pixels) + 0.5) * patches / pixels - 0.5, 0, patches - 1)
    low = np.minimum(place.astype(np.int64), max(patches - 2, 0))
    share = place - low
    return [(low, 1.0 - share), (np.minimum(low + 1, patches - 1), share)]
