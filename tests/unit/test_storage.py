"""The bucket, over a real directory and a real S3 server: whole objects or none, and every failure by its name."""

import asyncio
import errno
import os
import re
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from activities.bucket.location import BucketSettings, S3Location
from activities.bucket.storage import Bucket
from activities.errors import FileTooLarge, NoSuchBucket, ObjectMissing, StorageDenied, StorageUnavailable
from tests.servers.s3 import TestServer


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The bucket's directory: its name needs quoting in a URL."""
    return tmp_path / "a bucket #1 100%"


@pytest.fixture(params=["directory", "s3", "s3 with a prefix"])
def settings(request: pytest.FixtureRequest, root: Path) -> BucketSettings:
    """The settings of an empty bucket, for each kind of bucket."""
    if request.param == "directory":
        return BucketSettings(root.as_uri())
    server: TestServer = request.getfixturevalue("s3_server")
    return server.new_bucket("site/plans" if request.param == "s3 with a prefix" else "")


@pytest.fixture
def bucket(settings: BucketSettings) -> Bucket:
    """An empty bucket, for each kind of bucket."""
    return Bucket(settings)


@pytest.fixture
def directory(root: Path) -> Bucket:
    """An empty bucket in a directory."""
    return Bucket(BucketSettings(root.as_uri()))


@pytest.fixture(params=["directory", "s3"])
def gone(request: pytest.FixtureRequest, root: Path) -> Bucket:
    """A bucket that is not there."""
    if request.param == "directory":
        bucket = Bucket(BucketSettings(root.as_uri()))
        shutil.rmtree(root)
        return bucket
    server: TestServer = request.getfixturevalue("s3_server")
    return Bucket(server.settings("never-made"))


def names(bucket: Bucket, prefix: str = "") -> list[str]:
    """The keys below a prefix, sorted."""
    return sorted(info.key for info in bucket.objects(prefix))


def test_an_object_is_read_as_it_was_written(bucket: Bucket) -> None:
    """Bytes, size and ETag are right. A second put replaces the first object whole."""
    bucket.put("a/b/x.json", b"first and longer")
    bucket.put("a/b/x.json", b"second")
    stored = bucket.get("a/b/x.json")
    assert (stored.body, stored.info.key, stored.info.size) == (b"second", "a/b/x.json", 6)
    assert stored.info.etag
    assert bucket.head("a/b/x.json") == stored.info


def test_a_file_lies_where_its_key_says(directory: Bucket, root: Path) -> None:
    """A directory can be read without SiteLink."""
    directory.put("a/b/x.json", b"body")
    assert (root / "a/b/x.json").read_bytes() == b"body"


def test_many_objects_are_written_in_their_order(bucket: Bucket) -> None:
    """Neighbours, objects of several directories and of none, and one that replaces another."""
    objects = [("a/b/1", b"one"), ("a/b/2", b"two"), ("top", b"three"), ("c/1", b"four"), ("a/b/1", b"five")]
    bucket.put_all(iter(objects))
    assert {key: bucket.get(key).body for key in names(bucket)} == dict(objects)


def test_many_objects_need_no_directory_to_stay(directory: Bucket, root: Path) -> None:
    """Somebody removes the directory between two of its objects, and a write that was killed has left a file there."""

    def objects() -> Iterator[tuple[str, bytes]]:
        yield "a/b/1", b"one"
        shutil.rmtree(root / "a")
        yield "a/b/2", b"two"
        (root / "a/b/3#1").write_bytes(b"left")
        yield "a/b/3", b"three"

    directory.put_all(objects())
    assert names(directory) == ["a/b/2", "a/b/3"]
    assert directory.get("a/b/3").body == b"three"
    assert sorted(path.name for path in (root / "a/b").iterdir()) == ["2", "3", "3#1"]


def test_many_objects_fail_by_their_names(directory: Bucket, root: Path) -> None:
    """A file is in the way of a directory, and a directory in the way of a file. What comes before stays.

    An error of the caller is not named.
    """
    directory.put("a", b"a file")
    with pytest.raises(StorageUnavailable):
        directory.put_all([("b/1", b"one"), ("a/1", b"two"), ("c/1", b"three")])
    (root / "d/1").mkdir(parents=True)
    with pytest.raises(StorageUnavailable):
        directory.put_all([("d/0", b"four"), ("d/1", b"five")])
    assert names(directory) == ["a", "b/1", "d/0"]

    def broken() -> Iterator[tuple[str, bytes]]:
        yield "b/2", b"six"
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(OSError, match="Input/output") as caught:
        directory.put_all(broken())
    assert not isinstance(caught.value, StorageUnavailable)
    assert directory.get("b/2").body == b"six"


