"""What a text means as a place of data."""

from __future__ import annotations

from pathlib import Path

import pytest

from ppar_dist.errors import UserError
from ppar_dist.storage.location import Remote, location


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
        "https://host/x?X-Amz-Signature=secret",
        "s3://bucket/x#secret",
    ],
)
def test_others_are_refused_without_their_secrets(text: str) -> None:
    with pytest.raises(UserError) as refused:
        location(text)
    assert "secret" not in str(refused.value)
