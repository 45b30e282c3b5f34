"""Any file, override or tree is a configuration or refused, soon; what is accepted can be written."""

from __future__ import annotations

import copy
import datetime
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ppar_dist.config.load import dump_config, load_config, parse_config
from ppar_dist.errors import UserError
from tests.fuzz.budget import fuzzed

ROOT = Path(__file__).parents[2]
CONFIGS = tuple(path.read_bytes() for path in sorted((ROOT / "configs").glob("*.yaml")))
LONGEST_MESSAGE = 20_000

SCALARS = (
    *("~", "null", "yes", "True", "-1", "0", "1", "1e400", "-.inf", ".nan", "0x" + "f" * 5000, "9" * 5000),
    *("0b" + "1" * 20000, "190:20:30", "1_000", "0o17", "-0.0", "5e-324", "1.7976931348623157e308", "1e-7"),
    *("2020-01-01", "2020-13-45", "2001-12-14t21:59:43.10-05:00", "=", "<<", "''", '"\\0"', '"\\ud800"'),
    *('"\\x85\\u2028\\ufeff "', "!!binary aGk=", "!!binary %%%", "!!int x", "!!float x", "!!bool x"),
    *("!!timestamp x", "!!null x", "!!set {a}", "!!omap [a: 1]", "!!pairs [a: 1]", "!!str [a]", "!!map x"),
    *("!!python/object/apply:os.system [exit]", "!!python/name:os.system", "!unknown {}", "!<tag:x> 1"),
    *("&a [*a]", "&a {x: *a}", "*a", "&a 1", "{<<: {steps: 1}}", "{<<: 1}", "{a: 1, a: 2}", "{[a]: 1}"),
    *("{? {a: 1} : 2}", "{1: 2}", "{1.5: 2, ~: 3}", "[" * 5000, "{a: " * 300, "- " * 300, "'" * 9, '"\\'),
    *("|\n  text\n", ">-\n  text\n", "x" * 30000, "[1, 2", "[a, a]", "{name: a, weight: 1e999}", "{}", "[]"),
)
FRAGMENTS = (
    *(
        b"\t",
        b"\0",
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"\x80",
        b"\r",
        b"\n\n",
        b"\x1b[31m",
        b"#",
    ),
    *(b"---\n", b"...\n", b"%YAML 9.9\n---\n", b"%TAG ! tag:x:\n", b"? ", b": ", b"- ", b"&a ", b"*a", b"!!"),
    *(b"{", b"}", b"[", b"]", b",", b"|", b">", b"'", b'"', b"<<: *a\n", "\u2028\ufeff\x85".encode()),
)


def lines_of(text: bytes) -> list[bytes]:
    return text.splitlines(keepends=True)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A file of configs/, changed in a few places."""
    text = draw(st.sampled_from(CONFIGS))
    for _ in range(draw(st.integers(1, 4))):
        lines = lines_of(text) or [b""]
        number = draw(st.integers(0, len(lines) - 1))
        kind = draw(st.sampled_from(("value", "value", "insert", "cut", "repeat", "move", "bytes")))
        if kind == "value":
            value = draw(st.sampled_from(SCALARS) | st.text(max_size=20))
            key = lines[number].partition(b":")[0]
            lines[number] = key + b": " + value.encode("utf-8", "surrogatepass") + b"\n"
        elif kind == "insert":
            place = draw(st.integers(0, len(lines[number])))
            piece = draw(st.sampled_from(FRAGMENTS))
            lines[number] = lines[number][:place] + piece + lines[number][place:]
        elif kind == "cut":
            lines[number] = lines[number][: draw(st.integers(0, len(lines[number])))]
        elif kind == "repeat":
            lines.insert(draw(st.integers(0, len(lines))), lines[number])
        elif kind == "move":
            lines.insert(draw(st.integers(0, len(lines) - 1)), lines.pop(number))
        else:
            lines[number] = draw(st.binary(max_size=8)) + lines[number]
        text = b"".join(lines)
    return text


def anything() -> st.SearchStrategy[bytes]:
    """Bytes that may be YAML, and pieces of YAML in any order."""
    pieces = st.lists(st.sampled_from([value.encode() for value in SCALARS] + list(FRAGMENTS)), max_size=12)
    return st.binary(max_size=200) | st.text(max_size=200).map(str.encode) | pieces.map(b"".join)


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of everything in a tree, sections too."""
    if path:
        yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from leaves(value, (*path, key))