async def test_the_asynchronous_calls_do_the_same(bucket: Bucket) -> None:
    """The calls for an event loop."""
    await bucket.put_async("x", b"body")
    assert (await bucket.get_async("x")).body == b"body"
    assert await bucket.head_async("x") == bucket.head("x")
    await bucket.put_async("a/b/c", b"body")
    assert await bucket.directories_async("a/") == bucket.directories("a/") == ["b"]
    with pytest.raises(ObjectMissing):
        await bucket.get_async("y")
    with pytest.raises(ObjectMissing):
        await bucket.head_async("y")


async def test_create_writes_only_the_first(bucket: Bucket) -> None:
    """The second call returns False, and the first bytes stay."""
    assert await bucket.create_async("keys/k.json", b"first")
    assert not await bucket.create_async("keys/k.json", b"second")
    assert bucket.get("keys/k.json").body == b"first"


async def test_of_many_creates_at_once_one_writes(directory: Bucket) -> None:
    """S3 and R2 promise the same. versitygw looks first and then writes, so it is not tested."""
    done = await asyncio.gather(*(directory.create_async("keys/k.json", str(number).encode()) for number in range(8)))
    assert done.count(True) == 1
    assert directory.get("keys/k.json").body == str(done.index(True)).encode()


async def test_a_stream_becomes_one_object(bucket: Bucket) -> None:
    """The stream has many chunks and more than one part. Read back in chunks, the object is the same."""
    chunk = os.urandom(1 << 20)

    async def body() -> AsyncIterator[bytes]:
        for _ in range(12):
            yield chunk

    await bucket.put_stream("source.pdf", body())
    assert bucket.head("source.pdf").size == 12 << 20
    assert b"".join(bucket.chunks("source.pdf")) == chunk * 12
    assert b"".join(bucket.chunks("source.pdf", 9 << 20)) == chunk * 3


@pytest.mark.parametrize("chunks", [0, 1, 12])
async def test_a_stream_that_is_given_up_leaves_nothing_visible(bucket: Bucket, chunks: int) -> None:
    """The caller gets the error that the body raises. No new object is listed or read, and an older one stays as it was."""
    refusal = FileTooLarge("12,582,912 bytes, limit 1,000")

    async def body() -> AsyncIterator[bytes]:
        for _ in range(chunks):
            yield bytes(1 << 20)
        raise refusal

    bucket.put("old.pdf", b"old")
    for key in ("new.pdf", "old.pdf"):
        with pytest.raises(FileTooLarge) as caught:
            await bucket.put_stream(key, body())
        assert caught.value is refusal
    assert names(bucket) == ["old.pdf"]
    assert bucket.get("old.pdf").body == b"old"
    with pytest.raises(ObjectMissing):
        bucket.get("new.pdf")


def test_objects_are_listed_below_their_prefix(bucket: Bucket) -> None:
    """All objects are listed, over many pages, with their sizes. A prefix ends at a slash."""
    for number in range(2100):
        bucket.put(f"sheets/sheet-1/{number}.jpeg", bytes(number % 7))
    bucket.put("sheets/sheet-10/0.jpeg", b"x")
    listed = {info.key: info.size for info in bucket.objects("sheets/sheet-1/")}
    assert listed == {f"sheets/sheet-1/{number}.jpeg": number % 7 for number in range(2100)}
    assert names(bucket, "nothing/here/") == []


def test_directories_are_the_names_directly_below(bucket: Bucket) -> None:
    """Each directory is named once, however deep its objects are."""
    for key in ("u/sheets/sheet-1/a", "u/sheets/sheet-2/tiles/b", "u/sheets/sheet-2/c", "u/upload.json"):
        bucket.put(key, b"x")
    assert sorted(bucket.directories("u/sheets/")) == ["sheet-1", "sheet-2"]
    assert sorted(bucket.directories("u/sheets/sheet-2/")) == ["tiles"]
    assert bucket.directories("u/nothing/") == bucket.directories("u/upload.json/") == []


def test_delete_removes_and_takes_the_absent_as_done(bucket: Bucket) -> None:
    """A second time is no error. Other objects stay."""
    bucket.put("a", b"x")
    bucket.put("b/c", b"x")
    bucket.delete(["a", "never/was"])
    bucket.delete(["a"])
    assert names(bucket) == ["b/c"]


async def test_a_missing_object_is_not_a_missing_bucket(bucket: Bucket) -> None:
    """A missing object is final, and a missing bucket is retried. So neither may be taken for the other."""
    for read in (bucket.get, bucket.head):
        with pytest.raises(ObjectMissing, match="no object a/b"):
            read("a/b")
    for read_async in (bucket.get_async, bucket.head_async):
        with pytest.raises(ObjectMissing, match="no object a/b"):
            await read_async("a/b")
    with pytest.raises(ObjectMissing):
        list(bucket.chunks("a/b"))


