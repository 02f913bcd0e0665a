"""The answers of a finished evaluation, to be judged."""

from pathlib import Path
from typing import Any

from logtrain.core.origin import read_sealed_in
from logtrain.core.run_folder import read_run_config
from logtrain.core.untrusted import checked
from logtrain.data.manifest import sha256
from logtrain.evaluation.answers import read_answers
from logtrain.evaluation.config import EvaluateConfig
from logtrain.evaluation.question_set import read_question_set
from logtrain.evaluation.samples import Sample, read_samples


def read_run(run: Path, limit: int) -> dict[str, list[Sample]]:
    """The samples of each model by its name, of the first `limit` questions that all have answered; 0: of all. Raises
    ValueError for a folder that is no finished evaluation, or has lost answers, for data that has changed since, and
    for a single model.
    """
    if not (run / "scores.json").exists():
        raise ValueError(f"{run}: holds no scores.json; let logtrain evaluate finish there first")
    config = read_run_config(run, EvaluateConfig)
    names = list(config.model_paths)
    if len(names) < 2:
        raise ValueError(f"{run}: has the answers of {names[0]} alone; a judge compares two models or more")
    file = run / "scores.json"
    scored = checked(f"{file}: data", read_sealed_in(file, "scores").get("data"), dict[str, Any])
    if scored.get("sha256") != sha256(Path(config.data)):
        raise ValueError(f"{config.data}: has changed since {run} was evaluated; restore it")
    question_set = read_question_set(config)
    answered = {name: read_answers(run / "answers", name) for name in names}
    unanswered = {
        number: "not answered" for number in question_set.numbers if any(number not in answered[name] for name in names)
    }
    asked = question_set.without(unanswered)
    if missing := checked(f"{file}: data.questions", scored.get("questions"), int) - len(asked.numbers):
        raise ValueError(f"{run / 'answers'}: {missing} questions have lost answers; evaluate again with --resume auto")
    return {name: read_samples(run / "answers", name, asked)[: limit or None] for name in names}
