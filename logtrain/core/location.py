"""Where a path leads: to this machine, or, as a URI, elsewhere. What is elsewhere is fetched once into a cache folder
(cache.py), and read from there like anything else.

    s3://BUCKET/PATH  gs://BUCKET/PATH  https://HOST/PATH  hf://ORG/NAME@REVISION  hf://datasets/ORG/NAME  hub://NAME:3
    file:///PATH      the path itself

A field of a config that is a path says so by its annotation, `Annotated[str, FOLDER]`; `located` turns its URIs into
paths, before anything else sees them. A request is tried again where a connection is cut, or a server is busy or slow.
"""

import os
import re
import time
from collections.abc import Callable
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import fsspec

from logtrain.core.printable import printable
from logtrain.core.untrusted import check_regular
from logtrain.core.web import Web

T = TypeVar("T")
SCHEMES = ("s3", "gs", "hf", "http", "https", "hub", "file")
URI = re.compile(r"(?:(?P<label>[^=]*)=)??(?P<uri>(?P<scheme>[a-z][a-z0-9+.-]*)://.*)", re.S)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w.-]+)?")
TRIES, PATIENCE = 6, 0.25  # tries of a request, and seconds before the second; each pause is twice the one before
MAX_FILES = 100_000
VERSION = ("ETag", "etag", "blob_id", "md5Hash", "generation", "LastModified", "last_modified", "mtime", "updated")
WEIGHTS = (".safetensors", ".bin", ".pth", ".pt", ".gguf", ".onnx", ".h5", ".msgpack", ".ot")
FINAL = (FileNotFoundError, PermissionError, NotImplementedError)  # which another try does not mend
ORIGINS: dict[str, str] = {}
"""The URI of a path that was made of one."""


class Place(Enum):
    """What a path of a config leads to."""

    FILE = "a file to read"
    FOLDER = "a folder to read"
    MODEL = "the folder of a model to read"
    TOKENIZER = "the folder of a model of which all but the weights is read"
    WITHOUT_WEIGHTS = "a folder of which all but the weights is read"
    OUTPUT = "a file or folder to write"
    RUNS = "the folder of all runs, of which that of `name` is written"


FILE, FOLDER, MODEL, TOKENIZER, WITHOUT_WEIGHTS, OUTPUT, RUNS = Place


class RemoteFile(NamedTuple):
    """A file elsewhere."""

    name: str
    """Its path below the folder that is fetched, or its name."""
    path: str
    """Where its file system has it."""
    size: int | None
    """Bytes; None where the server does not say."""
    version: str
    """What changes when the file does; "" where the server does not say."""
    sha256: str = ""
    """The hash that its bytes must have; "" where it is not known."""


def is_uri(text: str) -> bool:
    """Whether a path, or a NAME=PATH, is a URI."""
    return URI.fullmatch(text) is not None


def is_hub_id(text: str) -> bool:
    """Whether a path that leads nowhere looks like the name of a model on the Hugging Face hub, ORG/NAME."""
    return bool(HUB_ID.fullmatch(text)) and not Path(text).exists() and not Path(text).parent.exists()


def shown(uri: str) -> str:
    """A URI as messages and files may have it: without the password or signature that is in some. A path is one."""
    if "://" not in uri:
        return printable(uri, one_line=True)
    parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[2] if parts.scheme in ("http", "https") else parts.netloc
    return printable(f"{parts.scheme}://{host}{parts.path}", one_line=True)


def origin_of(path: str | Path) -> str:
    """The URI that a path was made of; the path itself where it was none."""
    text = str(path)
    label, equals, rest = text.partition("=")
    if equals and rest in ORIGINS:
        return f"{label}={ORIGINS[rest]}"
    return ORIGINS.get(text, text)


def told(text: str) -> str:
    """A text with URIs in the place of the paths that were made of them."""
    for path, uri in ORIGINS.items():
        text = text.replace(path, uri)
    return text


