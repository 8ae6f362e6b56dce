"""What a diffusers directory must hold, checked without loading weights, and the digest over exactly that.

Only safetensors are read: a pickled checkpoint runs code when it is loaded. Component directories have fixed names, and
no file may lie outside the model's directory, because a model may come from somebody who would like other files read.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from common.errors import BadModelDirectory

if TYPE_CHECKING:
    from collections.abc import Iterator

INDEX: Final = "model_index.json"
SINGLE_ENCODER: Final = ("unet", "vae", "scheduler", "text_encoder", "tokenizer")
COMPONENTS: Final = {
    "StableDiffusionPipeline": SINGLE_ENCODER,
    "StableDiffusionXLPipeline": (*SINGLE_ENCODER, "text_encoder_2", "tokenizer_2"),
}
"""Directories that each pipeline class needs; a safety checker and the like are never read."""
WEIGHTS: Final = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
CONFIGS: Final = {
    "scheduler": "scheduler_config.json",
    "tokenizer": "tokenizer_config.json",
    "tokenizer_2": "tokenizer_config.json",
}

_MAX_HEADER: Final = 100 * 2**20
_NOT_CONTENT: Final = ("readme", "license", "licence", "notice")


def content_digest(directory: Path) -> str:
    """``sha256:…`` over path, size and bytes of each file that defines the pipeline, in the order of their paths.

    These are the index, every JSON and text file of a needed component, and the weights that are loaded. Pictures,
    model cards, hidden files, other weight formats and components that are not used do not count.

    Raises:
        BadModelDirectory: Something is missing or not what it should be; see :func:`content_files`.

    """
    hashed = hashlib.sha256(b"darkroom/base-content/1\0")
    for relative in content_files(directory):
        path = directory / relative
        hashed.update(f"{relative}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(2**20):
                hashed.update(block)
    return f"sha256:{hashed.hexdigest()}"


def content_files(directory: Path) -> tuple[str, ...]:
    """The files that define the pipeline as POSIX paths below the directory, sorted.

    Raises:
        BadModelDirectory: A component or file is missing or lies outside the directory, or weights are pickled only.

    """
    files = [INDEX]
    for component in needed_components(read_json(directory, INDEX)):
        if not (directory / component).is_dir():
            raise BadModelDirectory(f"{directory / component}: missing; {INDEX} names this component")
        files += [f"{component}/{name}" for name in _texts(directory / component)]
        if component in WEIGHTS:
            files += [f"{component}/{name}" for name in weight_files(directory, component)]
    for relative in files:
        _check_inside(directory, relative)
    return tuple(sorted(files))


def needed_components(index: dict[str, Any]) -> tuple[str, ...]:
    """Names of the component directories that the pipeline is built from.

    Raises:
        BadModelDirectory: Another pipeline class, a needed component that the index lacks, or a name that is a path.

    """
    name = index.get("_class_name")
    if name not in COMPONENTS:
        raise BadModelDirectory(f"{INDEX}: pipeline class {name!r}; wanted one of {', '.join(COMPONENTS)}")
    for key in index:
        if not key.isidentifier():
            raise BadModelDirectory(f"{INDEX}: {key!r} cannot be a component's name")
    for component in COMPONENTS[name]:
        entry = index.get(component)
        if not isinstance(entry, list) or len(entry) != 2 or not all(isinstance(part, str) for part in entry):
            raise BadModelDirectory(f"{INDEX}: {component} is {entry!r}; wanted [library, class]")
    return COMPONENTS[name]


def weight_files(directory: Path, component: str) -> tuple[str, ...]:
    """Names of the safetensors that are loaded: one file, its shards with their index, or the same as fp16 variant.

    Raises:
        BadModelDirectory: There are none, or a shard's name is a path.

    """
    folder, stem = directory / component, WEIGHTS[component]
    for variant in ("", ".fp16"):
        if (folder / f"{stem}{variant}.safetensors").is_file():
            return (f"{stem}{variant}.safetensors",)
        index = f"{stem}.safetensors.index{variant}.json"
        if (folder / index).is_file():
            return (index, *_shards(directory, f"{component}/{index}"))
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in {".bin", ".ckpt", ".pt", ".pth"})
    hint = f"; {', '.join(pickled)} is pickled and never loaded, convert it to safetensors" if pickled else ""
    raise BadModelDirectory(f"{folder / stem}.safetensors: missing{hint}")


def read_json(directory: Path, relative: str) -> dict[str, Any]:
    """A JSON object of the pipeline.

    Raises:
        BadModelDirectory: The file is missing, lies outside the directory, or is not a JSON object.

    """
    _check_inside(directory, relative)
    path = directory / relative
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BadModelDirectory(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise BadModelDirectory(f"{path}: wanted a JSON object, got a {type(value).__name__}")
    return value


def check_files(directory: Path) -> None:
    """Look into every file that is loaded, without reading weights.

    Raises:
        BadModelDirectory: JSON that cannot be parsed, weights shorter or longer than their header says, or an adapter
            that the loaders would apply without being asked.

    """
    files = content_files(directory)
    for component in needed_components(read_json(directory, INDEX)):
        if f"{component}/{CONFIGS.get(component, 'config.json')}" not in files:
            raise BadModelDirectory(f"{directory / component / CONFIGS.get(component, 'config.json')}: missing")
    for relative in files:
        if relative.endswith("/adapter_config.json"):
            # transformers applies such an adapter on its own, from a pickled file if need be
            raise BadModelDirectory(f"{directory / relative}: a base model must not carry an adapter; remove it")
        if relative.endswith(".json"):
            read_json(directory, relative)
        elif relative.endswith(".safetensors"):
            check_safetensors(directory / relative)


def check_safetensors(path: Path) -> None:
    """Compare a file's size with what its header announces.

    Raises:
        BadModelDirectory: The header cannot be read, or the file was truncated or lengthened.

    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(_MAX_HEADER, size - 8):
            raise BadModelDirectory(f"{path}: {size} bytes are no safetensors file; copy it again")
        header = file.read(length)
    try:
        tensors = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        wanted = 8 + length + max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        raise BadModelDirectory(f"{path}: its safetensors header cannot be read; copy it again") from error
    if size != wanted:
        raise BadModelDirectory(f"{path}: {size} bytes, its header announces {wanted}; copy it again")


def _texts(component: Path) -> Iterator[str]:
    """Configuration and vocabulary files, without weight indices, which count with the weights they belong to."""
    for path in component.iterdir():
        name = path.name.lower()
        if path.is_file() and path.suffix in {".json", ".txt"} and not name.startswith((".", *_NOT_CONTENT)):
            if ".index." in name:
                continue
            yield path.name


def _shards(directory: Path, index: str) -> list[str]:
    table = read_json(directory, index).get("weight_map")
    names = list(table.values()) if isinstance(table, dict) else []
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise BadModelDirectory(f"{directory / index}: wanted a weight_map of file names in the same directory")
    return sorted(set(names))


def _check_inside(directory: Path, relative: str) -> None:
    """Refuse a file that is missing or that a link leads out of the directory."""
    path = (directory / relative).resolve()
    roots = [directory.resolve()]
    if directory.resolve().parent.name == "snapshots":
        roots.append(directory.resolve().parent.parent / "blobs")  # where a hub cache keeps the files themselves
    if not any(path.is_relative_to(root) for root in roots):
        raise BadModelDirectory(f"{directory / relative}: leads out of {directory} to {path}")
    if not path.is_file():
        raise BadModelDirectory(f"{directory / relative}: missing; wanted a whole diffusers directory, with a {INDEX}")
