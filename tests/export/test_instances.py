# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""A folder of instances: its layout, its boxes, and that it appears whole or not at all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

import ctkd.export.instances as room
from ctkd.boxes import perturbation_box
from ctkd.errors import BadInput, Contradiction, RunFailed
from ctkd.export import ExportReport, compare, export_instances, read_vnnlib, runner, to_onnx
from ctkd.propagate import Network, Node, margins_of
from ctkd.propagate.ops import Linear, Relu

from .conftest import Digits


def export(trained: dict[str, Network], digits: Digits, folder: Path, **changes: Any) -> ExportReport:
    rows = [3, 11, 40]
    options: dict[str, Any] = {
        "network": trained["cnn"],
        "images": digits.images[rows],
        "labels": digits.labels[rows],
        "indices": rows,
        "eps": 2 / 255,
        "folder": folder,
        "name": "digits_cnn",
        "timeout": 20,
    }
    return export_instances(**(options | changes))


def test_layout(tmp_path: Path, trained: dict[str, Network], digits: Digits) -> None:
    folder = tmp_path / "made" / "bench"
    report = export(trained, digits, folder, certified=[11, 40])
    stem = "vnnlib/digits_cnn_eps0.00784313725490196_idx"
    paths = [f"{stem}{i}.vnnlib" for i in (3, 11, 40)]
    assert report.folder == folder.resolve()
    assert (report.model, report.specifications) == ("onnx/digits_cnn.onnx", tuple(paths))
    assert (report.replayed, report.timeouts) == (2, 60)
    assert report.difference <= 1e-4
    found = sorted(str(p.relative_to(folder).as_posix()) for p in folder.rglob("*") if p.is_file())
    assert found == sorted(["instances.csv", "onnx/digits_cnn.onnx", *paths])
    rows = (folder / "instances.csv").read_bytes().decode()
    assert rows == "".join(f"onnx/digits_cnn.onnx,{path},20\n" for path in paths)
    assert [p.name for p in folder.parent.iterdir()] == ["bench"]
    compare(onnx.load(folder / "onnx" / "digits_cnn.onnx"), trained["cnn"])


@pytest.mark.parametrize("eps", [0.0, 1e-5, 2 / 255, 0.1, 1])
def test_boxes_are_those_that_are_certified(
    tmp_path: Path, trained: dict[str, Network], digits: Digits, eps: float
) -> None:
    report = export(trained, digits, tmp_path / "bench", eps=eps)
    box = perturbation_box(digits.images[[3, 11, 40]], eps)
    for k, path in enumerate(report.specifications):
        assert re.fullmatch(r"vnnlib/digits_cnn_eps[0-9]+(\.[0-9]+)?_idx[0-9]+\.vnnlib", path)
        prop = read_vnnlib((report.folder / path).read_bytes().decode())
        assert prop.lower.tobytes() == box.lower[k].numpy().tobytes()
        assert prop.upper.tobytes() == box.upper[k].numpy().tobytes()
        assert (prop.label, prop.classes) == (int(digits.labels[[3, 11, 40][k]]), 10)


@pytest.mark.parametrize(
    ("timeout", "text"), [(20, "20"), (20.0, "20"), (0.5, "0.5"), (1e6, "1000000"), (1e-5, "0.00001")]
)
def test_timeouts_have_no_exponent(
    tmp_path: Path, trained: dict[str, Network], digits: Digits, timeout: float, text: str
) -> None:
    report = export(trained, digits, tmp_path / "bench", timeout=timeout)
    lines = (report.folder / "instances.csv").read_text().splitlines()
    assert {line.split(",")[2] for line in lines} == {text}


