"""Lets people accept, edit and reject rows of training data on a page in the browser.

    logtrain review FILE

Decisions are saved beside FILE at once (serving/decisions.py). --summary tells what was decided, and how far reviewers
agree; --export writes the rows that are kept. The page is in serving/: reviewing.py has its paths.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from logtrain.core.config import load, words_first
from logtrain.core.entry import run
from logtrain.core.kinds import Config

NAME = re.compile(r"[\w.@+-]{1,100}")


@dataclass(frozen=True, kw_only=True)
class ReviewConfig(Config):
    """Review rows of training data in the browser: accept, edit or reject each by a key."""

    file: str
    """File of rows (.json, .jsonl): messages, sharegpt, alpaca, nlplog or texts. Decisions go to FILE.reviews.jsonl."""
    reviewer: str = "reviewer"
    """Who decides. Nobody sees the decisions of another."""
    summary: Literal["none", "text", "json"] = "none"
    """Print what was decided instead, and how far each two reviewers agree (Cohen's kappa, with its 95% interval)."""
    export: str = ""
    """Write the rows that somebody keeps and nobody rejects, as they were edited, to this .jsonl file instead."""
    base_url: str = ""
    """A server of OpenAI's API, to talk to its model on the page's other tab. Its key is taken from OPENAI_API_KEY."""
    port: int = 8081
    """Port of 127.0.0.1 to listen at. 0: any that is free."""

    def __post_init__(self):
        super().__post_init__()
        if not NAME.fullmatch(self.reviewer):
            raise ValueError(f"reviewer = {self.reviewer!r}: expected a name of letters, digits and . _ @ + -")
        if not 0 <= self.port < 1 << 16:
            raise ValueError(f"port = {self.port} must be from 0 to 65,535")
        if self.export and not self.export.endswith(".jsonl"):
            raise ValueError(f"export = {self.export!r}: expected a name that ends in .jsonl")
        if self.export and self.summary != "none":
            raise ValueError("give either summary or export")


def main(argv: list[str]) -> int:
    """Review as the flags say, until Ctrl-C or SIGTERM; -> the exit status."""
    config = load(ReviewConfig, words_first(argv, "--file"))
    file = Path(config.file)
    if config.export or config.summary != "none":
        return tell(config, file)
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise ValueError(f"logtrain review needs {error.name}: pip install 'logtrain[serve]'") from None
    from logtrain.serving.proxy import bound_socket
    from logtrain.serving.reviewing import review_app

    settings = uvicorn.Config(
        review_app(file, config.reviewer, config.base_url), lifespan="off", ws="none", access_log=False,
        log_level="warning",
    )  # fmt: skip
    with bound_socket("127.0.0.1", config.port) as bound:
        print(f"{config.reviewer} reviews {file} at http://127.0.0.1:{bound.getsockname()[1]}/review", flush=True)
        uvicorn.Server(settings).run([bound])
    return 0


def tell(config: ReviewConfig, file: Path) -> int:
    """Print or write what was decided; -> the exit status."""
    from logtrain.core.atomic import write_file
    from logtrain.serving.decisions import Decisions
    from logtrain.serving.reviewed_file import ReviewedFile, line_of

    rows = ReviewedFile(file)
    decisions = Decisions(file, rows.hashes)
    if config.export:
        if not decisions.by:
            raise ValueError(f"{decisions.path}: no decision in it; review {file} first")
        kept = [rows.edited(row, edits) for row, edits in decisions.kept().items()]
        write_file(Path(config.export), b"".join(map(line_of, kept)))
        print("\n".join([f"{config.export}: {len(kept):,} rows of {len(rows.rows):,}", *decisions.doubts()]))
        return 0
    told = decisions.summary(len(rows.rows))
    print(json.dumps(told, indent=1) if config.summary == "json" else "\n".join(in_words(told)))
    return 0


def in_words(told: dict[str, Any]) -> list[str]:
    """A summary in lines."""
    found = [f"{told['rows']:,} rows"]
    for name, counts in told["reviewers"].items():
        found.append(f"{name}: {', '.join(f'{count:,} {verdict}' for verdict, count in counts.items())}")
    for pair in told["pairs"]:
        for what in ("verdict", "kept"):
            one = pair[what]
            kappa = "none" if one["kappa"] is None else f"{one['kappa']:.2f} ({one['low']:.2f} to {one['high']:.2f})"
            alike = "" if one["share"] is None else f", alike in {one['share']:.0%}"
            found.append(f"{' and '.join(pair['reviewers'])}, {what}: kappa {kappa} of {one['num']:,} rows{alike}")
        if pair["differ"]:
            found.append(f"  they differ in rows {', '.join(map(str, pair['differ'][:20]))}")
    return [*found, *told["doubts"]]


if __name__ == "__main__":
    run(main)
