"""The public interface from Python: a model's logits, losses and answers, scores, prepared data, and training by steps.

    import logtrain

    model = logtrain.load("SmolLM2-135M-Instruct")
    model.losses(["Connection refused by 10.0.0.7"])
    model.generate([[logtrain.Turn("user", "What does `Connection refused` mean?")]])

`import logtrain` offers these names, and imports this module when one is first used. docs/api.md shows each of them.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from logtrain.core.batch import IGNORE, Batch
from logtrain.core.kinds import shown
from logtrain.data.config import LoaderConfig
from logtrain.data.shards import Split
from logtrain.evaluation.scoring import score
from logtrain.generation.arguments import Prompt, check_prompt, device_of, list_of_texts, path_of
from logtrain.generation.config import SamplingConfig
from logtrain.generation.generator import Generator
from logtrain.generation.load import ModelFolder
from logtrain.generation.memory import cache_bytes
from logtrain.generation.request import Answer, Request
from logtrain.model.config import LoraConfig
from logtrain.text.chat_template import Turn
from logtrain.training.config import ParallelConfig, RunConfig, TrainerConfig
from logtrain.training.data_kinds import refuse_pairs
from logtrain.training.objective import objective_of
from logtrain.training.optim import make_optimizer
from logtrain.training.optim_config import OptimConfig
from logtrain.training.publish import ExportResult, check_output, publish_model
from logtrain.training.setup import set_up
from logtrain.training.step import TrainStep, validate

__all__ = [
    "Answer",
    "ExportResult",
    "LoaderConfig",
    "LoraConfig",
    "Model",
    "OptimConfig",
    "ParallelConfig",
    "RunConfig",
    "SamplingConfig",
    "Split",
    "StepFacts",
    "TrainerConfig",
    "Training",
    "Turn",
    "load",
    "open_data",
    "score",
]

GREEDY = SamplingConfig(temperature=0.0)
MAX_SEQUENCES = 64  # prompts that are answered at once


def load(path: str | Path, device: str | torch.device = "auto") -> "Model":
    """The model of a folder, with its weights in memory: any Llama in the Hugging Face layout, an export of ours, or an
    adapter in PEFT's format, which is merged into the model that it names.

    `device`: "auto" is the first GPU, or the CPU where there is none. Weights are bf16 on a GPU, fp32 on a CPU. Raises
    ValueError, in one line, for files that are missing or wrong, and for a model that the device has no memory for.
    """
    return Model(ModelFolder(path_of("path", path)), device)


def open_data(folder: str | Path, split: str = "train") -> Split:
    """A split ("train" or "valid") of a folder that `logtrain prepare` has written, memory-mapped, once its checksums
    have been verified. Raises ValueError for a folder that is damaged or not prepared, or has no such split.
    """
    return Split.open(path_of("folder", folder), split)


class Model:
    """A model with its weights on one device. folder: the folder it is from. llama: the module."""

    def __init__(self, folder: ModelFolder, device: str | torch.device = "auto"):
        """`path` and `device` as in `load`, which makes the folder. Raises ValueError as `load` does."""
        self.folder, self.device = folder, device_of(device)
        self.llama = folder.load(self.device, MAX_SEQUENCES, packed=False).model
        self.tokenizer = folder.tokenizer

    def __repr__(self) -> str:
        return f"Model({self.folder.summary(self.device)})"

    def encode(self, text: str) -> list[int]:
        """The token ids of a text, after the BOS token if the tokenizer has one."""
        return [*([] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]), *self.tokenizer.encode(text)]

    @torch.no_grad()
    def logits(self, texts: Sequence[str]) -> list[Tensor]:
        """The logits of each text, fp32 [T, V], on the model's device; row t predicts the token after the first t + 1
        of `encode(text)`. Raises ValueError for an empty text, and for one longer than the model's context.
        """
        texts = list_of_texts("texts", texts)
        return [self.llama(self._batch(self._ids(text, 1), labels=False)).float() for text in texts]

    @torch.no_grad()
    def losses(self, texts: Sequence[str]) -> list[float]:
        """The loss of each text in nats per token: the mean of -log p(token | tokens before it) over all tokens of
        `encode(text)` but the first. Raises ValueError for a text of fewer than two tokens, and for one longer than the
        model's context.
        """
        losses = []
        for text in list_of_texts("texts", texts):
            ids = self._ids(text, 2)
            losses.append(self.llama(self._batch(ids, labels=True)).item() / (len(ids) - 1))
        return losses

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int = 256,
        sampling: SamplingConfig = GREEDY,
        stop: Sequence[str] = (),
    ) -> list[Answer]:
        """The answer to each prompt, all of them computed together.

        A prompt is a text to go on with, or a chat to answer, whose turns go through the model's chat template.
        `max_new_tokens`: the most tokens of an answer. `sampling`: how tokens are drawn, by default greedily;
        `model.folder.sampling` is the way that the model's generation_config.json asks for. `stop`: strings that end an
        answer. Raises ValueError for a prompt longer than the model's context, for a chat that is out of order or does
        not end with a turn of the user, and for any chat where the model has no chat template.
        """
        if isinstance(prompts, str) or not isinstance(prompts, Sequence):
            raise ValueError(f"prompts = {shown(prompts)}: expected a list, each item a string or a list of turns")
        if type(max_new_tokens) is not int or not isinstance(sampling, SamplingConfig):
            raise ValueError(
                f"max_new_tokens = {shown(max_new_tokens)}, sampling = {shown(sampling)}: expected an integer and a "
                f"logtrain.SamplingConfig"
            )
        stop = tuple(list_of_texts("stop", stop))
        requests = [
            Request(
                prompt=self._prompt_ids(prompt),
                max_new_tokens=max_new_tokens,
                sampling=sampling,
                number=number,
                stop=stop,
            )
            for number, prompt in enumerate(prompts)
        ]
        has_chat = not all(isinstance(prompt, str) for prompt in prompts)
        ends = self.folder.answer_ends if has_chat else self.folder.stop_ids
        memory = cache_bytes(0, self.device)
        generator = Generator(self.llama, self.tokenizer, ends, memory=memory, max_sequences=MAX_SEQUENCES)
        return [answer for _, answer in sorted(generator.run(requests))]

    def _ids(self, text: str, least: int) -> list[int]:
        """`encode(text)`, of at least so many tokens and of no more than the model has positions for."""
        ids, most = self.encode(text), self.folder.shape.max_positions
        if len(ids) < least:
            raise ValueError(f"a text of {len(ids)} tokens has none to predict: {text!r}")
        if len(ids) > most:
            raise ValueError(f"a text of {len(ids)} tokens: the model knows {most} positions; cut {shown(text)}")
        return ids

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        check_prompt(prompt)
        if isinstance(prompt, str):
            return self.encode(prompt)
        return self.folder.template.prompt(prompt)

    def _batch(self, ids: list[int], labels: bool) -> Batch:
        """One sequence as the model takes it."""
        tokens_T = torch.tensor(ids)
        labels_T = torch.tensor([*ids[1:], IGNORE]) if labels else None
        positions_T, cu_seqlens = torch.arange(len(ids), dtype=torch.int32), torch.tensor([0, len(ids)]).int()
        return Batch(tokens_T, labels_T, positions_T, cu_seqlens, len(ids)).to(self.device)


class StepFacts(NamedTuple):
    """The figures of one step of training."""

    step: int
    """Number of the step, counted from 1."""
    loss: float
    """Mean loss of the step's targets before the update, in nats."""
    grad_norm: float
    """L2 norm of all gradients before they were clipped."""
    lr: float
    """Learning rate of the update."""
    tokens: int
    """Tokens of documents in the step; padding does not count."""
    targets: int
    """Tokens that were predicted."""
    skipped: bool
    """Whether the gradients were not finite, so that nothing was updated."""


