"""The command line: options in any position, and a one-line error for a wrong one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclopts import App

from ppar_dist.cli import parser
from ppar_dist.cli.commands import app
from tests.unit.tiny_run import make_run

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cli")
    make_run(root / "shards", root / "run", steps=())
    return root / "run" / "config.yaml"


@pytest.mark.parametrize("line", ["a=1 --nproc 2 b=-2", "--nproc 2 a=1 b=-2", "--nproc=2 a=1 b=-2 --nodes 1"])
def test_overrides_stand_anywhere_among_options(line: str) -> None:
    _, bound, _ = app.parse_args(["train", "c.yaml", *line.split()])
    assert bound.args == (Path("c.yaml"), "a=1", "b=-2")
    assert bound.kwargs["nproc"] == 2


def test_the_last_of_an_option_wins_and_lists_add_up() -> None:
    _, bound, _ = app.parse_args(["train", "c.yaml", "--nproc", "1", "--nproc", "3"])
    assert bound.kwargs["nproc"] == 3
    _, bound, _ = app.parse_args(["config", "c.yaml", "--get", "a", "--get", "b", "x=1"])
    assert (bound.args[1:], bound.kwargs["get"]) == (("x=1",), ["a", "b"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "a command is required; see ppar-dist --help"),
        ("fly", 'Unknown command "fly"'),
        ("train", "CONFIG requires an argument; see ppar-dist train --help"),
        ("train c --launcher x", 'Choose from: "deepspeed", "torchrun"; see ppar-dist train --help'),
        (
            "train c --nproc two",
            'unable to convert "two" into int; give a whole number; see ppar-dist train --help',
        ),
        ("train c --no-accept-changes", "Unknown option: --no-accept-changes"),
        ("predict run --out o", "IMAGES requires an argument"),
        ("synth --out o --size 3", "--size requires 2"),
        ("synth --out o --seed -3", "a seed is at least 0, got -3"),
        ("synth --out o --samples 0", "at least 1 sample"),
        ("synth --out o --size -5 32", "at least 32x32 pixels, got 120 of 32x-5"),
        ("synth --out o --size 20000 40000", "at most 4096 pixels high and wide, got 40000x20000"),
        ("prepare camvid --root . --out o --classes roads6 --limit -1", "limit is at least 1, got -1"),
        ("prepare camvid --root . --out o --classes roads6 --processes 0", "processes is at least 1, got 0"),
        ("index . --classes roads6 --max-bad-ratio nan", "is a share from 0 to 1, got nan"),
        ("doctor configs/demo.yaml --nproc 0", "--nproc is at least 1, got 0"),
        ("doctor configs/demo.yaml --nodes -1", "--nodes is at least 1, got -1; give the number of machines"),
        ("doctor configs/demo.yaml --nodes 0", "--nodes is at least 1, got 0; give the number of machines"),
        ("doctor configs/demo.yaml --nodes 1.5", 'unable to convert "1.5" into int; give a whole number'),
        (
            "predict run p.png --out s3://b/labels",
            "a path of this machine is expected here, got s3://b/labels",
        ),
        (
            "report s3://b/run",
            "a path of this machine is expected here, got s3://b/run; copy it, and give the path",
        ),
        ("compare a s3://b/run", "a path of this machine is expected here, got s3://b/run"),
        (
            "export s3:/b/run --out m",
            "a URL has two slashes after its scheme, got s3:/b/run; write s3://b/run",
        ),
        ("train c --nproc 1.5", 'unable to convert "1.5" into int; give a whole number'),
        (
            "doctor configs/demo.yaml --network-gbps 100",
            "--network-gbps is about the machines of --nodes, which is not given; add --nodes N",
        ),
        (
            "doctor configs/demo.yaml --nodes 2 --network-gbps -3",
            "--network-gbps is more than 0 and finite, got -3; give the Gbit/s",
        ),
        (
            "doctor configs/demo.yaml --nodes 2 --mtbf-days nan",
            "--mtbf-days is more than 0 and finite, got nan; give the mean days",
        ),
        (
            "doctor configs/demo.yaml --nodes 2 --nproc 1 --gpus-per-node 8",
            "got 1 and 8; give one of them",
        ),
        (
            "text --classes roads6 --out o.npz --template street",
            "--template is a sentence with {} for the name",
        ),
        ("demo --out o --nproc 0", "--nproc is at least 1, got 0"),
        ("demo --out o --nproc -1", "--nproc is at least 1, got -1"),
        (f"demo --out o --config {DEMO} --nproc 5000000", "on 5000000 ranks; use fewer ranks"),
        (
            "evaluate run --target a=x --target a=y",
            "each --target has a name of its own, got a twice; rename",
        ),
        ("export run --out o.pt2 --size 0 240", "--size is from 1 to 16384 pixels each, got 0 240"),
        ("export run --out o.pt2 --size 180 100000000", "16384 pixels each, got 180 100000000"),
        ("health --nproc -1", "--nproc is at least 1, got -1"),
        ("health --timeout -1", "--timeout is more than 0 and at most 3600 s, got -1.0"),
        ("health --timeout 1e300", "at most 3600 s, got 1e+300"),
        ("inspect run more", "more"),
        ("train roads --master host", "--master host is where several machines meet; give --nodes"),
        ("sweep grid.yaml --nproc 2", "--nproc is of runs that --run trains here"),
        ("sweep grid.yaml --slurm x.sh --nproc 2", "--nproc is of runs that --run trains here"),
        ("sweep grid.yaml --jobs 2", "--jobs is of runs that --run or --slurm starts"),
        ("evaluate run --target a=b --size 0", "size: pixels of the shorter side (1 or more), [height"),
        ("evaluate run --target a=b --scale 0.001", "scales.0 is at least 0.1, got 0.001"),
        ("evaluate run --target a=b --nproc 2 --batch 0", "batch is at least 1, got 0"),
        ("health --nprok 2", "unrecognized arguments: --nprok; see ppar-dist health --help"),
    ],
)
def test_a_wrong_line_is_one_line_and_78(
    line: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = parser.main(line.split())
    except SystemExit as end:  # of the health command, which knows nothing but the standard library
        code = end.code
    text = capfd.readouterr().err
    assert code == 78
    assert text.startswith("ppar-dist: ")
    assert text.count("\n") == 1
    assert message in text
    assert not list(tmp_path.iterdir())


def test_a_text_file_is_looked_up_in_the_folder_of_weights(
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PPAR_WEIGHTS", raising=False)
    caplog.set_level("INFO", "ppar_dist.config.weights")
    (tmp_path / "text.npz").write_bytes(b"")  # another of that name, which nobody asked for
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "text.npz").write_bytes(b"")
    arguments = ["doctor", str(config), "text.file=elsewhere/text.npz", "--quick"]
    monkeypatch.setenv("PPAR_TEST_DATA", str(tmp_path))
    parser.main(arguments)
    assert "elsewhere/text.npz" in capsys.readouterr().out.partition("Data")[0].partition("\n")[2]
    monkeypatch.setenv("PPAR_WEIGHTS", str(tmp_path / "weights"))
    parser.main(arguments)
    assert f"{tmp_path}/weights/text.npz" in capsys.readouterr().out
    found = f"elsewhere/text.npz is not here: $PPAR_WEIGHTS has {tmp_path}/weights/text.npz, which is used"
    assert [record.message for record in caplog.records if "text.npz" in record.message] == [found]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train roads.yaml --train.steps=3", "; write train.steps=3; see ppar-dist train --help"),
        ("train roads.yaml --train.steps 3", "; write train.steps=VALUE; see ppar-dist train --help"),
        ("config CONFIG train.step=3", "unknown key train.step; did you mean train.steps?"),
        ("config CONFIG ppar.reweigthing.enabled=false", "did you mean ppar.reweighting?"),
        ("index nowhere --classes roads7", "unknown class set 'roads7'; did you mean roads6?"),
        ("config CONFIG lr=0.1", "unknown key lr; did you mean optim.lr?"),
        ("config CONFIG engine.precision=bf61", "got 'bf61'; did you mean bf16?"),
        ("config CONFIG --get train.stepz", "train.stepz: there is no such key; did you mean train.steps?"),
        (
            "config road",
            "cannot read config road: No such file or directory; check the path; did you mean roads?",
        ),
        ("config my/roads.yaml", "check the path, or write roads, the configuration of that name"),
        ("prepare camvd --root . --out o --classes roads6", "unknown data set 'camvd'; did you mean camvid?"),
        ("predct", 'Did you mean "predict"?'),
        ("evaluate run --which bets", 'Did you mean "best"?'),
    ],
)
def test_a_near_miss_gets_a_guess(
    config: Path, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    assert parser.main(line.replace("CONFIG", str(config)).split()) == 78
    assert message in capsys.readouterr().err


def test_a_command_without_what_it_needs_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert parser.main(["train"]) == 78
    shown = capsys.readouterr()
    assert "--accept-changes" in shown.out
    assert "CONFIG requires an argument; see ppar-dist train --help" in shown.err


def test_the_configurations_of_the_package_are_named_and_used_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert parser.main(["config", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(path.stem for path in DEMO.parent.glob("*.yaml"))
    assert any("  Real streets: train on three day sequences of CamVid" in line for line in lines)
    (tmp_path / "demo").mkdir()  # as the demo leaves it: neither a file nor a run
    for line in ("config demo --get run.name", f"config {DEMO} --get run.name"):
        assert parser.main(line.split()) == 0
        assert capsys.readouterr().out == "run.name=demo\n"
    assert parser.main(["doctor", "demo", "--quick", "--nproc", "1"]) == 78
    assert "no domain folder demo/shards/synth_day" in capsys.readouterr().out


def test_a_file_wins_over_the_name_of_a_packaged_configuration(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "roads").write_bytes(config.read_bytes())
    assert parser.main(["config", "roads", "--get", "run.name"]) == 0
    assert capsys.readouterr().out == "run.name=tiny\n"


def commands(parent: App) -> Iterator[App]:
    for name in parent:
        if not name.startswith("-"):
            yield parent[name]


@pytest.mark.parametrize("command", commands(app), ids=lambda command: command.name[0])
def test_every_argument_and_option_has_a_help_text(command: App) -> None:
    arguments = command.assemble_argument_collection(parse_docstring=True)
    assert arguments, "each has at least one"
    assert [each.name for each in arguments if not (each.parameter.help or "").strip()] == []
