"""Settings of other trainers, and what logtrain import makes of them."""

import importlib
import json
from pathlib import Path

import pytest

from logtrain.core.config import load
from logtrain.core.run_folder import flatten
from logtrain.cpt import CptConfig
from logtrain.sft import SftConfig

main = importlib.import_module("logtrain.import").main

# As the service publishes it for its continual pretraining of Llama-3.1-8B.
HOSTED = {
    "batch_size": 8,
    "checkpoint_steps": 1000,
    "checkpoint_strategy": "epoch",
    "disable_gradient_checkpointing": False,
    "distributed_backend": "deepspeed",
    "dpo_label_smoothing": 0,
    "epochs": 1,
    "eval_steps": 1000,
    "eval_strategy": "epoch",
    "flash_attention_v2": True,
    "full_determinism": False,
    "gradient_accumulation_steps": 2,
    "learning_rate": 0.00001,
    "liger_kernel": True,
    "logging_steps": 10,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "lora_rank": 16,
    "lr_scheduler_type": "cosine",
    "lr_warmup_steps": 0,
    "lr_warmup_ratio": 0.1,
    "max_grad_norm": 1,
    "max_sequence_length": 8192,
    "merge_adapter": True,
    "mixed_precision": "bf16",
    "number_of_checkpoints": 1,
    "optimizer": "adamw",
    "pref_beta": 0.1,
    "pref_ftx": 0,
    "pref_loss": "sigmoid",
    "quantization_bit": "none",
    "resume_from_checkpoint": False,
    "save_best_checkpoint": False,
    "seed": 1309,
    "simpo_gamma": 0.5,
    "target_modules": "all-linear",
    "training_type": "full",
    "unsloth_gradient_checkpointing": False,
    "weight_decay": 0.01,
    "zero_stage": 3,
}
HOSTED_SFT = HOSTED | {
    "distributed_backend": "ddp",
    "zero_stage": 1,
    "epochs": 3,
    "learning_rate": 5e-5,
    "lr_scheduler_type": "linear",
    "training_type": "lora",
    "save_best_checkpoint": True,
}
FACTORY = """
### model
model_name_or_path: meta-llama/Llama-3.1-8B-Instruct
trust_remote_code: true
stage: pt
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: q_proj,v_proj
use_rslora: true
dataset: c4_demo
cutoff_len: 4096
max_samples: 1000
neat_packing: true
output_dir: saves/llama/pretrain
logging_steps: 5
save_steps: 500
report_to: none  # choices: [none, wandb]
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
learning_rate: 1e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine_with_min_lr
lr_scheduler_kwargs: {min_lr: 1e-5}
warmup_steps: 20
bf16: true
flash_attn: fa3
val_size: 0.1
eval_strategy: steps
eval_steps: 250
resume_from_checkpoint: null
"""
AXOLOTL_SFT = """
base_model: NousResearch/Meta-Llama-3.1-8B
plugins:
  - axolotl.integrations.liger.LigerPlugin
liger_rope: true
load_in_8bit: true
datasets:
  - path: tatsu-lab/alpaca
    type: alpaca
val_set_size: 0.05
output_dir: ./outputs/lora-out
sequence_len: 4096
sample_packing: true
adapter: lora
lora_model_dir:
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true
wandb_project:
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 4
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 0.0002
bf16: auto
tf32: false
gradient_checkpointing: true
logging_steps: 1
attn_implementation: flash_attention_2
warmup_ratio: 0.1
evals_per_epoch: 4
saves_per_epoch: 1
early_stopping_patience: 3
weight_decay: 0.0
special_tokens:
   pad_token: <|end_of_text|>
"""


def imported(folder: Path, capsys, settings: dict | str, *flags: str, name: str = "mine") -> tuple[str, dict]:
    """The recipe's text, and the settings of it that a run takes, by dotted key; sft and cpt take the same."""
    file = folder / (f"{name}.yaml" if isinstance(settings, str) else f"{name}.json")
    file.write_text(settings if isinstance(settings, str) else json.dumps(settings))
    assert main([str(file), *flags]) == 0
    text = capsys.readouterr().out
    recipe = folder / "recipe.toml"
    recipe.write_text(text)
    needs = [] if '\nmodel = "' in text else ["--model", "MODEL"]
    as_cpt, as_sft = (flatten(load(cls, [str(recipe), *needs])) for cls in (CptConfig, SftConfig))
    lora = {"lora.alpha", "lora.dropout"} if not as_cpt["lora.rank"] else set()
    assert {key for key in as_cpt if as_cpt[key] != as_sft[key]} <= lora  # of no adapters, whatever their alpha
    return text, as_cpt


def refused(folder: Path, settings: dict | str, *flags: str) -> str:
    """The error."""
    file = folder / ("mine.yaml" if isinstance(settings, str) else "mine.json")
    file.write_text(settings if isinstance(settings, str) else json.dumps(settings))
    with pytest.raises(ValueError) as error:
        main([str(file), *flags])
    assert "\n" not in str(error.value)
    assert str(file) in str(error.value)
    return str(error.value)
