"""Fixtures that several test files share. Everything is made on the spot; nothing is fetched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

# Set before numpy, torch or numba start their pools: tests share two cores.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ["GRAINMILL_STUDENT"] = os.devnull  # a student that somebody keeps on this machine has no part in tests
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

# Hypothesis fails tests by the clock, the one for an example as well as the one for drawing them; machines are busy.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images with human ground truth beside the checkout; tests that need them skip where they are missing."""
    path = REPOSITORY.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("no ../shared/data beside the checkout (BSDS500 and others)")
    return path


@pytest.fixture(scope="session")
def photographs() -> Path:
    """The folder of photographs inside the scikit-image package."""
    import skimage

    return Path(skimage.__file__).parent / "data"


# ---------------------------------------------------------------------------------------------------------------------
# A small committed run of drawn images with known masks: what status, stats, verify, view and export look at.


def drawn_rectangles(width: int, height: int) -> list[tuple[tuple[int, int, int, int], int | None, float]]:
    """(x, y, w, h), parent and granularity of each mask of a drawn image.

    Three instances, two of them overlapping, the first with a part and a part of that.
    """
    half = width // 2
    return [
        ((2, 2, half - 4, height - 4), None, 1.0),
        ((4, 4, half - 12, height // 2), 0, 0.55),
        ((6, 6, 12, 10), 1, 0.1),
        ((half + 14, 4, 8, 16), None, 1.0),
        ((half + 4, 8, 20, 16), None, 1.0),
    ]


@pytest.fixture(scope="session")
def drawn_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven drawn images, some with names that try to be markup or formulas, one turned by EXIF, and one text file."""
    from PIL import Image, ImageDraw

    folder = tmp_path_factory.mktemp("drawn") / "images"
    (folder / "<").mkdir(parents=True)
    names = [
        "</script>.png",
        "=1+cmd.png",
        'a "quoted" <img src=x onerror=alert(1)>.png',
        "b.jpg",
        "c.png",
        "turned.jpg",
        "z-late.png",
    ]
    for number, name in enumerate(names):
        width, height = 90 + 2 * number, 60 + number
        image = Image.new("RGB", (width, height), (30 + 20 * number, 90, 200 - 20 * number))
        for index, ((x, y, w, h), _, _) in enumerate(drawn_rectangles(width, height)):
            ImageDraw.Draw(image).rectangle((x, y, x + w - 1, y + h - 1), fill=(60 * index, 250 - 50 * index, 80))
        if name == "turned.jpg":
            exif = Image.Exif()
            exif[0x0112] = 6
            image.rotate(90, expand=True).save(folder / name, exif=exif, quality=95)
        else:
            image.save(folder / name)
    (folder / "d-text.jpg").write_text("not an image")
    return folder


@pytest.fixture(scope="session")
def write_drawn_run(drawn_folder: Path) -> Callable[..., Path]:
    """Writes a run of `drawn_folder` with the real plan, writer, commits and manifest; only the masks are drawn."""
    import numpy as np

    from pipeline.errors import SampleFailureError
    from pipeline.format import rle, schema
    from pipeline.labeling.config import MineConfig
    from pipeline.mining import manifest
    from pipeline.shards import commits, plan
    from pipeline.shards.writer import ShardWriter
    from pipeline.sources.images import read_header
    from pipeline.sources.listing import plan_units
    from pipeline.sources.unit_reader import UnitReader
    from pipeline.sources.units import parse_inputs
    from pipeline.storage.open import open_storage

    def annotations(width: int, height: int) -> tuple[schema.Annotation, ...]:
        made: list[schema.Annotation] = []
        for (x, y, w, h), parent, granularity in drawn_rectangles(width, height):
            mask = np.zeros((height, width), dtype=bool)
            mask[y : y + h, x : x + w] = True
            number = len(made)
            made.append(
                schema.Annotation(
                    id=number,
                    segmentation=rle.encode(mask),
                    bbox=(x, y, w, h),
                    area=w * h,
                    granularity=granularity,
                    instance_id=number if parent is None else made[parent].instance_id,
                    parent_id=parent,
                    level=None if parent is None else parent,
                    origin="divide" if parent is None else "conquer",
                    score=None if parent is None else 0.25,
                )
            )
        return tuple(made)

    def write(
        directory: Path,
        *,
        units: int | None = None,
        images: bool = True,
        folder: Path = drawn_folder,
        samples_per_shard: int = 3,
        annotate: Callable[[int, int], tuple[schema.Annotation, ...]] = annotations,
        label: str = "drawn",
        license: str | None = "CC0-1.0",
    ) -> Path:
        storage = open_storage(directory, create=True)
        config = MineConfig(samples_per_shard=samples_per_shard, images=images)
        specs = parse_inputs([f"{label}={folder}"], licenses={} if license is None else {label: license})
        planned = plan_units(specs, samples_per_shard=samples_per_shard, limit=None)
        made = plan.create_plan(storage, config, specs, environment={"python": "3"}, units=planned)
        log = commits.CommitWriter(storage)
        for unit in list(made.units(storage))[:units]:
            with ShardWriter(storage, unit=unit.unit, attempt="drawn") as writer:
                with UnitReader(unit, specs) as reader:
                    for index in range(len(reader)):
                        identity = reader.identity(index)
                        try:
                            read = reader.read(index)
                            header = read_header(read.image, max_pixels=10**6)
                        except SampleFailureError as error:
                            writer.fail(
                                schema.FailureRow(
                                    key=identity.key, source_uri=identity.source_uri, member=identity.member,
                                    stage=error.stage, reason=error.reason, message=error.message,
                                )
                            )  # fmt: skip
                            continue
                        sample = schema.Sample(
                            key=read.key, source_uri=read.source_uri, member=read.member, source_sha256=read.sha256,
                            license=license, width=header.width, height=header.height,
                            exif_orientation=header.exif_orientation,
                            file_name=f"{read.key}.{header.ext}" if images else None,
                            annotations=annotate(header.width, header.height),
                        )  # fmt: skip
                        writer.add(sample, read.image if images else None)
                outputs = writer.finish()
                outputs.publish(storage)
            seconds = {"read": 0.25, "conquer": 0.5, "wall": 1.0}
            commit = commits.make_commit(
                outputs, unit=unit.unit, config_hash=made.config_hash, seconds=seconds, environment={"python": "3"},
                attempt="drawn", notes=[],
            )  # fmt: skip
            assert log.create(commit)
        if units is None:
            manifest.write_manifest(storage, made)
        return directory

    return write


@pytest.fixture(scope="session")
def drawn_run(write_drawn_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run: three units, seven samples, one failure. For reading only; copy it to change it."""
    return write_drawn_run(tmp_path_factory.mktemp("run") / "out")


@pytest.fixture(scope="session")
def drawn_release(drawn_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release of `drawn_run`. For reading only; copy it to change it."""
    from pipeline.dataset.open import open_dataset
    from pipeline.release.build import build_release
    from pipeline.release.flags import ReleaseFlags
    from pipeline.release.folder import open_output
    from pipeline.release.options import release_options

    output = tmp_path_factory.mktemp("release") / "drawn"
    flags = ReleaseFlags(
        directory=str(drawn_run), output=str(output), name="drawn", version="1.0.0", license="CC-BY-4.0",
        date="2026-11-24",
    )  # fmt: skip
    build_release(open_dataset(drawn_run), open_output(str(output)), release_options(flags))
    return output


# ---------------------------------------------------------------------------------------------------------------------
# The engine: small photographs to mine for real, and the command that does it


@pytest.fixture(scope="session")
def small_photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven small images with a few plain shapes each: quick to mine for real, different from each other."""
    import numpy as np
    from PIL import Image, ImageDraw

    folder = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(7)
    for number in range(11):
        image = Image.new("RGB", (72, 56), tuple(random.integers(0, 256, 3).tolist()))
        draw = ImageDraw.Draw(image)
        for _ in range(3):
            x, y = random.integers(0, 50, 2).tolist()
            colour = tuple(random.integers(0, 256, 3).tolist())
            draw.ellipse((x, y, x + 18, y + 14), fill=colour)
        image.save(folder / (f"p{number:02d}.png" if number % 2 else f"p{number:02d}.jpg"))
    return folder


@pytest.fixture(scope="session")
def start_mine() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `grainmill mine` in a process group of its own, with small units; keywords are environment variables.

    What a failed test leaves at work is killed at the end.
    """
    started: list[subprocess.Popen[str]] = []

    def start(source: Path, output: Path, *flags: str, **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "pipeline", "mine", "--input", f"in={source}", "--output", str(output)]
        process = subprocess.Popen(
            [*command, "--samples-per-shard", "2", "--json", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with process:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def run_mine(start_mine: Callable[..., subprocess.Popen[str]]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `grainmill mine` to its end."""

    def run(source: Path, output: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
        process = start_mine(source, output, *flags, **environment)
        out, err = process.communicate(timeout=240)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run


@pytest.fixture(scope="session")
def undisturbed_digest(small_photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of `small_photographs` mined inline, without any disturbance."""
    from pipeline.mining.flags import MineFlags
    from pipeline.mining.job import mine
    from pipeline.mining.options import mine_options

    output = tmp_path_factory.mktemp("undisturbed") / "out"
    flags = MineFlags(input=[f"in={small_photographs}"], output=str(output), executor="inline", samples_per_shard=2)
    digest = mine(mine_options(flags))["digest"]
    assert isinstance(digest, str)
    return digest
