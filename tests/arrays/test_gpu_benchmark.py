"""The measurements for a GPU run to their end on NumPy, on the stand-in and on CuPy, so
that they do not fail where it counts."""

import configparser
import importlib.util
import subprocess
import sys
from pathlib import Path

import array_api_strict
import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("gpu", ROOT / "tests" / "benchmarks" / "gpu.py")
gpu = sys.modules["gpu"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gpu)


def test_every_section_runs(xp, tmp_path):
    if xp is array_api_strict:
        pytest.skip("array_api_strict is not measured")
    out = tmp_path / "gpu.md"
    assert gpu.main(["--dry", "--limit", "60", "--out", str(out)], xp) == 0
    text = out.read_text()
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == [
        section.__name__ for section in gpu.SECTIONS
    ]
    assert "FAILED" not in text
    assert "| NO |" not in text
    assert text.count("|---|") >= len(gpu.SECTIONS)


def test_a_section_that_fails_says_so_and_the_next_one_runs(tmp_path, monkeypatch):
    def broken(bench):
        """A section that raises."""
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(gpu, "SECTIONS", [broken, gpu.determinism])
    assert gpu.main(["--dry", "--out", str(tmp_path / "gpu.md")]) == 1
    text = (tmp_path / "gpu.md").read_text()
    assert "ZeroDivisionError: planted" in text
    assert "| recurrent | yes |" in text


def test_sections_can_be_chosen(tmp_path, capsys):
    assert gpu.main(["accuracy", "--dry", "--out", str(tmp_path / "gpu.md")]) == 0
    assert "## determinism" not in (tmp_path / "gpu.md").read_text()
    with pytest.raises(SystemExit):
        gpu.main(["speed", "--dry", "--out", str(tmp_path / "gpu.md")])
    assert "there is no section speed" in capsys.readouterr().err


def test_the_script_is_a_shell_script():
    assert (
        subprocess.run(["bash", "-n", str(ROOT / "tests" / "gpu.sh")], check=False).returncode == 0
    )


@pytest.mark.parametrize("major", [12, 13])
def test_the_extras_name_their_wheels(major):
    """One wheel for each CUDA, with CUDA's libraries, from the release on that has all
    names."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    requirement = Requirement(config["options.extras_require"][f"cuda{major}"].strip())
    assert requirement.name == f"cupy-cuda{major}x"
    assert requirement.extras == {"ctk"}
    for version, wanted in {
        "14.0.1": False,
        "14.1.0": False,
        "14.1.1": True,
        "14.2.0": True,
        "13.6.0": False,
    }.items():
        assert requirement.specifier.contains(version) == wanted
