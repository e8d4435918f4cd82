"""What a database that cannot be used is said to be, and what to do about it."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from infermesh.config.schema import StoreConfig
from infermesh.errors import StoreError, StoreInUseError
from infermesh.store import RunStore
from infermesh.store.connection import connect, damage, shortened, unusable

_HEADER = 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database in a folder whose name has words that DuckDB uses too."""
    found = tmp_path / "a lock on blocks, Corrupt database file" / "run.duckdb"
    found.parent.mkdir()
    with duckdb.connect(str(found)) as connection:
        connection.execute("CREATE TABLE source AS SELECT range AS row_id, md5(range::VARCHAR) AS t FROM range(20000)")
    return found


def overwrite(path: Path, *places: int) -> None:
    with open(path, "r+b") as file:
        for place in places:
            file.seek(place)
            file.write(b"\xa5" * 64)


def of_another_version(path: Path) -> None:
    """Raise the storage version in the first header; its checksum is that of DuckDB."""
    data = bytearray(path.read_bytes()[:_HEADER])
    data[12:20] = struct.pack("<Q", 2000)
    checksum = 5381
    for (value,) in struct.iter_unpack("<Q", data[8:]):
        checksum ^= value * 0xBF58476D1CE4E5B9 & (1 << 64) - 1
    data[:8] = struct.pack("<Q", checksum)
    with open(path, "r+b") as file:
        file.write(data)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: path.write_bytes(os.urandom(9000)), "it is damaged"),
        (lambda path: path.write_bytes(b"hello"), "it is damaged"),
        (lambda path: os.truncate(path, 100), "it is damaged"),
        (lambda path: overwrite(path, 40), "it is damaged"),
        (lambda path: overwrite(path, _HEADER + 100, 2 * _HEADER + 100), "it is damaged"),
        (of_another_version, "a newer DuckDB wrote it"),
        (lambda path: (path.unlink(), path.mkdir()), "a folder is in the place of a file"),
    ],
)
@pytest.mark.parametrize("read_only", [False, True])
def test_a_file_that_cannot_be_opened(
    path: Path, change: Callable[[Path], object], words: str, read_only: bool
) -> None:
    change(path)
    with pytest.raises(StoreError) as raised:
        connect(path, read_only=read_only)
    assert not isinstance(raised.value, StoreInUseError)
    assert str(raised.value).startswith(f"{path} cannot be opened: ")
    assert words in str(raised.value)


def test_a_file_that_was_cut_is_found_when_its_rows_are_read(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)
    with connect(path, read_only=True) as connection, pytest.raises(duckdb.Error) as raised:
        connection.execute("SELECT max(t) FROM source").fetchall()
    assert "it is damaged" in str(damage(raised.value, path))


def test_an_error_of_a_users_query_is_no_damage() -> None:
    for query in ("SELECT 1 FROM 'nowhere.parquet'", "SELECT nothing", "SELECT error('Could not read enough bytes')"):
        with duckdb.connect() as connection, pytest.raises(duckdb.Error) as raised:
            connection.execute(query).fetchall()
        assert damage(raised.value) is None


def test_in_use_by_this_process(path: Path) -> None:
    with connect(path), pytest.raises(StoreInUseError, match="in use"):
        connect(path, {"threads": 1})


@pytest.mark.parametrize("size", [0, 4096, 8192], ids=lambda size: f"{size} bytes")
def test_what_a_kill_leaves_of_a_file_that_is_being_made(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])  # some of its three headers
    with connect(path, read_only=True) as connection:
        assert connection.execute("SELECT table_name FROM duckdb_tables()").fetchall() == []
    assert path.stat().st_size == size
    store = RunStore(path, StoreConfig())
    assert store.is_new
    store.close()


def test_a_database_without_the_table_of_the_run(path: Path) -> None:
    with pytest.raises(duckdb.CatalogException) as raised:
        RunStore(path, StoreConfig())
    assert "holds no whole run" in str(unusable(path, raised.value))


def killed_with_a_log(path: Path) -> Path:
    """A database whose process was killed: what it committed is in the log beside it."""
    path.unlink()
    code = (
        "import duckdb, os, sys; c = duckdb.connect(sys.argv[1]); "
        "c.execute('CREATE TABLE t AS SELECT range AS i FROM range(1000)'); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    return path.with_name("run.duckdb.wal")


@pytest.mark.parametrize("place", [0, 300])
def test_a_damaged_log(path: Path, place: int) -> None:
    log = killed_with_a_log(path)
    before = path.read_bytes()
    overwrite(log, place)
    for read_only in (True, False):
        with pytest.raises(StoreError, match="move it away") as raised:
            connect(path, read_only=read_only)
        assert str(raised.value).startswith(f"{log} cannot be opened: it is damaged")
    assert (log.exists(), path.read_bytes()) == (True, before)
    log.rename(log.with_suffix(".away"))
    connect(path).close()


@pytest.mark.parametrize("cut", [1, 3, 5, 100])
def test_a_log_that_was_cut_short_is_read_as_far_as_it_goes(path: Path, cut: int) -> None:
    log = killed_with_a_log(path)
    os.truncate(log, cut)
    with connect(path, read_only=True) as connection:
        assert connection.execute("SELECT table_name FROM duckdb_tables()").fetchall() == []


def test_a_database_that_gave_up() -> None:
    said = duckdb.FatalException(
        "FATAL Error: Failed: database has been invalidated because of a previous fatal error.\nOriginal error: "
        '"INTERNAL Error: assertion"\n\nStack Trace:\n\n0x01\n0x02'
    )
    assert "DuckDB gave up" in str(unusable(Path("run.duckdb"), said))
    assert "0x01" not in str(unusable(Path("run.duckdb"), said))


def test_a_file_system_without_locks() -> None:
    said = duckdb.IOException('IO Error: Could not set lock on file "/nfs/run.duckdb": No locks available')
    problem = unusable(Path("/nfs/run.duckdb"), said)
    assert not isinstance(problem, StoreInUseError)
    assert "keeps no locks" in str(problem)


def test_json_around_a_message_goes() -> None:
    said = duckdb.IOException(
        'IO Error: Async write failed: {"exception_type":"IO","exception_message":"Could not write file \\"/x\\": No '
        'space left on device","errno":"28"}'
    )
    assert shortened(said) == 'Could not write file "/x": No space left on device'
