"""Lets a model behind a server say which of an evaluation's models answers better.

    logtrain judge --run runs/evaluation --base_url http://127.0.0.1:8000/v1 --model judge

The folder of the evaluation then holds judge/verdicts.jsonl, every prompt with the reply and what was read from it, and
judge.json, preferences and the judge's bias with intervals. A judgement that was stopped goes on when it is started
again: no verdict is paid for twice.
"""

from pathlib import Path

from logtrain.core.config import load
from logtrain.core.entry import run
from logtrain.evaluation.config import JudgeConfig


def main(argv: list[str]) -> int:
    """Judge as the flags say; -> the exit status."""
    config = load(JudgeConfig, argv)
    # After the flags: --help and a mistyped one need neither torch nor numpy.
    from logtrain.core.run_folder import hold
    from logtrain.core.still import Still, note
    from logtrain.evaluation.judge import ask, comparisons, read_verdicts
    from logtrain.evaluation.judged_run import read_run
    from logtrain.evaluation.judgement import make_judgement, told, write_judgement
    from logtrain.observe.progress import Progress

    with Still():
        note(f"reading {config.run}")
        samples = read_run(Path(config.run), config.limit)
        asked = comparisons(config, samples)
    file = Path(config.run) / "judge" / "verdicts.jsonl"
    with hold(file.parent):
        verdicts = read_verdicts(file)
        missing = list({one.key: one for one in asked if one.key not in verdicts}.values())
        with Progress("judge", len(missing), title=config.model) as progress:
            for done, judged in enumerate(ask(config, missing, file) if missing else (), start=1):
                verdicts[judged.key] = judged
                progress.update(done, {"verdicts": done, "of": len(missing)}, bar=f"{done:,} verdicts")
    prices = config.price_per_million_in, config.price_per_million_out
    judgement = make_judgement(samples, asked, verdicts, (config.model, config.base_url), prices)
    write_judgement(Path(config.run), judgement)
    print("\n".join(told(judgement)))
    return 0


if __name__ == "__main__":
    run(main)
