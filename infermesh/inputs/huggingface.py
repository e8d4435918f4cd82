"""Hugging Face datasets as a source, from the Hub or a folder. Their rows are written into a Parquet file.

The package ``datasets`` is an extra. It is imported when a declaration names a dataset.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infermesh.config.schema import SourceConfig
from infermesh.errors import ConfigError
from infermesh.hints import nearest
from infermesh.inputs.formats import sniff
from infermesh.redaction import redact

_MEDIA = {"Image", "Audio", "Video", "Pdf", "Nifti"}
_ROWS, _MEDIA_ROWS = 1000, 16  # in memory at once; rows with clips are large


@dataclass(frozen=True, slots=True)
class HubDataset:
    """One split of a dataset, loaded. ``fingerprint`` changes when its rows do."""

    name: str
    fingerprint: str
    rows: Any
    media: Path

    def write_parquet(self, path: Path, limit: int | None) -> None:
        """Write the rows, or the first ``limit`` of them, into a Parquet file, some at a time.

        The value of a clip or a picture is the path of its file: the one that the dataset names, else a file below
        ``media``, which is written here and named by its content.

        Raises
        ------
        ConfigError
            The rows cannot be read.
        """
        import pyarrow
        import pyarrow.parquet

        rows = self.rows if limit is None else self.rows.select(range(min(limit, len(self.rows))))
        media = [name for name, feature in rows.features.items() if type(feature).__name__ in _MEDIA]
        schema = rows.features.arrow_schema
        for name in media:
            schema = schema.set(schema.get_field_index(name), pyarrow.field(name, pyarrow.string()))
        try:
            with pyarrow.parquet.ParquetWriter(path, schema) as writer:
                for batch in rows.with_format("arrow").iter(batch_size=_MEDIA_ROWS if media else _ROWS):
                    table = batch
                    for name in media:
                        paths = [self._path_of(value) for value in table.column(name).to_pylist()]
                        column = pyarrow.array(paths, pyarrow.string())
                        table = table.set_column(table.column_names.index(name), name, column)
                    writer.write_table(table.cast(schema))
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise ConfigError(f"source.dataset: '{self.name}' could not be read: {_one_line(error)}") from None

    def _path_of(self, value: Any) -> str | None:
        if value is None or isinstance(value, str):
            return value
        path, data = value.get("path"), value.get("bytes")
        if path and os.path.isabs(path) and os.path.isfile(path):
            return str(path)
        if data is None:
            return None
        found = sniff(data)
        suffix = Path(path).suffix if path else f".{found.suffix if found else 'bin'}"
        target = self.media / f"{hashlib.blake2b(data, digest_size=16).hexdigest()}{suffix}"
        if not target.exists():
            self.media.mkdir(parents=True, exist_ok=True)
            beside = target.with_name(f"{target.name}.{os.getpid()}.tmp")
            beside.write_bytes(data)
            beside.replace(target)
        return str(target)


def open_dataset(config: SourceConfig, roots: Sequence[Path]) -> HubDataset:
    """Load the dataset that a source names: a folder below one of the roots, else from the Hub or its cache.

    Raises
    ------
    ConfigError
        The package is not installed, or there is no such dataset, configuration or split.
    """
    try:
        import datasets
    except ImportError:
        raise ConfigError("source.dataset: needs the package 'datasets': pip install 'infermesh[datasets]'") from None
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    name = config.dataset or ""
    folder = _local_folder(name, roots)
    saved = folder is not None and any((folder / mark).is_file() for mark in ("state.json", "dataset_dict.json"))
    if folder is not None and config.revision is not None:
        raise ConfigError(f"source.revision: {folder} is a local folder, which has no revisions. Leave it out.")
    if saved and config.subset is not None:
        raise ConfigError(f"source.subset: {folder} was saved without configurations. Leave it out.")
    try:
        if saved:
            rows = _saved_split(datasets.load_from_disk(str(folder)), config)
        else:
            where = str(folder) if folder is not None else name
            rows = datasets.load_dataset(where, name=config.subset, split=config.split, revision=config.revision)
    except ConfigError:
        raise
    except Exception as error:  # the library and what it calls may raise anything, and all of it is about this key
        what = f"the folder {folder}" if folder is not None else f"'{name}'"
        raise ConfigError(f"source.dataset: {what} could not be loaded: {_one_line(error)}") from None
    fingerprint = f"{name}|{config.subset}|{config.split}|{config.revision}|{rows._fingerprint}|{len(rows)}"
    return HubDataset(name, fingerprint, rows, Path(datasets.config.HF_DATASETS_CACHE) / "infermesh-media")


def dataset_folders(name: str, roots: Sequence[Path]) -> list[Path]:
    """Where the clips and pictures of a dataset are: its own folder, and the library's caches."""
    import datasets
    import huggingface_hub.constants

    folder = _local_folder(name, roots)
    caches = [Path(datasets.config.HF_DATASETS_CACHE), Path(huggingface_hub.constants.HF_HUB_CACHE)]
    return caches if folder is None else [folder, *caches]


def _local_folder(name: str, roots: Sequence[Path]) -> Path | None:
    return next((path for root in roots if (path := root / os.path.expanduser(name)).is_dir()), None)


def _saved_split(found: Any, config: SourceConfig) -> Any:
    """The split of what ``save_to_disk`` has written: one dataset, or several by their split's name."""
    if isinstance(found, dict):
        if config.split not in found:
            raise ConfigError(f"source.split: no split '{config.split}'.{nearest(config.split, list(map(str, found)))}")
        return found[config.split]
    if found.split is not None and config.split not in ("train", str(found.split)):
        raise ConfigError(f"source.split: the folder holds the split '{found.split}', not '{config.split}'")
    return found


def _one_line(error: Exception) -> str:
    """What went wrong and why: the library's own message says little, its cause names the column or the file."""
    told: list[str] = []
    link: BaseException | None = error
    while link is not None and len(told) < 5:
        words = " ".join(f"{type(link).__name__}: {link}".split())[:400]
        if words not in told:
            told.append(words)
        link = link.__cause__ or link.__context__
    return redact(" because of ".join(told))[:1200]