async def test_a_missing_bucket_is_not_a_missing_object(gone: Bucket) -> None:
    """This holds for each kind of read."""
    for read in (gone.get, gone.head):
        with pytest.raises(NoSuchBucket):
            read("a/b")
    for read_async in (gone.get_async, gone.head_async):
        with pytest.raises(NoSuchBucket):
            await read_async("a/b")
    with pytest.raises(NoSuchBucket):
        list(gone.chunks("a/b"))


def test_a_bucket_in_the_way_of_a_file_is_unavailable(tmp_path: Path) -> None:
    """A path that cannot be a directory is refused when the process starts."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageUnavailable, match="cannot be used"):
        Bucket(BucketSettings((tmp_path / "file" / "bucket").as_uri()))


def test_a_key_below_an_object_is_unavailable(directory: Bucket) -> None:
    """A request that a directory cannot fulfil raises a bucket error, not the library's error."""
    directory.put("a", b"x")
    with pytest.raises(StorageUnavailable):
        directory.put("a/b", b"x")


def test_a_bucket_that_may_not_be_written_is_denied() -> None:
    """The write raises StorageDenied, and objects can still be read. Root may do anything, so root runs the test as the user nobody."""
    user = os.geteuid()
    # Not pytest's own directory, for only the user who runs it may enter that.
    with tempfile.TemporaryDirectory() as name:
        root = Path(name, "bucket")
        bucket = Bucket(BucketSettings(root.as_uri()))
        bucket.put("a", b"x")
        Path(name).chmod(0o755)
        root.chmod(0o555)
        if user == 0:
            os.seteuid(65534)
        try:
            with pytest.raises(StorageDenied):
                bucket.put("b", b"x")
            assert bucket.get("a").body == b"x"
        finally:
            os.seteuid(user)
            root.chmod(0o755)


def test_sync_works_on_a_real_directory(directory: Bucket, root: Path) -> None:
    """And raises a named error for a bucket that is gone."""
    directory.sync()
    shutil.rmtree(root)
    with pytest.raises(NoSuchBucket):
        directory.sync()


def test_requests_at_once_are_bounded(settings: BucketSettings) -> None:
    """Further threads wait for their turn, and a request that fails gives its turn back."""
    bucket = Bucket(settings, max_requests=1)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: bucket.put(f"a/{number}", b"x"), range(40)))
        for _ in range(3):
            with pytest.raises(ObjectMissing):
                bucket.head("b")
        assert all(threads.map(lambda info: bucket.get(info.key).body == b"x", bucket.objects("a/")))


@pytest.mark.parametrize("url", ["http://plans", "/var/bucket", "file://server/share", "file:bucket", "file://", ""])
def test_a_url_of_another_kind_is_refused(url: str) -> None:
    """The message has the URL, and the forms that are allowed."""
    with pytest.raises(ValueError, match=r"SITELINK_BUCKET is .*file:///path"):
        Bucket(BucketSettings(url))


@pytest.mark.parametrize("url", ["file:///plans#1", "file:///plans?", "file:///plans?mode=memory"])
def test_a_url_with_a_query_or_a_fragment_is_refused(url: str) -> None:
    """It would name another directory than it seems to. The message says how to write such a name."""
    with pytest.raises(ValueError, match="# as %23"):
        Bucket(BucketSettings(url))


@pytest.mark.parametrize(
    "name", ["no. 7 #1", "what?mode=memory", "100%41", "q\"'[x]*\\;&$HOME", "Größe 図面", "two\nlines", os.fsdecode(b"\xff")]
)
def test_any_data_directory_holds_its_bucket(tmp_path: Path, name: str) -> None:
    """Whatever stands in its path, objects lie below it and nowhere else."""
    bucket = Bucket(BucketSettings.from_env({"SITELINK_DATA_DIR": str(tmp_path / name)}))
    bucket.put("a/b", b"x")
    assert [info.key for info in bucket.objects("a/")] == ["a/b"]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name / "bucket" / "a" / "b"]


def test_the_bucket_is_in_the_data_directory_unless_it_is_named() -> None:
    """SITELINK_BUCKET wins; an empty one counts as absent."""
    assert BucketSettings.from_env({}).url == (Path.cwd() / "var/bucket").as_uri()
    assert BucketSettings.from_env({"SITELINK_DATA_DIR": "/data", "SITELINK_BUCKET": ""}).url == "file:///data/bucket"
    assert BucketSettings.from_env({"SITELINK_DATA_DIR": "/data", "SITELINK_BUCKET": "file:///b"}).url == "file:///b"