EXTREME = (
    *(10**400, -(10**400), 2**63, 2**64, -(2**63) - 1, 2**31, 1e308, -1e308, 5e-324, -0.0, 1 + 1e-16),
    *(
        float("nan"),
        float("inf"),
        -float("inf"),
        True,
        False,
        None,
        "",
        "\0",
        "\ud800",
        "\x85",
        " ",
        "1",
        "nan",
    ),
    *(b"\xff", b"a", datetime.date(2020, 1, 1), datetime.datetime(2020, 1, 1), (1, 2), 1j, Path("a\0")),
)
SCALAR = (
    st.sampled_from(EXTREME)
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=12)  # surrogates and control characters among them
    | st.text(max_size=12).map(Path)
    | st.binary(max_size=5)
)
VALUES = st.recursive(
    SCALAR | st.just({1, 2}),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(SCALAR, inner, max_size=3),
    max_leaves=8,
)


def whole_tree() -> dict[str, Any]:
    """Every key there is, with a value that is accepted."""
    tree = yaml.safe_load(dump_config(load_config(ROOT / "configs" / "roads.yaml")))
    tree["model"]["backbone"]["options"] = {"depths": [1, 2], "rate": 0.5, "name": "x", "deep": {"a": None}}
    tree["targets"] = {"night": "night"}
    return dict(tree)


TREE = whole_tree()
PATHS = sorted(leaves(TREE), key=str)
KEYS = [".".join(map(str, path)) for path in PATHS]


@st.composite
def changed_trees(draw: st.DrawFn) -> dict[str, Any]:
    """The whole tree with a few values, or whole sections, replaced, removed or added to."""
    tree = copy.deepcopy(TREE)
    for path in draw(st.lists(st.sampled_from(PATHS), min_size=1, max_size=4)):
        node: Any = tree
        try:
            for key in path[:-1]:
                node = node[key]
            if draw(st.integers(0, 9)) == 0:
                del node[path[-1]]
            elif isinstance(node, dict) and draw(st.integers(0, 9)) == 0:
                node[draw(SCALAR)] = draw(VALUES)
            else:
                node[path[-1]] = draw(VALUES)
        except (TypeError, KeyError, IndexError):
            continue  # what lay on the way has been replaced already
    return tree


def overrides() -> st.SearchStrategy[str]:
    keys = (
        st.sampled_from(KEYS) | st.text(max_size=10) | st.sampled_from((".", "a..b", "", "targets.x", "run"))
    )
    deep = st.integers(1, 2000).map(lambda n: "model.backbone.options" + ".a" * n)
    values = st.sampled_from(SCALARS) | st.text(max_size=20) | SCALAR.map(repr_of)
    return st.builds("{}={}".format, keys | deep, values) | st.text(max_size=10)


def repr_of(value: Any) -> str:
    return "9" * 5000 if isinstance(value, int) and abs(value) > 2**100 else str(value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("configs")


def survives(path: Path, *overrides: str) -> str | None:
    """The message of a refusal; what is accepted reads back equal from its own text."""
    try:
        config = load_config(path, overrides)
    except UserError as error:
        return checked(str(error))
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config
    return None


def checked(message: str) -> str:
    """A message is one printable line that a terminal and a log can bear."""
    assert message.isprintable()
    assert len(message) <= LONGEST_MESSAGE
    return message


@fuzzed
@given(text=mutated() | anything())
def test_any_file_is_a_configuration_or_refused(folder: Path, text: bytes) -> None:
    (folder / "file.yaml").write_bytes(text)
    survives(folder / "file.yaml")


@fuzzed
@given(given_overrides=st.lists(overrides(), max_size=4))
def test_any_override_is_applied_or_refused(folder: Path, given_overrides: list[str]) -> None:
    path = folder / "overridden.yaml"
    path.write_bytes((ROOT / "configs" / "roads.yaml").read_bytes())
    survives(path, *given_overrides)


@fuzzed
@given(tree=changed_trees() | VALUES)
def test_any_tree_is_a_configuration_or_refused(folder: Path, tree: Any) -> None:
    try:
        config = parse_config(tree)
    except UserError as error:
        checked(str(error))
        return
    path = folder / "tree.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config


def nested(levels: int, branches: int) -> str:
    """Each line refers to the one before ``branches`` times: branches ** levels values in a few bytes."""
    lines = ["a0: &a0 [x]"]
    for level in range(1, levels + 1):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * branches)}]")
    return "\n".join(lines)


