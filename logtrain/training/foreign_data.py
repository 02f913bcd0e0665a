"""What another trainer's settings say of its data, as far as logtrain prepare is to be told."""

from logtrain.core.untrusted import shown
from logtrain.training.foreign_file import Given


def prepare_flags(given: Given, stage: str) -> list[str]:
    """Flags of logtrain prepare that the file speaks of."""
    flags = ["--seq_len", str(given.integer("cutoff_len") or 8192)]
    share = given.number("val_size")
    if share is not None and 0 <= share < 1:
        flags += ["--valid_fraction", f"{share:g}"]
    else:
        given.without_effect("val_size", "logtrain prepare keeps a share: --valid_fraction")
    if stage == "sft":
        last = ["--train_on", "last"] if given.flag("mask_history") else []
        flags = ["--format", chat_format(given), *flags, *last]
    for key in ("dataset", "pretraining_dataset", "eval_dataset"):
        given.without_effect(key, f"the files of {shown(given.values.get(key))} go through logtrain prepare")
    return flags


def chat_format(given: Given) -> str:
    """The format of rows that become chats. Raises ValueError where other tokens were trained on than answers."""
    for each in given.tables("dataset"):
        roles, ends = each.get("roles_to_train") or [], each.get("train_on_eos") or "turn"
        if not isinstance(roles, list) or any(role not in ("assistant", "gpt") for role in roles) or ends != "turn":
            raise given.error("dataset", "all answers are trained on here, each with its end, and nothing else")
    types, columns = dataset_types(given), {each.get("field_messages") for each in given.tables("dataset")}
    if "alpaca" in types or "chat_template" not in types:
        return "alpaca" if "alpaca" in types else "sharegpt"
    return "sharegpt" if "conversations" in columns else "messages"


def dataset_types(given: Given) -> set[str]:
    """The forms of rows that axolotl's data sets are said to have."""
    return {str(each.get("type")) for each in given.tables("dataset")}