class Training:
    """Training step by step, under the caller's control: the engine of `logtrain cpt` and `logtrain sft` without a run
    folder, so without checkpoints and records. The settings are those of a run, of which `name`, `runs` and `resume`
    have no meaning here.

    model: the module in training, with fp32 masters. data: the loaders. total_steps: the steps of the whole training,
    over which the learning rate takes its course. num_steps: the steps that have been made.
    """

    def __init__(self, config: RunConfig):
        """Open the data and build the model. Raises ValueError of one line for model, data and settings that do not go
        together.
        """
        if not isinstance(config, RunConfig):
            raise ValueError(f"config = {shown(config)}: expected a logtrain.RunConfig")
        self.run = set_up(config)
        refuse_pairs(self.run.data.sources)
        refuse_pairs({name: of.split for name, of in self.run.data.valid.items()})
        self.model, self.data, trainer = self.run.build_model(self.run.initial_weights()), self.run.data, config.trainer
        self.total_steps = trainer.total_steps(self.data.train.steps_per_epoch)
        optimizer = make_optimizer(self.model, config.optim)
        optim, objective = config.optim, objective_of(config)
        self._train = TrainStep(
            self.model, optimizer, optim, trainer.max_grad_norm, self.total_steps, self.run.world, objective
        )
        self.data.train.end = self.total_steps
        self._steps = iter(self.data.train)
        self.num_steps = 0

    def step(self) -> StepFacts:
        """Train on the rows of the next step. Raises ValueError once `total_steps` are made, for which the schedule
        ends.
        """
        number = self.num_steps
        if number == self.total_steps:
            raise ValueError(f"all {number} steps are made; raise trainer.epochs or trainer.max_steps for more")
        step = next(self._steps)
        result = self._train(step, number)
        self.num_steps += 1
        loss = self.run.world.sum(result.summed_loss).item() / max(1, step.targets)
        return StepFacts(
            step=self.num_steps,
            loss=loss,
            grad_norm=result.grad_norm.item(),
            lr=self._train.lr_at(number),
            tokens=step.tokens,
            targets=step.targets,
            skipped=bool(result.skipped),
        )

    def valid_losses(self) -> dict[str, float]:
        """The mean loss over each whole validation set, in nats per target, by the name of the set."""
        world = self.run.world
        return {name: validate(self.model, x, x.steps_per_epoch, world).loss for name, x in self.data.valid.items()}

    def export(self, folder: str | Path) -> ExportResult:
        """Write the model as a Hugging Face folder with its adapters merged, read it back and compare; -> both losses.
        An older export of that name is replaced. Raises ValueError for a folder that holds anything else, and where the
        two losses differ by more than 1%.
        """
        path = Path(os.path.abspath(path_of("folder", folder)))
        check_output(path)
        return publish_model(path, self.model, self.run)
