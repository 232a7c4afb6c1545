# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The published data sets, read from small trees with their layout: contents, splits, contract, a run."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ctkd.api import Data
from ctkd.config import resolve
from ctkd.data import files, pictures
from ctkd.data.checks import check_data
from ctkd.errors import BadInput
from ctkd.plugins import create, options_class, registry
from ctkd.testing import run_checks

from ..conftest import QUICK
from .trees import TREES, as_python2, batch, cifar10, noise

Tree = Callable[[str], Path]
SHAPES = {
    "fashion-mnist": ((1, 28, 28), 10, (40, 20, 20)),
    "cifar10": ((3, 32, 32), 10, (80, 20, 20)),
    "cifar100": ((3, 32, 32), 100, (250, 50, 100)),
    "gtsrb": ((3, 32, 32), 43, (86, 86, 43)),
    "tinyimagenet": ((3, 64, 64), 200, (590, 10, 200)),
    "imagenet64": ((3, 64, 64), 1000, (1005, 5, 10)),
}


def load(name: str, folder: Path | None, **options: Any) -> Data:
    entry = registry().find("dataset", name)
    found: Data = create(entry, options_class(entry)(**{**TREES[name][1], **options})).load(folder)
    return found


def values(images: torch.Tensor) -> np.ndarray:
    return (images * 255).round().to(torch.uint8).numpy()


@pytest.mark.parametrize("name", TREES)
def test_shapes_and_splits(tree: Tree, name: str) -> None:
    data = load(name, tree(name))
    check_data(data)
    assert data.name == name
    assert (data.input_shape, data.classes, (len(data.train), len(data.validation), len(data.test))) == SHAPES[name]


@pytest.mark.parametrize("name", TREES)
def test_they_keep_the_contract(tree: Tree, name: str) -> None:
    options = {**TREES[name][1], "validation": 1} if name == "imagenet64" else TREES[name][1]
    results = run_checks("dataset", name, options, data_dir=tree(name))
    failed = [result.message for result in results if result.status == "failed"]
    # Each class of the small ImageNet64 has one image, or two: one held out leaves its class without any.
    assert [text for text in failed if name != "imagenet64" or "no image of class" not in text] == []


@pytest.mark.parametrize("name", TREES)
def test_the_environment_names_the_folder_and_without_one_it_says_what_to_do(
    tree: Tree, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pooch

    def offline(*_: object, **__: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr(pooch, "retrieve", offline)
    with pytest.raises(
        BadInput, match=f"^data set '{name}'.*(not downloaded: get it|cannot be downloaded).*--data-dir"
    ):
        load(name, None)
    monkeypatch.setenv("CTKD_DATA", str(tree(name)))
    assert load(name, None).test.images.equal(load(name, tree(name)).test.images)


def test_cifar10_is_its_batches(tree: Tree) -> None:
    data = load("cifar10", tree("cifar10"))
    parts = [batch(20, 10, b"labels", i) for i in range(6)]
    np.testing.assert_array_equal(values(data.test.images), parts[5][b"data"].reshape(20, 3, 32, 32))
    assert data.test.labels.tolist() == parts[5][b"labels"]
    whole = {part[b"data"][i].tobytes(): part[b"labels"][i] for part in parts[:5] for i in range(20)}
    seen = {}
    for split in (data.train, data.validation):
        seen |= {i.tobytes(): n for i, n in zip(values(split.images), split.labels.tolist(), strict=True)}
    assert seen == whole


def test_cifar100_has_the_fine_labels(tree: Tree) -> None:
    assert load("cifar100", tree("cifar100")).test.labels.tolist() == list(range(100))


def test_the_folder_itself_may_be_named(tree: Tree) -> None:
    inner = tree("cifar10") / "cifar-10-batches-py"
    assert load("cifar10", inner).test.images.equal(load("cifar10", tree("cifar10")).test.images)


def test_gtsrb_holds_out_whole_tracks_and_keeps_every_class(tree: Tree) -> None:
    from PIL import Image

    data = load("gtsrb", tree("gtsrb"))
    assert data.train.labels.bincount().tolist() == [2] * 43 == data.validation.labels.bincount().tolist()
    root = tree("gtsrb") / "GTSRB"
    pairs = []
    for path in sorted((root / "Final_Training" / "Images" / "00007").glob("*.ppm")):
        small = Image.open(path).resize((32, 32), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1) / 255
        pairs.append([bool((split.images == pixels).all((1, 2, 3)).any()) for split in (data.train, data.validation)])
    assert pairs in ([[True, False]] * 2 + [[False, True]] * 2, [[False, True]] * 2 + [[True, False]] * 2)
    assert data.test.labels.tolist() == list(range(43))
    assert load("gtsrb", tree("gtsrb"), size=48).input_shape == (3, 48, 48)


def test_tinyimagenet_numbers_classes_by_name_and_tests_on_the_official_validation_images(tree: Tree) -> None:
    data = load("tinyimagenet", tree("tinyimagenet"))
    by_name = {}
    for line in (tree("tinyimagenet") / "tiny-imagenet-200/val/val_annotations.txt").read_text().splitlines():
        file, wnid = line.split("\t")[:2]
        by_name[file] = wnid
    ranks = {wnid: i for i, wnid in enumerate(sorted({*by_name.values()}))}
    assert data.test.labels.tolist() == [ranks[by_name[file]] for file in sorted(by_name)]
    grey = (data.train.images[:, 0] == data.train.images[:, 1]).all((1, 2)).sum()
    assert 160 < int(grey) < 200


def test_imagenet64_reads_both_forms_and_counts_from_0(tree: Tree) -> None:
    data = load("imagenet64", tree("imagenet64"))
    assert data.test.labels.tolist() == list(range(0, 1000, 100))
    np.testing.assert_array_equal(values(data.test.images), noise(10, 12288, seed=99).reshape(10, 3, 64, 64))
    some = load("imagenet64", tree("imagenet64"), batches=6)
    assert len(some.train) + len(some.validation) == 606
    with pytest.raises(BadInput, match=r"data.batches=11: there are 10 training files"):
        load("imagenet64", tree("imagenet64"), batches=11)


def test_what_does_not_fit_memory_is_refused_before_it_is_read(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1e7}))
    with pytest.raises(BadInput, match=r"need about 0 GB of memory, 0 GB are free; set data.batches"):
        load("imagenet64", tree("imagenet64"))