def file_system(uri: str) -> tuple[Any, str]:
    """The file system of a URI, of fsspec or Web, and the path in it. Raises ValueError for a scheme that is unknown,
    or whose library is missing.
    """
    scheme = uri.partition("://")[0]
    if scheme not in SCHEMES:
        raise ValueError(f"{shown(uri)}: no such scheme here; there are {', '.join(f'{name}://' for name in SCHEMES)}")
    if scheme != "file" and not uri.partition("://")[2].strip("/"):
        raise ValueError(f"{shown(uri)}: names nothing there")
    if scheme in ("http", "https"):
        return Web(), uri
    options: dict[str, Any] = {"use_listings_cache": False}
    if scheme == "s3":
        options["config_kwargs"] = {"connect_timeout": 20, "read_timeout": 30, "retries": {"max_attempts": 1}}
    try:
        system, path = fsspec.core.url_to_fs(uri, **options)
    except ImportError as error:
        raise ValueError(f"{shown(uri)}: {error}: pip install 'logtrain[remote]'") from None
    if scheme == "s3":
        system.retries = 1  # ours are enough, and say what they wait for
    return system, path


def regular(uri: str, path: str) -> str:
    """`path`, below `uri`. Raises ValueError where it is on this machine and no regular file: a device has no end."""
    if not is_uri(uri) and os.path.lexists(path):
        check_regular(Path(path))
    return path


def tried(uri: str, what: Callable[[], T], name: str = "") -> T:
    """What a request gives, tried TRIES times; in a folder of this machine once, for that fails alike each time.
    `name`: what is asked for there, for errors. Raises ValueError where none succeeds, or nothing is there.
    """
    tries = TRIES if is_uri(uri) else 1
    where = f"{shown(uri)}: {printable(name, one_line=True)}".removesuffix(": ")
    for count in range(tries):
        try:
            return what()
        except FINAL as error:
            reason = "no such file or folder" if isinstance(error, FileNotFoundError) else words_of(error)
            raise ValueError(f"{where}: {reason}") from None
        except Exception as error:  # every library has errors of its own
            if count == tries - 1:
                times = f"; tried {tries} times" if tries > 1 else ""
                raise ValueError(f"{where}: {words_of(error)}{times}") from None
            time.sleep(PATIENCE * 2**count)
    raise AssertionError


def words_of(error: Exception) -> str:
    """An error of a library on one line, without the addresses that it may quote."""
    text = re.sub(r"[a-z]+://\S+\?\S+", "...", " ".join(str(error).split()))[:200]
    return f"{type(error).__name__} {text}".strip()


# ---- what is there


def files_at(uri: str, place: Place) -> list[RemoteFile]:
    """The files that a URI stands for, by name. Raises ValueError where there are none."""
    system, path = file_system(uri)
    if place is FILE:
        return [remote_file(PurePosixPath(urlsplit(uri).path).name, tried(uri, lambda: system.info(path)))]
    if isinstance(system, Web):
        raise ValueError(f"{shown(uri)}: a server of web pages gives files, no folders; give s3://, gs:// or hf://")
    root = path.rstrip("/") + "/"
    found = tried(uri, lambda: system.find(root, detail=True))
    if not found:
        raise ValueError(f"{shown(uri)}: no such folder, or nothing in it")
    if len(found) > MAX_FILES:
        raise ValueError(f"{shown(uri)}: {len(found):,} files, more than the {MAX_FILES:,} that are fetched at once")
    files = []
    for where, info in sorted(found.items()):
        name = where.removeprefix(root)
        if name.startswith("/") or ".." in name.split("/") or "\\" in name or "\0" in name:
            raise ValueError(f"{shown(uri)}: holds the name {printable(name, one_line=True)!r}, which leads out of it")
        if not any(part.startswith(".") for part in name.split("/")):
            files.append(remote_file(name, info))
    return [file for file in files if is_read(file.name, place, {other.name for other in files})]


def is_read(name: str, place: Place, names: set[str]) -> bool:
    """Whether a file of a folder is read: of weights only those in safetensors, where there are any."""
    if not name.endswith(WEIGHTS):
        return True
    if place in (TOKENIZER, WITHOUT_WEIGHTS):
        return False
    return name.endswith(".safetensors") or not any(other.endswith(".safetensors") for other in names)


def remote_file(name: str, info: dict[str, Any]) -> RemoteFile:
    """The facts of a file, of what its file system says."""
    version = next((str(info[key]) for key in VERSION if info.get(key)), "")
    return RemoteFile(name, info["name"], info.get("size"), version)
