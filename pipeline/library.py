"""What a Python program calls: the commands `mine`, `release` and `verify` as functions, and one image in memory.

Errors are those of the command line (`errors.py`); progress goes to standard error.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .dataset.labeled_image import LabeledImage
from .dataset.open import open_dataset
from .dataset.reader import Dataset
from .dataset.verify import open_damaged, verify_run
from .dataset.verify_unit import Problem
from .errors import InputError, SampleFailureError
from .format.records import ReleaseManifest
from .mining.flags import MineFlags
from .mining.options import mine_options, resolved

if TYPE_CHECKING:
    from .labeling.miner import ImageMiner

Location = str | os.PathLike[str]
"""A local path, or a URL of an allowed scheme."""


def mine(
    inputs: Location | Sequence[Location],
    output: Location,
    *,
    recipe: str = "default",
    executor: str = "local",
    workers: int | None = None,
    **flags: Any,
) -> Dataset:
    """Mines images into committed shards, as `grainmill mine` does; the same call again resumes.

    Examples:
        >>> dataset = mine("photos/", "out/", workers=2, samples_per_shard=64)  # doctest: +SKIP

    Args:
        inputs: folders, globs, image files, tars, parquet files, runs or releases, each as a path, a URL or LABEL=PATH.
        output: the run's directory or URL.
        recipe: default, default-1000, leaves, learned or unsamv2.
        executor: local (processes on this machine), ray (also on a cluster), or inline (this process, unprotected).
        workers: None: one for each processor core, or share of a GPU.
        flags: any other flag of `grainmill mine`, with underscores: `limit=100`, `backbone="timm:..."`,
            `license=["photos=CC0-1.0"]`.

    Returns:
        The run, opened: `len`, samples one by one, totals, plan and manifest.

    Raises:
        InputError: a flag or a source that is not as expected.
        ConfigMismatchError: the output holds a run with another configuration.
        TooManyFailuresError: nothing was mined, or more failed than `max_failed_fraction` allows.
        TypeError: a flag that does not exist.
    """
    from .mining import job

    given = [inputs] if isinstance(inputs, str | os.PathLike) else inputs
    named: dict[str, Any] = {"recipe": recipe, "executor": executor, "workers": workers, **flags}
    job.mine(mine_options(MineFlags(input=[os.fspath(each) for each in given], output=os.fspath(output), **named)))
    return open_dataset(output)


def label_image(
    image: NDArray[np.uint8],
    *,
    recipe: str = "default",
    backbone: str | None = None,
    refine: str | None = None,
    granularity: str | None = None,
    boundaries: str | None = None,
    wholes: str | None = None,
    ranking: str | None = None,
    max_masks: int | None = None,
    seed: int = MineFlags.seed,
    device: str | None = None,
) -> LabeledImage:
    """The masks of one image, as `grainmill mine` finds them.

    The weights of the last settings stay loaded, so many images at the same ones cost what mining them costs.

    Examples:
        >>> found = label_image(rgb)  # doctest: +SKIP
        >>> wholes = found.masks(found.granularity == 1.0)  # doctest: +SKIP

    Args:
        image: (H, W, 3) uint8 RGB.
        recipe: as in `mine`.
        backbone: as of `grainmill mine`; None: the recipe's own. So for the next six.
        refine: likewise.
        granularity: likewise.
        boundaries: likewise; a file of `grainmill boundaries`, a local path.
        wholes: likewise.
        ranking: likewise.
        max_masks: likewise; kept in the order of their rank.
        seed: likewise.
        device: torch's, of a backbone; None: a GPU if there is one.

    Returns:
        The image with its masks; with none where no region stands out.

    Raises:
        InputError: no RGB image, or settings that do not go together.
    """
    from .labeling.miner import ImageInput

    if not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3):
        found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(f"label_image: expected an array (H, W, 3) of uint8, RGB, found {found}")
    miner = _miner(
        device, recipe=recipe, backbone=backbone, refine=refine, granularity=granularity, boundaries=boundaries,
        wholes=wholes, ranking=ranking, max_masks=max_masks, seed=seed,
    )  # fmt: skip
    [mined] = miner.mine([ImageInput(rgb=image, source_uri="", member=None)])
    if isinstance(mined, SampleFailureError) and mined.reason != "no_masks":
        raise mined
    annotations = () if isinstance(mined, SampleFailureError) else mined.annotations
    return LabeledImage(annotations=annotations, height=image.shape[0], width=image.shape[1], pixels=image)


@functools.lru_cache(maxsize=1)
def _miner(device: str | None, **settings: Any) -> ImageMiner:
    from .labeling.miner import ImageMiner

    flags = MineFlags(input=[], output="", **settings)
    config, checkpoint = resolved(flags)
    return ImageMiner(config, device=device, checkpoint=checkpoint, boundaries=flags.boundaries)


def build_release(
    run: Location | None, output: Location, *, name: str, version: str, license: str, **flags: Any
) -> ReleaseManifest:
    """Makes a published dataset of a run, or the next version of one, as `grainmill release` does.

    Examples:
        >>> build_release("out/", "rel/", name="my-masks", version="1.0.0", license="CC-BY-4.0")  # doctest: +SKIP

    Args:
        run: what is added; None with `append=True` for a version that only leaves things out.
        output: the release's folder.
        name: of the dataset.
        version: as in 1.0.0; with `append=True` later than all that stand.
        license: of the whole, as an SPDX identifier.
        flags: any other flag of `grainmill release` that is not about sending it, with underscores: `append=True`,
            `splits="train=0.9,val=0.1"`, `workers=4`.

    Returns:
        The release's manifest.

    Raises:
        ReleaseRefusedError: a run or a licence that must not be published.
        InputError: `output` holds something else, or a flag that is not as expected.
        TypeError: a flag that does not exist.
    """
    from .release import build
    from .release.flags import ReleaseFlags
    from .release.folder import open_output
    from .release.mask_list import read_mask_list
    from .release.options import release_options
    from .release.selection import read_sample_list

    for name_of_command in ("push", "push_dry_run", "card_copy"):
        if flags.get(name_of_command):
            raise InputError(f"build_release: {name_of_command} is for `grainmill release`, which sends what was made")
    directory = None if run is None else os.fspath(run)
    given = ReleaseFlags(
        directory=directory, output=os.fspath(output), name=name, version=version, license=license, **flags
    )
    return build.build_release(
        None if directory is None else open_dataset(directory),
        open_output(given.output),
        release_options(given),
        append=given.append,
        overwrite=given.overwrite,
        exclusions=None if given.exclude is None else read_sample_list(given.exclude),
        kept=None if given.keep is None else read_sample_list(given.keep, flag="--keep"),
        masks=read_mask_list(given.mask_verdicts, kept_only=given.kept_masks_only),
        purge=given.purge,
    )


def verify(location: Location, *, deep: bool = False, workers: int = 1) -> list[Problem]:
    """Checks a run or a release, as `grainmill verify` does.

    Args:
        location: a directory or URL; also REL/versions/V.
        deep: decode every sample, mask and image too; else sizes, sha256 and counts.
        workers: processes, for a run.

    Returns:
        Every problem; empty if everything is as it was committed.

    Raises:
        InputError: neither a run nor a release lies there.
    """
    from .release.verify import release_at, verify_release

    release = release_at(os.fspath(location))
    if release is not None:
        return list(verify_release(release, deep=deep))
    run = open_damaged(os.fspath(location))
    return [run] if isinstance(run, Problem) else list(verify_run(run, deep=deep, workers=workers))
