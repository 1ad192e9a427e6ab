"""The bucket over a real directory: whole objects or none, and every failure by its name."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from activities.errors import FileTooLarge, NoSuchBucket, ObjectMissing, StorageDenied, StorageUnavailable
from activities.storage import Bucket, BucketSettings


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The bucket's directory: its name needs quoting in a URL."""
    return tmp_path / "a bucket #1 100%"


@pytest.fixture
def bucket(root: Path) -> Bucket:
    """An empty bucket."""
    return Bucket(BucketSettings(root.as_uri()))


def names(bucket: Bucket, prefix: str = "") -> list[str]:
    """The keys below a prefix, sorted."""
    return sorted(info.key for info in bucket.objects(prefix))


def test_an_object_is_read_as_it_was_written(bucket: Bucket, root: Path) -> None:
    """Bytes, size and ETag; the file lies where its key says; a second put replaces the first whole."""
    bucket.put("a/b/x.json", b"first and longer")
    bucket.put("a/b/x.json", b"second")
    stored = bucket.get("a/b/x.json")
    assert (stored.body, stored.info.key, stored.info.size) == (b"second", "a/b/x.json", 6)
    assert stored.info.etag
    assert bucket.head("a/b/x.json") == stored.info
    assert (root / "a/b/x.json").read_bytes() == b"second"


async def test_the_asynchronous_calls_do_the_same(bucket: Bucket) -> None:
    """For an event loop."""
    await bucket.put_async("x", b"body")
    assert (await bucket.get_async("x")).body == b"body"
    assert await bucket.head_async("x") == bucket.head("x")
    with pytest.raises(ObjectMissing):
        await bucket.get_async("y")
    with pytest.raises(ObjectMissing):
        await bucket.head_async("y")


async def test_create_writes_only_the_first(bucket: Bucket) -> None:
    """Of many at once exactly one is told that it did, and its bytes stay."""
    done = await asyncio.gather(*(bucket.create_async("keys/k.json", str(number).encode()) for number in range(8)))
    assert done.count(True) == 1
    assert bucket.get("keys/k.json").body == str(done.index(True)).encode()


async def test_a_stream_becomes_one_object(bucket: Bucket) -> None:
    """Many chunks, more than one part; read again in chunks it is the same."""
    chunk = os.urandom(1 << 20)

    async def body() -> AsyncIterator[bytes]:
        for _ in range(12):
            yield chunk

    await bucket.put_stream("source.pdf", body())
    assert bucket.head("source.pdf").size == 12 << 20
    assert b"".join(bucket.chunks("source.pdf")) == chunk * 12


@pytest.mark.parametrize("chunks", [0, 1, 12])
async def test_a_stream_that_is_given_up_leaves_nothing_visible(bucket: Bucket, chunks: int) -> None:
    """What the body raises reaches the caller, and no object is listed or read, nor does an older one suffer."""
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
    """All of them over many pages, with sizes; a prefix ends at a slash."""
    for number in range(2100):
        bucket.put(f"sheets/sheet-1/{number}.jpeg", bytes(number % 7))
    bucket.put("sheets/sheet-10/0.jpeg", b"x")
    listed = {info.key: info.size for info in bucket.objects("sheets/sheet-1/")}
    assert listed == {f"sheets/sheet-1/{number}.jpeg": number % 7 for number in range(2100)}
    assert names(bucket, "nothing/here/") == []


def test_directories_are_the_names_directly_below(bucket: Bucket) -> None:
    """One name each, however deep what is in them."""
    for key in ("u/sheets/sheet-1/a", "u/sheets/sheet-2/tiles/b", "u/sheets/sheet-2/c", "u/upload.json"):
        bucket.put(key, b"x")
    assert sorted(bucket.directories("u/sheets/")) == ["sheet-1", "sheet-2"]
    assert bucket.directories("u/nothing/") == []


def test_delete_removes_and_takes_the_absent_as_done(bucket: Bucket) -> None:
    """Twice is no error; what was not named stays."""
    bucket.put("a", b"x")
    bucket.put("b/c", b"x")
    bucket.delete(["a", "never/was"])
    bucket.delete(["a"])
    assert names(bucket) == ["b/c"]


def test_a_missing_object_is_not_a_missing_bucket(bucket: Bucket, root: Path) -> None:
    """The one is final, the other is waited for: they must not be taken for each other."""
    for read in (bucket.get, bucket.head):
        with pytest.raises(ObjectMissing, match="no object a/b"):
            read("a/b")
    with pytest.raises(ObjectMissing):
        list(bucket.chunks("a/b"))
    shutil.rmtree(root)
    for read in (bucket.get, bucket.head):
        with pytest.raises(NoSuchBucket):
            read("a/b")
    with pytest.raises(NoSuchBucket):
        list(bucket.chunks("a/b"))


def test_a_bucket_in_the_way_of_a_file_is_unavailable(tmp_path: Path) -> None:
    """A path that cannot be a directory is said to be so when the process starts."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageUnavailable, match="cannot be used"):
        Bucket(BucketSettings((tmp_path / "file" / "bucket").as_uri()))


def test_a_key_below_an_object_is_unavailable(bucket: Bucket) -> None:
    """What a directory cannot do leaves under a bucket error's name, not as the library's."""
    bucket.put("a", b"x")
    with pytest.raises(StorageUnavailable):
        bucket.put("a/b", b"x")


def test_a_bucket_that_may_not_be_written_is_denied() -> None:
    """By its name, and what is there can still be read; root, who may do anything, tries it as nobody."""
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


def test_sync_works_on_a_real_directory(bucket: Bucket, root: Path) -> None:
    """And names a bucket that is gone."""
    bucket.sync()
    shutil.rmtree(root)
    with pytest.raises(NoSuchBucket):
        bucket.sync()


@pytest.mark.parametrize("url", ["s3://plans", "/var/bucket", "file://server/share", ""])
def test_a_url_of_another_kind_is_refused(url: str) -> None:
    """With what was given and what would do."""
    with pytest.raises(ValueError, match=r"SITELINK_BUCKET is .*file:///path"):
        Bucket(BucketSettings(url))


def test_the_bucket_is_in_the_data_directory_unless_it_is_named() -> None:
    """SITELINK_BUCKET wins; an empty one counts as absent."""
    assert BucketSettings.from_env({}).url == (Path.cwd() / "var/bucket").as_uri()
    assert BucketSettings.from_env({"SITELINK_DATA_DIR": "/data", "SITELINK_BUCKET": ""}).url == "file:///data/bucket"
    assert BucketSettings.from_env({"SITELINK_DATA_DIR": "/data", "SITELINK_BUCKET": "file:///b"}).url == "file:///b"
