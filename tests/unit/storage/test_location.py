"""What a text means as a place of data."""

from __future__ import annotations

from pathlib import Path

import pytest

from ppar_dist.errors import UserError
from ppar_dist.storage.location import Remote, location, refuse_url


@pytest.mark.parametrize("text", ["/data/shards", "shards", "~/x", "C:/x", "a b", "s3:bucket"])
def test_a_path_stays_a_path(text: str) -> None:
    assert location(text) == Path(text)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("s3://bucket", "s3://bucket"),
        (" S3://bucket/a/b/ ", "s3://bucket/a/b"),
        ("https://host:8080/x", "https://host:8080/x"),
        ("gs://b/ä", "gs://b/ä"),
        ("http://host:80/a@b", "http://host:80/a@b"),
        ("http://[::1]:80/a@b", "http://[::1]:80/a@b"),
        ("s3://arn:aws:s3:eu:1:accesspoint/ap/a@b", "s3://arn:aws:s3:eu:1:accesspoint/ap/a@b"),
    ],
)
def test_a_url_is_remote(text: str, url: str) -> None:
    assert location(text) == Remote(url)
    assert str(location(text)) == url


def test_joined_as_a_path() -> None:
    place = Remote("s3://bucket/shards") / "city" / "domain.json"
    assert (str(place), place.name, place.parent.name, place.scheme) == (
        "s3://bucket/shards/city/domain.json",
        "domain.json",
        "city",
        "s3",
    )


@pytest.mark.parametrize(
    "text",
    [
        "ftp://host/x",
        "s3://",
        "s3:///x",
        "s3://bucket//x",
        "s3://bucket/../x",
        "https://user:secret@host/x",
        "s3://user:sec/ret+secret@bucket/x",
        "s3://user:12/secret@bucket/x",
        "https://user:/secret@host/x",
        "https://host/x?X-Amz-Signature=secret",
        "s3://bucket/x#secret",
        "s3:/bucket/x",
        "GS:/user:secret@bucket/x?secret",
        Path("s3://bucket/x"),
    ],
)
def test_others_are_refused_without_their_secrets(text: str | Path) -> None:
    with pytest.raises(UserError) as refused:
        location(text)
    assert "secret" not in str(refused.value)


def test_a_url_with_one_slash_is_told_right() -> None:
    with pytest.raises(UserError, match=r"got s3:/bucket/x; write s3://bucket/x"):
        location("s3:/bucket/x")


@pytest.mark.parametrize(
    "text",
    ["s3://bucket/x", "https://user:secret@host/x?secret", "gs:/bucket/secret@x", "az://b/x", "file:///x"],
)
def test_a_path_that_was_a_url_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="a path of this machine is expected here") as refused:
        refuse_url(Path(text))
    assert "secret" not in str(refused.value)
    for other in ("s3", "./s3", "/s3:/x", "a/s3:/b", "C:/x", "s3:"):
        refuse_url(Path(other))
