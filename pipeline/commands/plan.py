"""`grainmill plan`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from ..executors.flags import PlanFlags


@dataclass(frozen=True, kw_only=True)
class PlanCommandFlags(PlanFlags):
    """What `grainmill plan` is asked for."""

    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False


def run(flags: PlanCommandFlags) -> None:
    """Tell time, GPU-hours, storage, requests and money of a cluster run, with the assumptions made.

    Example: grainmill plan --images 11000000 --profile profile.json --nodes 8 --gpus-per-node 4
    """
    from ..console import print_json
    from ..errors import InputError
    from ..executors.estimate import Cluster, Profile, estimate
    from ..format.schema import load_json

    try:
        data = flags.profile.read_bytes()
    except OSError as error:
        raise InputError(f"--profile {flags.profile}: cannot be read ({error.strerror})") from error
    measured = Profile.from_json(load_json(data, where=str(flags.profile)), where=str(flags.profile))
    cluster = Cluster(
        nodes=flags.nodes,
        gpus_per_node=flags.gpus_per_node,
        cores_per_node=flags.cores_per_node,
        node_price_per_hour=flags.node_price_per_hour,
        storage_price_per_gb_month=flags.storage_price_per_gb_month,
        efficiency=flags.efficiency,
    )
    answer = estimate(
        images=flags.images,
        profile=measured,
        cluster=cluster,
        samples_per_shard=flags.samples_per_shard,
        with_images=not flags.no_images,
    )
    record = answer.to_json()
    if flags.simulate:
        from ..console import ProgressBar
        from ..executors.simulation import Conditions, simulate_run

        conditions = Conditions(
            node_losses_per_hour=flags.node_losses_per_hour,
            straggler_share=flags.straggler_share,
            hung_share=flags.hung_share,
            put_limit_per_s=flags.put_limit_per_s,
            get_limit_per_s=flags.get_limit_per_s,
        )
        with ProgressBar("simulating", answer.units, unit="units") as progress:
            result = simulate_run(
                answer, measured, cluster, seed=flags.seed, conditions=conditions, on_unit=progress.update
            )
        record["simulation"] = {**result.to_json(), "conditions": vars(conditions)}
    if flags.json:
        print_json(record)
        return
    cost = "no --node-price-per-hour given" if answer.node_cost is None else f"{answer.node_cost:,.0f}"
    print(f"{flags.images:,} images in {answer.units:,} units on {flags.nodes} nodes ({answer.workers:,} workers)")
    print(f"  time            {answer.hours:,.1f} h at {answer.images_per_second:,.1f} images/s")
    print(f"  limited by      {answer.bottleneck}")
    print(f"  GPU-hours       {answer.gpu_hours:,.1f}      core-hours {answer.core_hours:,.1f}")
    print(f"  storage         {answer.storage_gb:,.1f} GB, {answer.storage_cost_per_month:,.2f} a month")
    print(f"  requests        {answer.put_requests:,} puts, {answer.get_requests:,} gets: {answer.request_cost:,.2f}")
    print(f"  machines        {cost}")
    print("assuming")
    for line in answer.assumptions:
        print(f"  - {line}")
    if flags.simulate:
        print("simulated")
        for name, value in {**result.to_json(), **vars(conditions)}.items():
            print(f"  {name:<28} {value}")