def test_an_empty_folder_is_used(tmp_path: Path, trained: dict[str, Network], digits: Digits) -> None:
    (tmp_path / "bench").mkdir()
    export(trained, digits, tmp_path / "bench")
    assert (tmp_path / "bench" / "instances.csv").is_file()


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path, trained: dict[str, Network], digits: Digits) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(
        BadInput, match=re.escape(f"{tmp_path.resolve()} is not empty; name a folder that does not exist")
    ):
        export(trained, digits, tmp_path)
    with pytest.raises(BadInput, match=r"kept.txt is a file; name a folder"):
        export(trained, digits, tmp_path / "kept.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["kept.txt"]


def test_all_mistakes_are_reported_at_once(tmp_path: Path, trained: dict[str, Network], digits: Digits) -> None:
    with pytest.raises(BadInput) as caught:
        export(
            trained,
            digits,
            tmp_path / "bench",
            images=digits.images[:2].double() * 2,
            labels=[3, 10, -1],
            indices=[4, 4],
            eps=8,
            name="my net,v2",
            timeout=float("inf"),
            certified=[5, 4],
        )
    assert caught.value.messages == (
        "images are torch.float64; boxes are made from float32 images",
        "images must lie in [0, 1]; normalisation belongs inside the network",
        "2 images, 3 labels and 2 indices; need as many of each",
        "labels [-1, 10] are outside of 0 to 9",
        "indices must be different from each other and not negative",
        "certified names [5], which are not among the indices to export",
        "eps=8 is outside [0, 1]; radii are in raw pixel units, did you mean 8/255?",
        "name 'my net,v2' is not usable in instances.csv; accepted: letters, digits, '.', '_' and '-', "
        "beginning with a letter or digit",
        "timeout=inf must be a finite number of seconds above 0",
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"images": torch.zeros(3, 64)},
            r"images have shape \(3, 64\); the network takes \(n, 1, 8, 8\), n >= 1",
        ),
        (
            {"images": torch.zeros(0, 1, 8, 8), "labels": [], "indices": []},
            r"images have shape \(0, 1, 8, 8\)",
        ),
        ({"images": torch.full((3, 1, 8, 8), torch.nan)}, r"images must lie in \[0, 1\]"),
        ({"eps": float("nan")}, r"eps=nan is outside \[0, 1\]; radii are in raw pixel units$"),
        ({"eps": -0.1}, r"eps=-0.1 is outside \[0, 1\]"),
        ({"timeout": 0}, r"timeout=0 must be a finite number"),
        ({"timeout": float("nan")}, r"timeout=nan must be a finite number"),
        ({"name": ""}, r"name '' is not usable"),
        ({"name": "../up"}, r"name '../up' is not usable"),
        ({"name": "line\n"}, r"is not usable"),
    ],
)
def test_refusals(
    tmp_path: Path, trained: dict[str, Network], digits: Digits, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        export(trained, digits, tmp_path / "bench", **changes)
    assert not list(tmp_path.iterdir())


# Claims ---------------------------------------------------------------------------------------------------


def test_a_misclassified_image_contradicts_its_certificate(
    tmp_path: Path, trained: dict[str, Network], digits: Digits
) -> None:
    wrong = (digits.labels[[3, 11, 40]] + 1) % 10
    with pytest.raises(
        Contradiction, match=r"sample 11 is claimed certified for class .* at eps=0.0078.* the image itself"
    ):
        export(trained, digits, tmp_path / "bench", labels=wrong, certified=[11])
    assert not list(tmp_path.iterdir())
    export(trained, digits, tmp_path / "bench", labels=wrong)  # a property that fails is a property


def kinked(threshold: float) -> Network:
    """Class 0 wins by 1 except where x_0 exceeds ``threshold``; with equality at ``threshold + 0.1``."""
    first = Linear(torch.tensor([[10.0, 0.0]]), torch.tensor([-10 * threshold]))
    last = Linear(torch.tensor([[0.0], [1.0]]), torch.tensor([1.0, 0.0]))
    nodes = [
        Node(None, (), (2,), "input"),
        Node(first, (0,), (1,), "first"),
        Node(Relu(), (1,), (1,), "relu"),
    ]
    return Network((*nodes, Node(last, (2,), (2,), "last")))


def test_a_corner_contradicts_a_certificate(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {
        "labels": [0],
        "indices": [7],
        "eps": 0.25,
        "name": "kink",
        "timeout": 1,
        "certified": [7],
    }
    images = torch.full((1, 2), 0.5)
    export_instances(kinked(0.7), images, folder=tmp_path / "holds", **arguments)
    with pytest.raises(
        Contradiction, match=r"sample 7 .* for class 0 at eps=0.25, but a corner of its box has margin -0.5"
    ):
        export_instances(kinked(0.6), images, folder=tmp_path / "bench", **arguments)
    assert [p.name for p in tmp_path.iterdir()] == ["holds"]


def test_a_tie_contradicts_a_certificate(tmp_path: Path) -> None:
    last = Linear(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.zeros(2))
    network = Network((Node(None, (), (2,), "input"), Node(last, (0,), (2,), "last")))
    with pytest.raises(Contradiction, match="has margin 0 in onnxruntime"):
        export_instances(
            network,
            torch.full((1, 2), 0.5),
            [0],
            [0],
            0.1,
            tmp_path / "b",
            name="tie",
            timeout=1,
            certified=[0],
        )


def test_corners_that_are_replayed_lie_in_the_box(trained: dict[str, Network], digits: Digits) -> None:
    """And every coordinate is met at both of its ends."""
    seen = []
    run = runner(to_onnx(trained["cnn"]))
    image, label = digits.images[3], int(digits.labels[3])
    box = perturbation_box(image[None], 0.01)
    room.replay(lambda x: seen.append(x) or run(x), image, box, label, 3, 0.01)
    points = torch.from_numpy(seen[0])
    assert torch.equal(points[0], image)
    corners = points[1:]
    assert len(corners) == room.CORNERS
    assert ((corners == box.lower) | (corners == box.upper)).all()
    assert torch.equal(corners.amin(0), box.lower[0])
    assert torch.equal(corners.amax(0), box.upper[0])


# Failures on the way --------------------------------------------------------------------------------------


def test_a_box_that_reads_back_differently_stops_the_export(
    tmp_path: Path, trained: dict[str, Network], digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven digits instead of all of them: the mistake that the read-back is there for."""
    write = room.write_vnnlib

    def rounded(prop: Any, *, eps: float) -> str:
        nearby = perturbation_box(torch.from_numpy(prop.lower.copy())[None], 1e-7)
        return write(room.RobustnessProperty(nearby.lower[0].numpy(), prop.upper, prop.label, prop.classes), eps=eps)

    monkeypatch.setattr(room, "write_vnnlib", rounded)
    with pytest.raises(RunFailed, match=r"vnnlib/digits_cnn_eps0\.1_idx3\.vnnlib does not read back as the box"):
        export(trained, digits, tmp_path / "bench", eps=0.1)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_export_leaves_nothing(
    tmp_path: Path, trained: dict[str, Network], digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(text: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(room, "read_vnnlib", stop)
    with pytest.raises(KeyboardInterrupt):
        export(trained, digits, tmp_path / "bench")
    assert not list(tmp_path.iterdir())


def test_the_folder_appears_by_one_rename(
    tmp_path: Path, trained: dict[str, Network], digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a process that is killed before it leaves nothing under the folder's name."""

    def fail(self: Path, target: Path) -> None:
        assert (self / "instances.csv").is_file()
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(BadInput, match="bench cannot be written: Input/output error"):
        export(trained, digits, tmp_path / "bench")
    assert not list(tmp_path.iterdir())


def test_a_model_that_differs_is_not_written(
    tmp_path: Path, trained: dict[str, Network], digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "to_onnx", lambda network: to_onnx(network.map(lambda tensor: tensor * 1.01)))
    with pytest.raises(RunFailed, match="differs from the network"):
        export(trained, digits, tmp_path / "bench")
    assert not list(tmp_path.iterdir())


def test_an_impossible_place_is_explained(tmp_path: Path, trained: dict[str, Network], digits: Digits) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"file/bench cannot be written: Not a directory"):
        export(trained, digits, tmp_path / "file" / "bench")


def test_images_fit_their_labels(trained: dict[str, Network], digits: Digits) -> None:
    """The fixtures are worth testing with: most digits are right, so certificates can exist."""
    for network in trained.values():
        margins = margins_of(network(digits.images), digits.labels)
        assert ((margins > 0).sum(1) == 9).float().mean() > 0.85
