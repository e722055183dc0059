"""From options to scores on disk: reads the split, lets the protocol work, writes and draws."""

from __future__ import annotations

from pipeline.console import note

from .plots import MISSING, draw
from .published import published_for
from .results import OBJECTS, SCORES, ScoreOptions, limited, scores_text, told_left_out, write_scores
from .score_records import Scores


def run(options: ScoreOptions) -> tuple[Scores, str]:
    """Scores and writes.

    Returns:
        What `scores.json` holds, and the tables for people.

    Raises:
        InputError: the data or what is to be scored is not as expected.
        ConfigMismatchError: the output holds scores of other settings.
    """
    split = limited(options.benchmark.split_of(str(options.data), options.split), options.limit)
    for line in [*split.notes, *([told_left_out(split.left_out)] if split.left_out else [])]:
        note(line)
    if options.checkpoint is not None:
        from .checkpoint import load_model, score_model

        scored = score_model(split, load_model(options), options.benchmark.tasks, options, options.output)
    else:
        from .protocols.label_masks import score_labels

        scored = score_labels(split, options)
    record = write_scores(options, scored, published_for(options))
    plots = draw(scored.curves, options.output / "plots", title=f"{options.benchmark.name} {options.split}")
    written = [SCORES, OBJECTS, *(str(path.relative_to(options.output)) for path in plots)]
    text = scores_text(record, scored) + f"\n{options.output}: {', '.join(written)}"
    return record, text if plots or not scored.curves else f"{text}\n{MISSING}"