@pytest.mark.parametrize("name", TREES)
def test_published_augmentation(tree: Tree, name: str) -> None:
    augment = load(name, tree(name)).augment
    expected = {
        "cifar10": {"crop": 2, "padding": "edge", "flip": True},
        "cifar100": {"crop": 2, "padding": "edge", "flip": True},
        "tinyimagenet": {"crop": 4, "padding": "edge", "flip": True},
        "imagenet64": {"crop": 4, "padding": "edge", "flip": True},
    }
    assert getattr(augment, "keywords", None) == expected.get(name)


def test_options_of_augmentation(tree: Tree) -> None:
    assert load("cifar10", tree("cifar10"), flip=False, crop=0).augment is None
    changed: Any = load("fashion-mnist", tree("fashion-mnist"), crop=1, padding="zeros").augment
    assert changed.keywords == {"crop": 1, "padding": "zeros", "flip": False}
    with pytest.raises(BadInput, match=r"data.crop=32: must be less than the images' 32 pixels"):
        load("cifar10", tree("cifar10"), crop=32)
    with pytest.raises(BadInput, match=r"data.padding=mirror"):
        resolve({"data.name": "cifar10", "data.padding": "mirror"})
    with pytest.raises(BadInput, match=r"data.flips is not an option: did you mean 'flip'"):
        resolve({"data.name": "cifar10", "data.flips": True})


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_archive_is_downloaded_once_with_its_checksum(
    tree: Tree, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pooch

    asked = []

    def retrieve(url: str, known_hash: str, fname: str, path: Path, processor: Any) -> list[str]:
        asked.append((url, known_hash))
        place = path / next(tree(name).iterdir()).name
        if not place.exists():
            path.mkdir(parents=True, exist_ok=True)
            place.symlink_to(next(tree(name).iterdir()))
        return []

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    assert load(name, None).test.images.equal(load(name, tree(name)).test.images)
    assert [(url.rpartition("/")[0], known[:4]) for url, known in asked] == [
        ("https://www.cs.toronto.edu/~kriz", "md5:")
    ]


def test_a_downloaded_archive_is_unpacked(tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By pooch itself, from a file in place of the network."""
    import hashlib
    import tarfile

    archive = tmp_path / "small.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(tree("cifar10") / "cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setenv("CTKD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "data" / "cifar").mkdir(parents=True)
    (tmp_path / "cache" / "data" / "cifar" / "small.tar.gz").write_bytes(archive.read_bytes())
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()  # noqa: S324
    place = files.download("cifar10", "https://nowhere.invalid/small.tar.gz", md5, "cifar", untar=True)
    assert load("cifar10", place).test.images.equal(load("cifar10", tree("cifar10")).test.images)


# Decoded images ------------------------------------------------------------------------------------------


@pytest.fixture
def reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A cache of its own, and the image files that were opened."""
    monkeypatch.setenv("CTKD_CACHE", str(tmp_path / "cache"))
    found: list[Path] = []
    real = pictures.opened

    def opened(path: Path) -> Any:
        found.append(path)
        return real(path)

    monkeypatch.setattr(pictures, "opened", opened)
    return found


def test_images_are_decoded_once_and_again_where_the_cache_is_damaged(
    tree: Tree, tmp_path: Path, reads: list[Path]
) -> None:
    first = load("gtsrb", tree("gtsrb"))
    assert len(reads) == 5 * 43
    assert load("gtsrb", tree("gtsrb")).train.images.equal(first.train.images)
    assert len(reads) == 5 * 43
    kept = sorted((tmp_path / "cache" / "data" / "decoded").iterdir(), key=lambda path: path.stat().st_size)
    damaged = bytearray(kept[1].read_bytes())
    damaged[-100] ^= 1  # one bit of one pixel, which the format itself does not notice
    kept[1].write_bytes(damaged)
    kept[0].write_bytes(kept[0].read_bytes()[:-5])
    again = load("gtsrb", tree("gtsrb"))
    assert len(reads) == 10 * 43
    assert again.train.images.equal(first.train.images)
    assert again.test.images.equal(first.test.images)


def test_a_changed_image_is_decoded_again(tmp_path: Path, reads: list[Path]) -> None:
    from PIL import Image

    TREES["gtsrb"][0](tmp_path)
    before = load("gtsrb", tmp_path)
    path = tmp_path / "GTSRB" / "Final_Test" / "Images" / "00003.ppm"
    Image.fromarray(noise(40, 32, 3, seed=5)).save(path)  # as many bytes
    after = load("gtsrb", tmp_path)
    changed = (after.test.images != before.test.images).any(3).any(2).any(1)
    assert changed.nonzero().flatten().tolist() == [3]


def test_a_cache_that_cannot_be_written_only_costs_time(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CTKD_CACHE", str(tmp_path / "file"))
    check_data(load("gtsrb", tree("gtsrb")))


# A run ---------------------------------------------------------------------------------------------------


def test_a_student_is_trained_from_the_command_line(
    tmp_path: Path, ctkd_command: Callable[..., tuple[int, str, str]]
) -> None:
    cifar10(tmp_path)
    settings = [f"--set={key}={value}" for key, value in {**QUICK, "certify.samples": 4}.items()]
    settings += ["--set=data.validation=20", "--set=train.batch_size=20", "--set=model.width=2", "--set=model.hidden=8"]
    command = ["train", "--dataset", "cifar10", "--data-dir", tmp_path, "--teacher", "none", "--bound", "ibp"]
    code, _, errors = ctkd_command(*command, "--out", tmp_path / "run", *settings)
    assert code == 0, errors
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["samples"] == 4
    config = (tmp_path / "run" / "config.toml").read_text()
    assert "eps = 0.00784313725490196" in config
    assert "0.4914" in config


def test_normalisation_goes_to_the_models_that_have_it() -> None:
    for name in ("cnn7", "resnet"):
        options: Any = resolve({"data.name": "cifar10", "model.name": name}).model.options
        assert options.std == (0.2023, 0.1994, 0.2010)
    assert resolve({"data.name": "cifar10", "model.name": "mlp"}).train.eps == 2 / 255
    options = resolve({"data.name": "cifar10", "train.eps": "8/255"}).model.options
    assert options.mean == (0.4914, 0.4822, 0.4465)


def test_results_do_not_depend_on_the_size_of_a_batch(tree: Tree) -> None:
    from ctkd.randomness import Noise

    data = load("cifar10", tree("cifar10"))
    assert data.augment is not None
    rows = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    whole, parts = (
        torch.cat([data.augment(data.train.images[r], Noise(0, "x", 3, samples=r)) for r in rows.split(size)])
        for size in (80, 7)
    )
    assert whole.equal(parts)


def test_pickles_of_other_pythons(tmp_path: Path) -> None:
    place = tmp_path / "cifar-100-python"
    place.mkdir()
    for name, protocol in (("train", 5), ("test", 3)):
        contents = {"data": noise(200, 3072, seed=protocol), "fine_labels": [i % 100 for i in range(200)]}
        (place / name).write_bytes(pickle.dumps(contents, protocol=protocol))
    assert len(load("cifar100", tmp_path).test) == 200
    assert as_python2({b"x": 1}) != pickle.dumps({b"x": 1}, protocol=2)
