"""What a sweep's file stands for, and what is refused before any run starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ppar_dist.config.load import dump_config, load_config
from ppar_dist.errors import ConfigError
from ppar_dist.sweep.grid import plan_runs, write_configs
from ppar_dist.sweep.slurm import write_array
from tests.unit.tiny_run import make_config


def grid_file(folder: Path, **keys: Any) -> Path:
    (folder / "base.yaml").write_text(dump_config(make_config(folder, folder / "none")))
    file = folder / "grid.yaml"
    file.write_text(yaml.safe_dump({"base": "base.yaml", **keys}, sort_keys=False))
    return file


VARIANTS = {"plain": {"ppar.enabled": False}, "PPAR": {}}


def test_every_variant_value_and_seed_is_a_run_of_its_own(tmp_path: Path) -> None:
    file = grid_file(
        tmp_path,
        set={"train.steps": 7},
        seeds=[3, 4],
        variants=VARIANTS,
        grid={"optim.lr": [1e-5, 0.001], "data.crop": [[16, 24]]},
        baseline="plain",
    )
    planned = plan_runs(file, tmp_path / "out")
    write_configs(planned)
    seen = set()
    for run in planned:
        config = load_config(run.file)
        assert config == run.config
        assert config.train.steps == 7
        assert config.ppar.enabled == run.row.name.startswith("PPAR")
        assert f"optim.lr={'1.0e-05' if config.optim.lr == 1e-5 else '0.001'}" in run.row.name
        assert run.row.baseline == (run.row.name.replace("PPAR", "plain") if config.ppar.enabled else None)
        seen.add((config.ppar.enabled, config.optim.lr, config.seed, config.run.dir))
    assert len(seen) == len({folder for *_, folder in seen}) == 2 * 2 * 2
    assert [run.seed for run in planned] == [3] * 4 + [4] * 4, "a whole seed first"


def test_all_mistakes_are_told_at_once_and_nothing_is_written(tmp_path: Path) -> None:
    variants = {"one": {"optim.lr": -1}, "two": {"optim.lrr": 1}, "three": {}}
    own = {"seeds": [0, 1, 1], "baseline": "thre", "set": {"seed": 3}}  # wrong in the file itself
    file = grid_file(tmp_path, variants=variants, **own)
    with pytest.raises(ConfigError) as refused:
        plan_runs(file, tmp_path / "out")
    text = str(refused.value)
    assert "baseline is one of the variants (one, two, three), got thre; did you mean three?" in text
    assert "each seed is there once" in text
    assert "use seeds" in text
    assert "one, seed 0: " in text
    assert "unknown key optim.lrr" in text
    assert "seed 1" not in text, "the same mistake is told once"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"baseline": "plane", "variants": VARIANTS},
            "baseline is one of the variants (plain, PPAR), got plane",
        ),
        ({"seeds": [1, 1]}, "each seed is there once"),
        ({"set": {"seed": 3}}, "use seeds"),
        ({"variants": {"a": {"run.dir": "x"}}}, "use --out"),
        ({"varaints": {}}, "unknown key varaints"),
        ({"seeds": []}, "seeds"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        plan_runs(grid_file(tmp_path, **keys), tmp_path / "out")
    assert said in str(refused.value)


def test_a_run_of_another_configuration_is_not_taken_for_this_one(tmp_path: Path) -> None:
    file = grid_file(tmp_path, variants=VARIANTS)
    (run, _) = plan_runs(file, tmp_path / "out")
    run.config.run.dir.mkdir(parents=True)
    (run.config.run.dir / "config.yaml").write_text(dump_config(run.config))
    plan_runs(file, tmp_path / "out")
    changed = grid_file(tmp_path, variants=VARIANTS, set={"optim.lr": 0.5})
    with pytest.raises(ConfigError, match=r"optim\.lr: 0\.001 -> 0\.5"):
        plan_runs(changed, tmp_path / "out")


def test_names_that_make_the_same_folder_get_one_each(tmp_path: Path) -> None:
    planned = plan_runs(grid_file(tmp_path, variants={"a b": {}, "a/b": {}, "../..": {}}), tmp_path / "out")
    folders = {run.config.run.dir for run in planned}
    assert len(folders) == 3
    assert all((tmp_path / "out" / "runs") in folder.resolve().parents for folder in folders)


def test_the_array_script_has_a_task_for_each_run(tmp_path: Path) -> None:
    planned = plan_runs(grid_file(tmp_path, variants={"a b": {}, "c'd": {}}), tmp_path / "out")
    write_configs(planned)
    script = Path(__file__).parents[3] / "jobs" / "slurm_ppar.sh"
    text = write_array(planned, tmp_path / "out", script, 2).read_text()
    assert "#SBATCH --array=0-1%2" in text
    assert "#SBATCH --signal=B:USR1@180" in text, "the options of the single job"
    assert text.count("#SBATCH --output") == 1
