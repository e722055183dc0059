"""Encoder features on disk, for training with a frozen encoder on images that are always seen alike.

One safetensors file for each image, named by the sha256 of the pixels that the encoder sees, in a folder for all
else that features depend on: the base's weights, its size, the image size, the precision and the kind of device. A file
says both, with the sha256 of its values, and is believed only if all of it is as expected; otherwise the features are
computed again and the file is replaced. Files come whole or not at all (a temporary name, then a rename), so any number
of processes may share a folder and die at any time. A full disk ends the writing, not the training.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.console import note
from pipeline.errors import InputError
from pipeline.format.schema import canonical_json

from ..data.augmentation import NO_AUGMENTATION
from ..network.granular import GranularSam2, ImageFeatures

if TYPE_CHECKING:
    from .config import TrainConfig

FEATURES_FORMAT: Final = "grainmill-features/1"
RESERVE_BYTES: Final = 2**30
"""Of free disk space, that the cache leaves to checkpoints and others."""
STALE_S: Final = 3600.0
"""A temporary file of this age was left by a process that died; a write takes moments."""
_METADATA: Final = "grainmill"
_TEMPORARY: Final = "tmp"

Spec = tuple[tuple[int, int, int], torch.dtype]
"""(C, H, W) and type of a level."""


@dataclass(frozen=True, kw_only=True)
class FeatureIdentity:
    """What features depend on besides the image's pixels."""

    base_sha256: str
    size: str
    image_size: int
    precision: str
    """fp32 or bf16 (autocast)."""
    device: str
    """cpu or cuda: they round differently."""

    @property
    def folder(self) -> str:
        """A name that people can read; the files repeat the whole identity."""
        return f"{self.size}-{self.image_size}-{self.precision}-{self.device}-{self.base_sha256[:16]}"


def expect_cacheable(config: TrainConfig) -> None:
    """Checks that an image's features stay what they are for a whole run.

    Raises:
        InputError: they do not, with the flags to change.
    """
    reasons = []
    if config.trunk is not None:
        reasons.append("the neck behind --trunk is trained, so features change with every step: leave the cache out")
    elif config.adapter == "full":
        reasons.append(
            f"--size {config.size} --adapter full trains the encoder, so its features change with every step: train "
            "--adapter paper or lite on --init CKPT"
        )
    if config.augmentation != NO_AUGMENTATION:
        reasons.append("augmentation shows each image differently every time: add --augmentation none")
    if config.coarse_images:
        reasons.append(f"the first {config.coarse_images} images are seen at half the size: add --coarse-images 0")
    if reasons:
        raise InputError(f"--cache-features keeps what the encoder says of an image; here {'; '.join(reasons)}")


