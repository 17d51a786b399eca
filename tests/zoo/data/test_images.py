"""Decoding of images, and loading of folders of images, valid and invalid."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, GifImagePlugin, Image, TiffImagePlugin

import zoo
from tests.commands import ROOT
from zoo.data.arrays.images import Unreadable, decode
from zoo.errors import RunError, UsageError

RED, BLUE = (200, 30, 20), (10, 40, 220)


pytestmark = pytest.mark.usefixtures("cache")


def save(path, color=RED, size=(40, 30), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path):
    """Two classes in two splits: 4 + 3 and 2 + 2 images."""
    root = tmp_path / "images"
    for split, counts in (("train", (4, 3)), ("val", (2, 2))):
        for name, color, count in zip(("cats", "dogs"), (RED, BLUE), counts, strict=True):
            for i in range(count):
                save(root / split / name / f"{i}.png", (*color[:2], color[2] + i))
    return root


def load(folder, size=(8, 8)):
    return zoo.data.load(f"folder:{folder}", image_size=size)


# --- one file ------------------------------------------------------------------------------------


def halves(left, right, mode="RGB", size=(40, 20)):
    """Returns an image with a left half of one color and a right half of another."""
    image = Image.new(mode, size, left)
    image.paste(right, (size[0] // 2, 0, *size))
    return image


def corners(pixels):
    return pixels[1, 1].tolist(), pixels[-2, -2].tolist()


def close(one, other, gap):
    return np.abs(np.int64(one) - np.int64(other)).max() <= gap


def test_proportions_are_kept_and_the_rest_cut_off_evenly(tmp_path):
    image = Image.new("RGB", (60, 20), BLUE)
    image.paste(RED, (20, 0, 40, 20))  # the square in the middle
    image.save(tmp_path / "wide.png")
    pixels, remarks = decode(tmp_path / "wide.png", (10, 10, 3))
    assert pixels.dtype == np.uint8
    assert close(pixels[:, 1:-1], RED, 0)  # at the border bilinear sees a neighbor
    assert remarks == []


def test_cmyk_looks_as_rgb(tmp_path):
    halves(RED, BLUE).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    pixels, remarks = decode(tmp_path / "a.jpg", (20, 40, 3))
    assert remarks == ["CMYK"]
    assert close(corners(pixels), [RED, BLUE], 12)


@pytest.mark.parametrize(("mode", "remark"), [("L", "gray"), ("1", "gray"), ("P", None)])
def test_few_colors(tmp_path, mode, remark):
    halves((255,) * 3, (0,) * 3).convert(mode).save(tmp_path / "a.png")
    pixels, remarks = decode(tmp_path / "a.png", (20, 40, 3))
    assert corners(pixels) == ([255] * 3, [0] * 3)
    assert remarks == ([remark] if remark else [])
    gray, _ = decode(tmp_path / "a.png", (20, 40, 1))
    assert corners(gray) == ([255], [0])


def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path):
    ramp = np.repeat(np.uint16([[1_000, 30_000, 40_000, 65_535]]), 4, 0)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    pixels, remarks = decode(tmp_path / "a.png", (4, 4, 1))
    assert pixels[0, :, 0].tolist() == [3, 117, 156, 255]
    assert remarks == ["16 bits"]


def test_bytes_in_integers_of_32_bits_are_bytes(tmp_path):
    Image.fromarray(np.int32([[0, 100, 200, 255]] * 4)).save(tmp_path / "a.tif")
    pixels, remarks = decode(tmp_path / "a.tif", (4, 4, 1))
    assert pixels[0, :, 0].tolist() == [0, 100, 200, 255]
    assert remarks == ["gray"]


def test_a_split_may_lack_a_class(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "few")
    for file in (tmp_path / "few" / "val" / "dogs").iterdir():
        file.write_bytes(b"")
    labels = load(tmp_path / "few").splits["validation"]["label"]
    assert set(labels) == {0}
    for file in (tmp_path / "few" / "val" / "cats").iterdir():
        file.write_bytes(b"")
    with pytest.raises(RunError, match="has no readable image"):
        load(tmp_path / "few")


def test_float_pixels_are_refused(tmp_path):
    Image.fromarray(np.float32([[0.1, 0.7]])).save(tmp_path / "a.tif")
    with pytest.raises(Unreadable, match="floats"):
        decode(tmp_path / "a.tif", (4, 4, 1))


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_the_first_frame_of_an_animation_is_used(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    frames = [Image.new("RGB", (20, 20), c) for c in (RED, BLUE, RED)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    pixels, remarks = decode(path, (10, 10, 3))
    assert "animated: first frame" in remarks
    assert close(pixels, RED, 20)


def test_images_are_rotated_by_exif(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees clockwise
    halves(RED, BLUE).save(tmp_path / "a.jpg", exif=exif, quality=95)
    pixels, remarks = decode(tmp_path / "a.jpg", (40, 20, 3))
    assert remarks == ["rotated by EXIF"]
    assert close([pixels[1, -2], pixels[-2, 1]], [RED, BLUE], 12)  # above and below


def test_transparent_pixels_become_white(tmp_path):
    halves((*RED, 255), (0, 0, 0, 0), "RGBA").save(tmp_path / "a.png")
    pixels, remarks = decode(tmp_path / "a.png", (20, 40, 3))
    assert corners(pixels) == (list(RED), [255] * 3)
    assert remarks == ["transparent: on white"]


def broken(path, kind):
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("this is not an image")
    elif kind == "cut off":
        save(path, size=(200, 200))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        save(path, size=(64, 64))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty", "is empty"),
        ("text", "must have one of"),
        ("cut off", "trunc"),
        ("bomb", "bomb"),
    ],
)
def test_an_incomplete_image_is_refused_with_the_reason(tmp_path, kind, message, monkeypatch):
    if kind == "bomb":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    broken(tmp_path / "a.jpg", kind)
    with pytest.raises(Unreadable, match=message):
        decode(tmp_path / "a.jpg", (8, 8, 3))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


def test_no_program_is_started(tmp_path, monkeypatch):
    """Pillow runs Ghostscript on EPS, whatever the name of the file."""
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/executed\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    (tmp_path / "a.jpg").write_bytes(EPS)
    with pytest.raises(Unreadable, match="the file must have one of the formats AVIF"):
        decode(tmp_path / "a.jpg", (8, 8, 3))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("suffix", ["gif", "tif"])
def test_the_frames_of_an_animation_are_not_counted(tmp_path, suffix, monkeypatch):
    """Counting frames reads all of them: a file of 20 MB can have a million."""
    path = tmp_path / f"a.{suffix}"
    frames = [Image.new("RGB", (20, 20), c) for c in (RED, BLUE, RED, BLUE)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    for plugin in (GifImagePlugin.GifImageFile, TiffImagePlugin.TiffImageFile):
        monkeypatch.setattr(plugin, "n_frames", property(lambda _: 1 / 0))
    assert "animated: first frame" in decode(path, (10, 10, 3))[1]


def test_a_file_of_many_bytes_is_not_read(tmp_path):
    """Pillow holds a PNG chunk of declared 2 GB twice."""
    save(tmp_path / "a.png")
    os.truncate(tmp_path / "a.png", 5 << 30)  # takes no space on the disk
    with pytest.raises(Unreadable, match="the file has 5,368,709,120 bytes, more than"):
        decode(tmp_path / "a.png", (8, 8, 3))


def test_the_reason_is_one_sentence(tmp_path):
    with pytest.raises(Unreadable) as error:
        decode(tmp_path, (8, 8, 3))
    assert str(error.value).endswith("it is a folder, not a regular file")


# --- a folder ------------------------------------------------------------------------------------


def test_splits_and_classes_are_folders(folder):
    data = load(folder)
    assert data.class_names == ("cats", "dogs")
    assert {s: a["image"].shape for s, a in data.splits.items()} == {
        "train": (7, 8, 8, 3), "validation": (4, 8, 8, 3)
    }  # fmt: skip
    assert data.splits["train"]["label"].tolist() == [0, 0, 0, 0, 1, 1, 1]
    blue = data.splits["train"]["image"][:, 0, 0, 2]
    assert blue.tolist() == [20, 21, 22, 23, 220, 221, 222]  # sorted by name
    assert data.facts["Images"] == {
        "train images": 7, "validation images": 4, "left out": 0
    }  # fmt: skip
    plain = load(folder / "train", (4, 6, 1))
    assert list(plain.splits) == ["train"]
    assert plain.splits["train"]["image"].shape == (7, 4, 6, 1)


def test_bad_files_are_left_out_by_name_and_counted(folder, capsys):
    for kind in ("empty", "text", "cut off"):
        broken(folder / "train" / "cats" / f"{kind}.jpg", kind)
    exif = Image.Exif()
    exif[0x0112] = 3
    save(folder / "val" / "dogs" / "turned.jpg", BLUE, exif=exif)
    (folder / "train" / "dogs" / ".DS_Store").write_bytes(b"not looked at")
    for _ in range(2):  # the second load reports it too
        data = load(folder)
        assert len(data.splits["train"]["image"]) == 7
        facts = data.facts["Images"]
        assert facts["left out"] == 3
        assert facts["rotated by EXIF"] == 1
        lines = [facts[f"left out {i}"] for i in (1, 2, 3)]
        assert [line.partition(": ")[0] for line in lines] == [
            "train/cats/cut off.jpg", "train/cats/empty.jpg", "train/cats/text.jpg"
        ]  # fmt: skip
        assert capsys.readouterr().err == "".join(f"zoo: left out {line}\n" for line in lines)


def test_files_outside_of_class_folders_are_reported(folder, capsys):
    save(folder / "more" / "cats" / "1.png")
    save(folder / "more" / "2.png")
    (folder / "notes.txt").write_text("labels are by folder")
    (folder / "train" / "list.csv").write_text("0.png")
    (folder / "val" / "cats" / "away").symlink_to(folder / "more", target_is_directory=True)
    (folder / ".DS_Store").write_bytes(b"not looked at")
    lines = ["notes.txt", "more (2 files)", "train/list.csv", "val/cats/away (1 file)"]
    data = load(folder)
    facts = data.facts["Images"]
    assert facts["not used"] == 5
    assert [facts[f"not used {i}"] for i in (1, 2, 3, 4)] == lines
    assert len(data.splits["train"]["image"]) == 7
    assert capsys.readouterr().err == (
        f"zoo: {folder}: 5 files are in no class folder and not used: {', '.join(lines)}\n"
    )
    save(folder / "train" / "3.png")
    load(folder / "train")
    assert "2 files are in no class folder and not used: 3.png, list.csv" in (
        capsys.readouterr().err
    )


def test_a_class_that_training_lacks_is_refused_before_anything_is_decoded(folder, monkeypatch):
    from zoo.data.arrays import images

    monkeypatch.setattr(images, "decode", None)
    save(folder / "val" / "birds" / "1.png")
    with pytest.raises(UsageError, match="has classes that are missing in 'train': 'birds'"):
        load(folder)
    (folder / "train" / "birds").mkdir()
    with pytest.raises(UsageError, match="the folder of 'birds' is empty"):
        load(folder)


def test_labels_without_training_examples_are_reported(tmp_path, capsys):
    image, label = np.zeros((4, 2, 2, 1), "uint8"), np.array([0, 1, 1, 0])
    np.savez(
        tmp_path / "a.npz", train_image=image, train_label=label, test_image=image,
        test_label=label + 1,
    )  # fmt: skip
    zoo.data.load(f"npz:{tmp_path / 'a.npz'}")
    assert "no training example has the class 2, which the split 'test' has" in (
        capsys.readouterr().err
    )


def test_images_are_decoded_once_and_again_when_one_changes(folder, monkeypatch):
    from zoo.data.arrays import images

    calls = []

    def counting(file, shape):
        calls.append(str(file))
        return decode(file, shape)

    monkeypatch.setattr(images, "decode", counting)
    first = load(folder)
    assert len(calls) == 11
    assert load(folder).fingerprint == first.fingerprint
    assert len(calls) == 11
    file = folder / "train" / "cats" / "1.png"
    stamp = os.stat(file)
    save(file, (0, 0, 0))
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    second = load(folder)
    assert len(calls) == 22
    assert second.fingerprint != first.fingerprint
    assert second.splits["train"]["image"][1].max() == 0
    file.rename(folder / "train" / "dogs" / "9.png")  # the same content in another class
    assert load(folder).splits["train"]["label"].tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert load(folder, (9, 9)).splits["train"]["image"].shape == (7, 9, 9, 3)


def test_a_damaged_cache_is_named(folder, tmp_path):
    load(folder)
    file = next((tmp_path / "cache").rglob("image-*.bin"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(RunError, match=re.escape(file.name)):
        load(folder)


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ([(40, 30), (60, 50), (44, 20)], (30, 44, 3)),  # medians
        ([(640, 480)] * 3, (96, 128, 3)),  # reduced
        ([(10, 300)], (128, 4, 3)),
    ],
)
def test_the_size_of_a_folder_follows_its_images(tmp_path, sizes, shape):
    for name in ("a", "b"):
        for i, size in enumerate(sizes):
            save(tmp_path / "images" / name / f"{i}.png", (i, 2, 3), size)
    dataset = load(tmp_path / "images", ())
    assert dataset.splits["train"]["image"].shape[1:] == shape


def test_the_size_follows_rotation_gray_and_damage(tmp_path, caplog):
    root = tmp_path / "images"
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        image = Image.new("L", (30, 20), 7)
        exif = Image.Exif()
        exif[0x0112] = 6  # rotated by 90 degrees
        image.save(root / name / "1.png", exif=exif)
    (root / "a" / "2.png").write_bytes(b"no image")
    dataset = load(root, ())
    assert dataset.splits["train"]["image"].shape == (2, 30, 20, 1)
    assert "images are resized to 30x20x1" in caplog.text
    save(root / "a" / "3.png", (1, 2, 3))
    assert load(root, ()).splits["train"]["image"].shape[-1] == 3
    for file in root.rglob("*.png"):
        file.write_bytes(b"no image")
    with pytest.raises(RunError, match="is a readable image"):
        load(root, ())


def test_what_is_no_folder_of_classes_is_one_line(folder, tmp_path):
    cases = [
        (tmp_path / "nowhere", (8, 8), UsageError, "is not a folder"),
        (folder / "train" / "cats", (8, 8), UsageError, "of at least two classes"),
        (folder, (8, 8, 2), UsageError, "1 or 3 channels"),
        (folder, (0, 8), UsageError, "data.image_size"),
    ]
    shutil.copytree(folder, tmp_path / "twice")
    shutil.copytree(folder / "val", tmp_path / "twice" / "validation")
    cases.append((tmp_path / "twice", (8, 8), UsageError, "two folders for the split"))
    shutil.copytree(folder, tmp_path / "hollow")
    for file in (tmp_path / "hollow" / "train" / "dogs").iterdir():
        file.write_bytes(b"")
    shutil.copytree(folder, tmp_path / "flat")
    shutil.rmtree(tmp_path / "flat" / "val")
    (tmp_path / "flat" / "val").mkdir()
    cases.append((tmp_path / "flat", (8, 8), UsageError, "must have a folder of images per class"))
    cases.append(
        (tmp_path / "hollow", (8, 8), RunError, "class 'dogs' has no readable image.*file is empty")
    )
    for place, size, kind, message in cases:
        with pytest.raises(kind, match=message):
            load(place, size)
    with pytest.raises(UsageError, match="data.image_size requires data.source=folder:"):
        zoo.data.load("digits", image_size=(8, 8))


def test_folders_load_no_tensorflow(folder):
    code = (
        f"import sys, zoo.data; zoo.data.load('folder:{folder}', image_size=(8, 8)); "
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_photographs(tmp_path):
    """Photographs of ants and bees of several sizes."""
    root = Path(os.environ.get("ZOO_DATA_DIR", "")) / "hymenoptera"
    if not root.is_dir():
        pytest.skip("ZOO_DATA_DIR holds no hymenoptera")
    data = load(root, (64, 48))
    assert data.class_names == ("ants", "bees")
    assert data.splits["train"]["image"].shape == (110, 64, 48, 3)
    assert data.splits["validation"]["image"].shape == (60, 64, 48, 3)
    assert data.facts["Images"]["left out"] == 0
    assert np.asarray(data.splits["train"]["image"]).std() > 40


# --- TFDS ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A prepared TFDS dataset of three images of different sizes in two classes."""
    import tensorflow_datasets as tfds

    place = tmp_path_factory.mktemp("tfds")
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=["red", "blue"]),
            "name": tfds.features.Text(),
        }
    )
    rows = [
        {"image": np.full((*size, 3), color, "uint8"), "label": label, "name": "x"}
        for size, color, label in (((9, 5), RED, 0), ((4, 4), BLUE, 1), ((7, 30), RED, 0))
    ]
    tfds.dataset_builders.store_as_tfds_dataset(
        name="spots", version="1.2.0", features=features, data_dir=place, disable_shuffling=True,
        split_datasets={"train": list(enumerate(rows))},
    )  # fmt: skip
    return place


