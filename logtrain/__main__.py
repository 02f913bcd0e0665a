"""`logtrain COMMAND ARGUMENTS`: the commands of logtrain by one name. `python -m logtrain.COMMAND` is the same."""

import importlib
import sys
from difflib import get_close_matches
from typing import NoReturn

from logtrain.core.entry import WRONG_INPUT, run

COMMANDS = {
    "prepare": "turn raw text or chats into token shards, with a report",
    "plan": "predict whether a recipe fits a GPU, how fast it is and what it costs",
    "rehearse": "try in minutes, on two layers, all that a run would do on this machine",
    "doctor": "check the GPUs and machines of a job, and what is installed",
    "import": "turn the settings of another trainer into a recipe",
    "cpt": "continue the pretraining of a Llama on prepared text",
    "sft": "fine-tune a Llama on prepared chats, by LoRA or all parameters",
    "dpo": "train a Llama to prefer the chosen answers of prepared pairs (DPO)",
    "report": "write what there is to see of one or several runs as a page",
    "status": "tell which runs there are, how far they are and how they fare",
    "trace": "tell which documents were in a step and what each weighed; rerun without one",
    "replay": "let a model write its own old data, to mix in when it is trained on new",
    "blend": "average, interpolate or add up the weights of models, checkpoints or adapters",
    "merge": "merge an adapter (PEFT's format) into its model",
    "export": "write a checkpoint of a run as a Hugging Face folder",
    "evaluate": "let models answer a test set, score the answers and compare",
    "benchmark": "let models answer a suite of log tasks, beside published figures",
    "judge": "let a model behind a server say which of an evaluation's models answers better",
    "serve": "answer requests of OpenAI's API with a model of this machine",
    "page": "serve a page for the browser in front of any server of OpenAI's API",
    "synthesise": "make training data of raw logs by a larger model",
    "review": "accept, edit or reject rows of training data on a page in the browser",
    "hub": "push, pull and compare versions of data, models and results",
    "lineage": "print the chain from the raw files to a model",
    "chat": "talk to a model in the terminal, about a log or anything else",
}
USAGE = "usage: logtrain COMMAND [ARGUMENTS]\n\n" + "".join(f"  {name:<11}{does}\n" for name, does in COMMANDS.items())
MORE = "\nlogtrain COMMAND --help lists the arguments of a command. On several GPUs: torchrun ... -m logtrain.COMMAND"


def main() -> NoReturn:
    """Run the command that the first argument names; this is the console script `logtrain`."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("-h", "--help"):
        print(USAGE + MORE)
        sys.exit(0)
    if command not in COMMANDS:
        near = get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(COMMANDS)}"
        print(f"error: {command}: no such command; {hint}", file=sys.stderr)
        sys.exit(WRONG_INPUT)
    sys.argv[:2] = [f"logtrain {command}"]
    run(importlib.import_module(f"logtrain.{command}").main)


if __name__ == "__main__":
    main()
