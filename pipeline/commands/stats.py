"""`grainmill stats DIR`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .flags import JsonFlag, RunArgument


@dataclass(frozen=True, kw_only=True)
class StatsFlags:
    """What `grainmill stats` is asked for."""

    directory: RunArgument
    json: JsonFlag = False


def run(flags: StatsFlags) -> None:
    """Masks per image, granularity and area histograms, depth, origins, failures, seconds per stage."""
    from ..console import ProgressBar, print_json
    from ..dataset.open import open_dataset
    from ..dataset.stats import collect

    dataset = open_dataset(flags.directory)
    with ProgressBar("stats", dataset.units_total, unit="units") as progress:
        statistics = collect(dataset, on_unit=progress.update).to_json()
    if flags.json:
        print_json(statistics)
    else:
        print(_text(statistics))


def _text(statistics: Mapping[str, Any]) -> str:
    quantiles = statistics["masks_per_image_quantiles"]
    per_image = statistics["masks_per_image"]
    spread = ", ".join(f"{name} {value}" for name, value in quantiles.items() if value is not None)
    lines = [
        f"samples          {statistics['samples']:,}",
        f"masks            {statistics['masks']:,}, of which instances {statistics['instances']:,}",
        f"masks per image  {'-' if per_image is None else f'{per_image:.1f}'}   ({spread or 'no images yet'})",
        f"failures         {statistics['failures']:,}",
        *(f"  {count:>9,}  {reason}" for reason, count in statistics["failures_by_reason"].items()),
    ]
    if not statistics["samples"]:
        return "\n".join(lines)
    lines += [
        "",
        "granularity      masks     share   published (UnSAMv2 on its own images, arXiv 2511.13714 Fig. 4)",
    ]
    grain = statistics["granularity_histogram"]
    labels = [f"{low:.1f} to {high:.1f}" for low, high in zip(grain["edges"], grain["edges"][1:], strict=False)]
    lines += _bars(labels, grain["counts"], grain["percent"], grain["published_percent"])
    area = statistics["area_histogram"]
    lines += ["", "area             masks     share   of the image"]
    labels = [f"{low:g} to {high:g}" for low, high in zip(area["edges"], area["edges"][1:], strict=False)]
    lines += _bars(labels, area["counts"], area["percent"], None)
    lines += ["", "depth            masks"]
    lines += [f"  {depth:<12}{count:>8,}" for depth, count in statistics["depth"].items()]
    lines += ["", "origin           masks"]
    lines += [f"  {origin:<12}{count:>8,}" for origin, count in statistics["origins"].items() if count]
    lines += ["", "stage            seconds   share"]
    shares = statistics["seconds_share"]
    lines += [
        f"  {stage:<12}{spent_s:>10.2f}  {100 * (shares[stage] or 0):5.1f} %"
        for stage, spent_s in statistics["seconds"].items()
    ]
    rate = statistics["images_per_second"]
    ceiling, reached = statistics["ceiling_images_per_second"], statistics["ceiling_share"]
    limit = "" if not ceiling else f", {reached:.0%} of the {ceiling:.2f} that its stages allow when it never waits"
    lines.append(f"  {'-' if rate is None else f'{rate:.2f}'} images per second of one worker{limit}")
    return "\n".join(lines)


def _bars(
    labels: Sequence[str], counts: Sequence[int], shares: Sequence[float], published: Sequence[float] | None
) -> list[str]:
    lines = []
    for index, label in enumerate(labels):
        peer = f"  {published[index]:5.1f} %" if published else ""
        bar = "█" * round(shares[index] / 2.5)
        lines.append(f"  {label:<14}{counts[index]:>6,}   {shares[index]:5.1f} %{peer}   {bar}".rstrip())
    return lines