@pytest.mark.slow
def test_any_data_set_of_tfds(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    data = zoo.data.load("tfds:spots:1.2.0", image_size=(6, 6))
    train = data.splits["train"]
    assert data.class_names == ("red", "blue")
    assert train["image"][:, 3, 3].tolist() == [list(RED), list(BLUE), list(RED)]
    assert train["label"].tolist() == [0, 1, 0]
    assert set(train) == {"image", "label"}
    other = zoo.data.load("tfds:spots:1.2.0", image_size=(4, 5, 1))
    assert other.splits["train"]["image"].shape == (3, 4, 5, 1)


def test_what_tfds_has_not_is_one_line(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    for name in ("tfds:spots", "tfds:spots:new", "tfds::1.0.0", "tfds:../spots:1.2.0"):
        with pytest.raises(UsageError, match="must be named with its version"):
            zoo.data.load(name, image_size=(6, 6))
    with pytest.raises(RunError, match="Preparing 'stripes' failed: ") as error:
        zoo.data.load("tfds:stripes:1.0.0", image_size=(6, 6))
    assert "\n" not in str(error.value)


def test_several_sizes_ask_for_one(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    with pytest.raises(RunError, match="several sizes: set data.image_size"):
        zoo.data.load("tfds:spots:1.2.0")