def merged(levels: int, branches: int) -> str:
    """The same with merge keys, whose pairs PyYAML copies."""
    lines = ["a0: &a0 {x: 1}"]
    for level in range(1, levels + 1):
        lines.append(f"a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * branches)}]}}")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (nested(9, 9), "more than 10000 values"),
        (merged(9, 9), "more than 10000 values"),
        ("[" * 200_000, "levels of nesting"),
        ("{a: " * 50_000, "levels of nesting"),
        ("- " * 100_000, "levels of nesting"),
        ("a: &a [*a]", "refers to a value that contains it"),
        ("a: x" + "x" * 300_000, "a text of 262145 characters"),
        ("# " + "\U0001f600" * 300_000, "a text of 262145 characters"),
        ("seed: 0x" + "f" * 5000, "a number of 5002 characters"),
        ("seed: " + "1:" * 300 + "1", "a number of 601 characters"),
        ("seed: !!int ''", "'' is not a valid int"),
        ("seed: !!bool x", "'x' is not a valid bool"),
        ("seed: !!timestamp x", "timestamp: only plain values"),
        ("seed: !!binary aGk=", "binary: only plain values"),
        ("seed: !!python/object/apply:os.system [exit]", "only plain values"),
        ("run: {dir: x}\nseed: 1\nseed: 2", "key 'seed' in line 3 is in line 2 too"),
        ("run: {dir: x, 'dir': y}", "key 'dir' in line 1"),
        ('a: "\\', "not valid YAML"),
        ("%YAML", "not valid YAML"),
        ("\x00", "not valid YAML"),
        ("a:\tb\n\tc: d", "not valid YAML"),
    ],
    ids=lambda value: value[:20].encode("ascii", "replace").decode(),
)
def test_a_hostile_text_is_refused_soon_and_in_little_memory(folder: Path, text: str, message: str) -> None:
    path = folder / "hostile.yaml"
    path.write_text(text, encoding="utf-8")
    tracemalloc.start()
    try:
        found = survives(path)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    assert message in (found or "accepted")


@pytest.mark.parametrize("text", [b"\xff\xfea\0", b"run: \x80", b"\xed\xa0\x80"])
def test_a_file_that_is_not_utf8_is_refused(folder: Path, text: bytes) -> None:
    (folder / "bytes.yaml").write_bytes(text)
    assert "codec can't decode" in (survives(folder / "bytes.yaml") or "accepted")


def test_a_byte_order_mark_is_no_part_of_the_first_key(folder: Path) -> None:
    (folder / "bom.yaml").write_bytes(b"\xef\xbb\xbf" + (ROOT / "configs" / "roads.yaml").read_bytes())
    assert load_config(folder / "bom.yaml") == load_config(ROOT / "configs" / "roads.yaml")


def test_a_merged_key_may_be_overridden(folder: Path) -> None:
    tree = whole_tree()
    del tree["targets"]
    path = folder / "merged.yaml"
    path.write_text(yaml.safe_dump(tree) + "targets: {<<: {a: x, b: y}, b: z}\n", encoding="utf-8")
    assert load_config(path).targets == {"a": Path("x"), "b": Path("z")}


def test_an_override_changes_one_of_two_sections_that_share_an_anchor(folder: Path) -> None:
    tree = whole_tree()
    tree["model"]["backbone"]["options"] = {"one": (shared := {"x": 1}), "two": shared}
    path = folder / "shared.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    assert "*id001" in path.read_text(encoding="utf-8")
    options = load_config(path, ["model.backbone.options.one.x=2"]).model.backbone.options
    assert options == {"one": {"x": 2}, "two": {"x": 1}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps=true", "expected a number, got a boolean"),
        ("optim.lr=yes", "expected a number, got a boolean"),
        ("train.steps=3000000000", "train.steps is at most 2147483647, got"),
        ("seed=18446744073709551616", "seed is less than 9223372036854775808"),
        ('run.dir="a\\0b"', "a path holds no NUL"),
        ("model.backbone.options.a=.inf", "only finite numbers"),
        ("model.backbone.options.a=.nan", "only finite numbers"),
        ("model.backbone.options={a: {1: 2}}", "text as keys"),
        ('model.backbone.options.a="\\ud800"', "can be written down"),
        ("model.backbone.options" + ".a" * 500 + "=1", "can be written down"),
        ("model.backbone.options" + ".a" * 30 + "=1", "too deeply nested for the config.yaml"),
        ('run.name="' + "\U0001f600" * 40_000 + '"', "too long or too deeply"),
        ('run={"\\ud800": 1, "a\\nb": 2}', "run is text that UTF-8 can spell"),
    ],
    ids=lambda value: value[:40],
)
def test_a_value_that_a_run_could_not_bear_is_refused(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(ROOT / "configs" / "roads.yaml", [override])
    assert message in checked(str(caught.value))


def test_a_tree_with_values_that_have_no_text_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (10**5000, deep):
        with pytest.raises(UserError, match=r"seed is .*too large to show"):
            parse_config({**TREE, "seed": value})


def test_of_many_problems_the_first_are_named_and_the_others_counted() -> None:
    with pytest.raises(UserError, match=r"unknown key k19; .*and 480 more problems$"):
        parse_config({**TREE, **{f"k{number}": 1 for number in range(500)}})
