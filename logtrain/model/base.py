"""What an adapter or a card says of the model that it is of, so that it can be found and told elsewhere.

base_model.json     beside an adapter of ours: path to the model from there, id on the hub if known, hash of the
                    weights, and the dtype in which the run has exported the merged model
"""

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from logtrain.core.checksums import FILE as CHECKSUMS
from logtrain.core.checksums import LINEAGE
from logtrain.core.untrusted import read_bytes, shown
from logtrain.model import peft
from logtrain.model.hf import write_json
from logtrain.model.hf_layout import read_json

FILE = "base_model.json"
CARD = "README.md"
SAMPLES, SAMPLE_BYTES = 64, 1 << 14  # the parts of a file of weights that are read for its hash
HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
IN_CACHE = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/")  # as the hub's own programs keep models


class Hash(Protocol):
    """A hash that is being computed."""

    def update(self, data: bytes, /) -> None:
        """Add bytes to it."""
        ...


class Base(NamedTuple):
    """A model that another was made from."""

    path: Path
    """Its folder, absolute."""
    hub_id: str
    """Its id on the hub, "" if unknown."""
    sha256: str
    """Hash of its config and of parts of its weights."""
    license: str
    """The licence that its card names, "" if none."""

    @property
    def name(self) -> str:
        """What it is called elsewhere."""
        return self.hub_id or self.path.name


def read_base(folder: Path) -> Base:
    """What is known of a model's folder."""
    path = folder.absolute()
    cached = IN_CACHE.search(f"{path.resolve()}/")
    named = read_json(folder / "config.json").get("_name_or_path")
    is_ours = any((folder / name).exists() for name in (CHECKSUMS, LINEAGE))  # config.json is its parent's
    hub_id = "/".join(cached.groups()) if cached else named if isinstance(named, str) and not is_ours else ""
    hub_id = hub_id if HUB_ID.fullmatch(hub_id) and not Path(hub_id).exists() else ""
    found = re.search(r"\A---\n(?:.*\n)*?license:\s*['\"]?([\w.-]+)", card_of(folder))
    return Base(path, hub_id, weights_sha256(folder), found[1] if found else "")


def card_of(folder: Path) -> str:
    """The beginning of a folder's model card, "" if it has none."""
    try:
        return read_bytes(folder / CARD, 1 << 20).decode(errors="replace")[:10_000]
    except ValueError:
        return ""


def write_base(folder: Path, final: Path, base: Base, dtype: str) -> None:
    """Write base_model.json into an adapter's folder, which will be at `final`."""
    relative = os.path.relpath(base.path, final.absolute())
    facts = {"path": relative, "hub_id": base.hub_id, "sha256": base.sha256, "dtype": dtype}
    write_json(folder / FILE, facts)


def read_reference(adapter: Path) -> dict[str, Any]:
    """What base_model.json in an adapter's folder says, {} if it is not there."""
    return read_json(adapter / FILE) if os.path.lexists(adapter / FILE) else {}


def base_folder(adapter: Path) -> Path:
    """Returns the folder of the model that an adapter names as its own, from where the program runs, from the adapter
    or by base_model.json. Raises ValueError if it is not here, or is another model by now.
    """
    path, reference = adapter / peft.CONFIG, read_reference(adapter)
    name = read_json(path, peft.SAVED).get("base_model_name_or_path")
    names = [one for one in (name, reference.get("path")) if isinstance(one, str) and one and "\0" not in one]
    places = [place / one for one in names for place in (Path(), adapter)]
    found = next((place for place in places if os.path.isdir(place)), None)  # False for a name that no file can have
    if found is None:
        hub_id = reference.get("hub_id")
        known = f"; it is {hub_id[:200]} on the hub" if isinstance(hub_id, str) and hub_id else ""
        raise ValueError(
            f"{path}: base_model_name_or_path = {shown(name)} is no folder here; set it to the model's folder{known}"
        )
    if os.path.lexists(found / peft.CONFIG) and not os.path.lexists(found / "config.json"):
        raise ValueError(
            f"{path}: its model {found} is an adapter too; merge that one first (logtrain merge), and set "
            f"base_model_name_or_path to the result"
        )
    if reference.get("sha256") not in (None, weights_sha256(found)):
        raise ValueError(
            f"{found}: is another model than {adapter} was trained on (its weights have another hash); set "
            f"base_model_name_or_path in {path} to that, or delete {FILE} there if the change is meant"
        )
    return found


def weights_sha256(folder: Path) -> str:
    """A hex digest by which two models are told apart without reading all of them."""
    found = hashlib.sha256(read_bytes(folder / "config.json"))
    hash_weights(found, [folder])
    return found.hexdigest()


def hash_weights(found: Hash, folders: Iterable[Path]) -> None:
    """Add SAMPLES evenly spread parts, of SAMPLE_BYTES each, of every file of weights to a hash. Training changes every
    one of these parts.
    """
    files = (file for folder in folders for file in sorted(folder.glob("*.safetensors")) if file.is_file())
    for file in files:
        size = file.stat().st_size
        found.update(f"{file.name} {size}\n".encode())
        with open(file, "rb") as stream:
            for i in range(SAMPLES):
                stream.seek(max(0, size - SAMPLE_BYTES) * i // (SAMPLES - 1))
                found.update(stream.read(SAMPLE_BYTES))