def feature_specs(width: int, image_size: int, precision: str) -> dict[str, Spec]:
    """Shape and type of each level of one image's features.

    Args:
        width: channels of the decoder; 256, and 64 for micro.
        image_size: R, pixels a side.
        precision: fp32; bf16 gives bfloat16 but for the embedding, to which a float32 vector is added.
    """
    fine = torch.bfloat16 if precision == "bf16" else torch.float32
    quarter, eighth, sixteenth = image_size // 4, image_size // 8, image_size // 16
    return {
        "stride4": ((width // 8, quarter, quarter), fine),
        "stride8": ((width // 4, eighth, eighth), fine),
        "stride16": ((width, sixteenth, sixteenth), torch.float32),
    }


def feature_bytes(width: int, image_size: int, precision: str) -> int:
    """Bytes of one image's features, the file's header (less than 1 KiB) left out."""
    return sum(
        math.prod(shape) * dtype.itemsize for shape, dtype in feature_specs(width, image_size, precision).values()
    )


def decoder_width(model: GranularSam2) -> int:
    """Channels of the decoder, for `feature_specs`."""
    return int(model.base.sam_mask_decoder.transformer_dim)


def pixels_sha256(image: NDArray[np.uint8]) -> str:
    """Identity of what the encoder sees: shape and values of an (R, R, 3) image."""
    digest = hashlib.sha256(f"{image.shape}\0".encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


class FeatureCache:
    """Features of images, read where a true file lies and computed and written where not.

    Args:
        directory: a local folder; made if it is missing. Several processes may use it at once.
        identity: what the features depend on.
        specs: shapes and types, from `feature_specs`.

    Raises:
        InputError: a URL, a file, or a folder that cannot be made.
    """

    def __init__(self, directory: str, identity: FeatureIdentity, specs: Mapping[str, Spec]) -> None:
        self.folder = _local(directory) / identity.folder
        self.identity, self.specs = identity, dict(specs)
        self.read = self.computed = self.refused = 0
        """Images whose features were read, and computed; files that were not what they should be."""
        self.full = False
        """Nothing more is written."""
        self._temporary = self.folder / _TEMPORARY
        try:
            self._temporary.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if not self.folder.is_dir():  # one that is there may be readable only, and is still of use
                raise InputError(
                    f"--cache-features {directory}: expected a folder, or a place to make one ({error.strerror})"
                ) from error
        self._clear_away()

    @classmethod
    def open(cls, directory: str, model: GranularSam2, base_sha256: str, config: TrainConfig) -> FeatureCache:
        """The cache of a training run, whose model is on its device.

        Raises:
            InputError: as above.
        """
        identity = FeatureIdentity(
            base_sha256=base_sha256,
            size=config.size,
            image_size=config.image_size,
            precision=config.precision,
            device=next(model.parameters()).device.type,
        )
        return cls(directory, identity, feature_specs(decoder_width(model), config.image_size, config.precision))

    def features(
        self,
        images: Sequence[NDArray[np.uint8]],
        encode: Callable[[Sequence[NDArray[np.uint8]]], ImageFeatures],
        device: torch.device,
    ) -> ImageFeatures:
        """Features of B images, from disk where possible.

        Args:
            images: (R, R, 3) uint8 RGB each.
            encode: computes the features of some of them; not called if all are read.
            device: where they are wanted.

        Returns:
            B rows.
        """
        keys = [pixels_sha256(image) for image in images]
        rows = [self._read(key) for key in keys]
        missing = [number for number, row in enumerate(rows) if row is None]
        self.read += len(images) - len(missing)
        self.computed += len(missing)
        if missing:
            computed = encode([images[number] for number in missing])
            for place, number in enumerate(missing):
                values = (*computed.high_res, computed.embedding_BCHW)
                row = {name: value[place] for name, value in zip(self.specs, values, strict=True)}
                self._write(keys[number], row)
                rows[number] = row
        levels = [torch.stack([row[name].to(device) for row in rows if row is not None]) for name in self.specs]
        return ImageFeatures(embedding_BCHW=levels[-1], high_res=tuple(levels[:-1]))

    def counts(self) -> tuple[int, int, int]:
        """Images whose features were read, and computed; files that did not match. Since this was opened."""
        return self.read, self.computed, self.refused

    def stored(self) -> int:
        """Files that lie there."""
        return sum(1 for _ in self.folder.glob("??/*.safetensors"))

    # -- files -----------------------------------------------------------------------------------------------------

    def path(self, key: str) -> Path:
        """Where the features of an image lie, by `pixels_sha256`."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def _read(self, key: str) -> dict[str, Tensor] | None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path(key), framework="pt", device="cpu") as opened:
                found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (not a mapping)
                said = (opened.metadata() or {}).get(_METADATA)
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError):
            self.refused += 1
            return None
        fits = {name: (tuple(value.shape), value.dtype) for name, value in found.items()} == self.specs
        if not fits or said != self._record(key, found):
            self.refused += 1
            return None
        return found

    def _write(self, key: str, row: Mapping[str, Tensor]) -> None:
        from safetensors.torch import save

        if self.full:
            return
        tensors = {name: value.detach().cpu().contiguous() for name, value in row.items()}
        data = save(tensors, {_METADATA: self._record(key, tensors)})
        temporary = self._temporary / f"{secrets.token_hex(8)}.tmp"
        path = self.path(key)
        try:
            free = shutil.disk_usage(self.folder).free
            if free < len(data) + RESERVE_BYTES:
                raise OSError(f"{free / 2**30:.1f} GiB are free, and {RESERVE_BYTES / 2**30:.1f} are left to others")
            path.parent.mkdir(exist_ok=True)
            temporary.write_bytes(data)
            os.replace(temporary, path)
        except OSError as error:
            self.full = True
            note(
                f"--cache-features {self.folder}: could not be written ({error}); training goes on, reads what lies "
                "there and computes the rest each time"
            )
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _record(self, key: str, tensors: Mapping[str, Tensor]) -> str:
        digest = hashlib.sha256()
        for name in self.specs:
            digest.update(tensors[name].flatten().view(torch.uint8).numpy().data)
        record = {
            "format": FEATURES_FORMAT,
            **dataclasses.asdict(self.identity),
            "pixels_sha256": key,
            "values_sha256": digest.hexdigest(),
        }
        return canonical_json(record).decode()

    def _clear_away(self) -> None:
        """Removes what writers that died have left."""
        for left in self._temporary.glob("*.tmp"):
            with contextlib.suppress(OSError):  # another process may do the same
                if time.time() - left.stat().st_mtime > STALE_S:
                    left.unlink()


def space_needed(directory: str, model: GranularSam2, config: TrainConfig, images: int) -> dict[str, Any]:
    """What the features of so many images take, and what is free where they go: bytes.

    Returns:
        `features_bytes_per_image`, `features_bytes`, and `free_bytes` beyond what is left to others.

    Raises:
        InputError: a URL.
    """
    each = feature_bytes(decoder_width(model), config.image_size, config.precision)
    place = _local(directory).absolute()
    while not place.exists():
        place = place.parent
    return {
        "features_bytes_per_image": each,
        "features_bytes": max(0, images) * each,
        "free_bytes": max(0, shutil.disk_usage(place).free - RESERVE_BYTES),
    }


def _local(directory: str) -> Path:
    if "://" in directory:
        raise InputError(f"--cache-features {directory}: expected a folder on a local disk, found a URL")
    return Path(directory)


def told_features(metrics: Mapping[str, Any]) -> str:
    """For the live line and the summary: what became of the features; empty without a cache."""
    if "features_read" not in metrics:
        return ""
    refused = metrics["features_refused"]
    wrong = f", {refused} files did not match" if refused else ""
    return f", features: {metrics['features_read']} read, {metrics['features_computed']} computed{wrong}"
