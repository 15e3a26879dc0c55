"""What real stores say, and what a store may say that is not believed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedserve.remote import contents
from embedserve.remote import store as store_module
from embedserve.remote.concurrency_limit import ConcurrencyLimit
from embedserve.remote.contents import RemoteFile
from embedserve.remote.errors import MissingError, StoreError
from embedserve.remote.store import Store, open_store
from embedserve.store_url import StoreUrl
from tests.remote.stores import Answer, ObjectStore, WebStore, files_of, page, scripted_web

pytestmark = pytest.mark.slow

NO_ONE: Answer = (404, {}, b"nothing here")


async def opened(url: str, timeout: float = 10.0, **options: Any) -> Store:
    return await asyncio.to_thread(open_store, StoreUrl(url), options, timeout, ConcurrencyLimit())


async def fetched(store: Store, name: str, to: Path) -> dict[str, bytes]:
    """Every file of a version, fetched."""
    version = await store.look(name)
    assert version.lacking is None
    for file in version.files:
        target = to / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        await store.fetch(file, target)
    return files_of(to)


async def test_a_web_server_s_directories(web: WebStore, lines: dict[int, Path], tmp_path: Path) -> None:
    web.publish(lines[1], "models/m/1")
    (web.directory / "models" / "m" / "notes").mkdir()
    (web.directory / "models" / "m" / "7").touch()
    (web.directory / "models" / "m" / "1" / "assets" / "a b%20&c.txt").write_bytes(b"quoted")
    (web.directory / "models" / "m" / "1" / ".hidden").write_bytes(b"")
    store = await opened(web.url("models/m"))
    assert sorted(await store.directories()) == ["1", "notes"]
    before = await store.look("1")
    want = files_of(web.directory / "models" / "m" / "1")
    del want[".hidden"]
    assert {file.path: file.size for file in before.files} == {path: len(data) for path, data in want.items()}
    assert await fetched(store, "1", tmp_path / "here") == want
    (web.directory / "models" / "m" / "1" / "new").write_bytes(b"")
    assert (await store.look("1")).digest != before.digest
    with pytest.raises(MissingError):
        await store.directories("none")


async def test_an_object_store_s_directories(bucket: ObjectStore, lines: dict[int, Path], tmp_path: Path) -> None:
    bucket.publish(lines[1], "models/m/1")
    bucket.publish(lines[2], "models/m/002")
    for marker in ("models/m/", "models/m/3/", "models/m/1/"):
        bucket.put(marker, b"")
    bucket.put("models/m/README", b"x")
    bucket.put("models/m/1/assets/a b%20&c?d#e.txt", b"not quoted")
    store = await opened(bucket.url("models/m"), **bucket.storage_options)
    assert sorted(await store.directories()) == ["002", "1", "3"]
    before = await store.look("1")
    here = await fetched(store, "1", tmp_path / "here")
    assert here == {**files_of(lines[1]), "assets/a b%20&c?d#e.txt": b"not quoted"}
    assert (await store.look("3")).lacking == "it holds no file"
    assert (await store.look("1")).digest == before.digest
    bucket.put("models/m/1/saved_model.pb", b"another")
    assert (await store.look("1")).digest != before.digest
    for missing in (bucket.url("models/none"), "s3://no-such-bucket-at-all/m"):
        with pytest.raises(MissingError):
            await (await opened(missing, **bucket.storage_options)).directories()


async def test_a_file_system_that_only_blocks_is_read_as_well(lines: dict[int, Path], tmp_path: Path) -> None:
    import fsspec

    fsspec.filesystem("memory").put(str(lines[1]), "/models/m/1", recursive=True)
    store = await opened("memory://models/m")
    assert await store.directories() == ["1"]
    assert await fetched(store, "1", tmp_path / "here") == files_of(lines[1])
    fsspec.filesystem("memory").rm("/models", recursive=True)


async def test_keys_that_leave_their_version_refuse_it(
    bucket: ObjectStore, lines: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.publish(lines[1], "m/1")
    store = await opened(bucket.url("m"), **bucket.storage_options)
    listed = store._file_system._find

    async def find(path: str, **options: Any) -> dict[str, Any]:
        found = await listed(path, **options)
        hostile = f"{path}/../../../home/evil"
        return {**found, hostile: {"name": hostile, "size": 3, "type": "file"}}

    monkeypatch.setattr(store._file_system, "_find", find)  # No client sends such a key; a server may list one.
    version = await store.look("1")
    assert version.files == ()
    assert version.lacking == "it is refused: the key '../../../home/evil' does not lie below the version"


Script = Callable[[str], Answer]


def web_of(script: Script) -> Any:
    return scripted_web(lambda method, path: script(path))


@pytest.mark.parametrize(
    ("link", "refused"),
    [
        ("%2e%2e/%2e%2e/evil", True),
        ("variables/%2e%2e/%2e%2e/evil", True),
        ("%2Fetc%2Fpasswd", True),
        ("..%2fevil", True),
        ("x%00y", True),
        ("../", False),
        ("../../evil", False),
        ("/etc/passwd", False),
        ("http://elsewhere/evil", False),
        ("?C=N;O=D", False),
        ("#top", False),
        ("./", False),
        ("javascript:x", False),
    ],
)
async def test_a_link_that_leaves_the_version_is_ignored_and_a_disguised_one_refuses_it(
    link: str, refused: bool
) -> None:
    def script(path: str) -> Answer:
        return page("./saved_model.pb", link) if path.endswith("/m/1/") else (200, {}, b"graph")

    with web_of(script) as url:
        version = await (await opened(f"{url}/m")).look("1")
    if refused:
        assert version.files == ()
        assert "it is refused" in (version.lacking or "")
    elif link != "javascript:x":
        assert [file.path for file in version.files] == ["saved_model.pb"]


async def test_a_listing_without_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_FILES", 50)
    monkeypatch.setattr(contents, "MAX_FILES", 50)

    def script(path: str) -> Answer:
        if path.endswith("/wide/1/"):
            return page("saved_model.pb", *(f"d{number}/" for number in range(40)))
        if path.endswith("/wide/"):
            return page(*(f"{number}/" for number in range(60)))
        return page(*(f"f{number}" for number in range(20)), "deeper/")

    with web_of(script) as url:
        wide = await opened(f"{url}/wide")
        with pytest.raises(StoreError, match="it holds more than 50 entries"):
            await wide.directories()
        for name in ("1", "2"):
            version = await wide.look(name)
            assert (version.files, version.lacking) == ((), "it holds more than 50 files")


async def test_a_tree_of_directories_without_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_MAX_DIRECTORIES", 10)
    with web_of(lambda path: page("deeper/")) as url:
        version = await (await opened(f"{url}/m")).look("1")
    assert version.lacking == "it holds more than 10 directories"


@pytest.mark.parametrize("status", [500, 503, 401, 403, 429])
async def test_a_server_s_refusal_is_an_error_and_never_an_empty_listing(status: int) -> None:
    with web_of(lambda path: (status, {}, b"no")) as url:
        store = await opened(url.replace("//", "//me:secret@") + "/m")
        with pytest.raises(
            StoreError, match=rf"http://\*\*\*@127.* cannot be read: ClientResponseError: {status}"
        ) as caught:
            await store.directories()
        assert not isinstance(caught.value, MissingError)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("status", "outage"), [(404, False), (403, False), (500, True), (503, True)])
async def test_a_file_that_cannot_be_looked_at_is_the_version_s_fault_unless_the_server_is_ill(
    status: int, outage: bool
) -> None:
    def script(path: str) -> Answer:
        return page("saved_model.pb") if path.endswith("/1/") else (status, {}, b"no")

    with web_of(script) as url:
        store = await opened(f"{url}/m")
        if outage:
            with pytest.raises(StoreError, match=str(status)):
                await store.look("1")
        else:
            version = await store.look("1")
            assert version.files == ()
            assert "saved_model.pb" in (version.lacking or "")


async def test_a_server_that_is_down_or_hangs_is_an_error_in_time(web: WebStore) -> None:
    web.kill()
    down = await opened(web.url("m"))
    with pytest.raises(StoreError, match="ClientConnectorError"):
        await down.directories()
    with pytest.raises(StoreError, match="ClientConnectorError"):
        await down.look("1")
    release = threading.Event()

    def hang(path: str) -> Answer:
        release.wait(60)
        return NO_ONE

    with web_of(hang) as url:
        store = await opened(f"{url}/m", timeout=0.3)
        with pytest.raises(StoreError, match=r"did not answer within 0\.3 s|ServerTimeoutError|SocketTimeoutError"):
            await store.directories()
        release.set()


async def test_an_object_store_that_is_down_is_an_error(object_server: ObjectStore) -> None:
    server = ObjectStore()
    server.bucket = "bucket"
    store = await opened(server.url("m"), **server.storage_options)
    with pytest.raises(StoreError, match="EndpointConnectionError"):
        await store.directories()


async def test_a_transfer_that_stalls_is_given_up_and_one_that_brings_too_much_is_cut(tmp_path: Path) -> None:
    import socket

    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    sent: list[socket.socket] = []

    def serve() -> None:
        for body in (b"12", b"1234567"):
            connection, _ = listener.accept()
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\n" + body)
            sent.append(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        url = f"http://127.0.0.1:{port}/m"
        store = await opened(url, timeout=0.3)
        file = RemoteFile("x", 7, source=f"{url}/1/x")
        with pytest.raises(StoreError, match=r"no byte of x came for 0\.3 s|x cannot be fetched from .*Timeout"):
            await store.fetch(file, tmp_path / "x")
        shorter = RemoteFile("x", 3, source=f"{url}/1/x")
        with pytest.raises(StoreError, match="there are more than the 3 bytes that were listed"):
            await store.fetch(shorter, tmp_path / "y")
    finally:
        thread.join(30)
        for each in (*sent, listener):
            each.close()


async def test_a_file_system_that_cannot_be_made_is_an_error() -> None:
    with pytest.raises(StoreError, match=r"^smb://\*\*\*@host/share cannot be opened: \w+Error") as caught:
        await opened("smb://me:very-secret@host/share")
    assert "very-secret" not in str(caught.value)