KEYS = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "hush"}


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"SITELINK_BUCKET": "s3://plans", "AWS_SECRET_ACCESS_KEY": "hush"}, "AWS_ACCESS_KEY_ID is not set"),
        ({"SITELINK_BUCKET": "s3://plans", "AWS_ACCESS_KEY_ID": "id"}, "AWS_SECRET_ACCESS_KEY is not set"),
        ({"SITELINK_BUCKET": "s3://Plans", **KEYS}, "s3://name/optional/prefix"),
        ({"SITELINK_BUCKET": "s3://", **KEYS}, "s3://name/optional/prefix"),
        ({"SITELINK_BUCKET": "s3://plans/a//b", **KEYS}, "s3://name/optional/prefix"),
        ({"SITELINK_BUCKET": "s3://plans/../b", **KEYS}, "s3://name/optional/prefix"),
        ({"SITELINK_BUCKET": "s3://plans?x=1", **KEYS}, "s3://name/optional/prefix"),
        ({"SITELINK_BUCKET": "s3://id:hush@plans", **KEYS}, "SITELINK_BUCKET is 's3://…@plans'"),
        ({"SITELINK_BUCKET": "s3://plans", "SITELINK_S3_ENDPOINT": "localhost:7070", **KEYS}, "SITELINK_S3_ENDPOINT is"),
        (
            {"SITELINK_BUCKET": "s3://plans", "SITELINK_S3_ENDPOINT": "https://x.r2.cloudflarestorage.com/plans", **KEYS},
            "without the bucket",
        ),
        (
            {"SITELINK_BUCKET": "s3://plans", "SITELINK_S3_ENDPOINT": "https://id:hush@host", **KEYS},
            "SITELINK_S3_ENDPOINT is 'https://…@host'",
        ),
    ],
)
def test_a_setting_of_an_s3_server_that_cannot_be_used_is_refused(variables: dict[str, str], said: str) -> None:
    """It is refused at the start. The message has the variable's name and the allowed form, and shows no secret."""
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        Bucket(BucketSettings.from_env(variables))
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("variables", "location"),
    [
        ({"SITELINK_BUCKET": "s3://plans"}, S3Location("plans", "", None, "us-east-1")),
        ({"SITELINK_BUCKET": "s3://plans/", "AWS_REGION": "eu-central-1"}, S3Location("plans", "", None, "eu-central-1")),
        (
            {"SITELINK_BUCKET": "s3://my-plans/a/b/", "SITELINK_S3_ENDPOINT": "https://acc.r2.cloudflarestorage.com/"},
            S3Location("my-plans", "a/b", "https://acc.r2.cloudflarestorage.com", "auto"),
        ),
        (
            {"SITELINK_BUCKET": "s3://plans", "SITELINK_S3_ENDPOINT": "http://[::1]:7070", "AWS_REGION": "here"},
            S3Location("plans", "", "http://[::1]:7070", "here"),
        ),
    ],
)
def test_an_s3_server_is_found_by_its_settings(variables: dict[str, str], location: S3Location) -> None:
    """R2 is known by its address, and its region is ``auto``."""
    assert S3Location.from_settings(BucketSettings.from_env({**variables, **KEYS})) == location


def test_a_secret_is_not_shown() -> None:
    """Settings may be logged."""
    assert "hush" not in repr(BucketSettings.from_env({"SITELINK_BUCKET": "s3://plans", **KEYS}))


def test_leftovers_are_found_while_directories_go(directory: Bucket, root: Path) -> None:
    """While somebody else removes directories, the files of killed writes are still removed, and nothing fails."""
    gone = threading.Event()

    def come_and_go() -> None:
        while not gone.is_set():
            for number in range(30):
                (root / f"a/{number}/b").mkdir(parents=True)
            for number in range(30):
                shutil.rmtree(root / f"a/{number}")

    with ThreadPoolExecutor(1) as threads:
        going = threads.submit(come_and_go)
        try:
            for _ in range(60):
                directory.remove_unfinished("")
        finally:
            gone.set()
        going.result()
    (root / "a/x/b").mkdir(parents=True)
    for path in ("a/x/b/c#1", "a/x#1"):
        (root / path).touch()
    assert [directory.remove_unfinished("a/", deep=deep) for deep in (False, True)] == [1, 1]


def test_directories_of_a_directory_are_those_of_a_list(directory: Bucket, root: Path) -> None:
    """They are read in another way than by a LIST, because that looks at every entry: empty ones, links and files are judged alike."""
    directory.put("u/full/a", b"x")
    directory.put("u/file", b"x")
    (root / "u/empty").mkdir()
    (root / "u/link").symlink_to(root / "u/full")
    (root / "u/dangling").symlink_to(root / "nowhere")
    assert sorted(directory.directories("u/")) == sorted(directory.children("u/")[0]) == ["empty", "full", "link"]
