# SPDX-License-Identifier: MIT
"""What mlb.py promises, in its own order; the slow checks last.

    python -m pytest                     all
    python -m pytest -m "not slow"       those of under 5 s each
    MLB=my_mlb python -m pytest          the same for your own copy, my_mlb.py

Exercises: mlb.py with a function left for you to write (HOLES), or with a bug to find (BUGS).

    python test_mlb.py hole 3 > my_mlb.py && MLB=my_mlb python -m pytest -k exercise03
    python test_mlb.py bug 4 > my_mlb.py && MLB=my_mlb python -m pytest -m "not slow"
"""
import ast
import csv
import hashlib
import importlib
import inspect
import itertools
import json
import math
import operator
import os
import pathlib
import pickle
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
import types

HERE = pathlib.Path(__file__).parent
NAME = os.environ.get("MLB", "mlb")
sys.path.insert(0, os.getcwd())
try:
    import numpy as np
    import pytest
    import torch
    from PIL import Image
    mlb = importlib.import_module("mlb" if __name__ == "__main__" else NAME)
except ImportError as problem:
    if __name__ != "__main__":
        raise
    print(f"test_mlb.py: {problem}; install what requirements.txt lists", file=sys.stderr)
    sys.exit(2)
SAMPLE = HERE / "data_sample"
README = (HERE / "README.md").read_text(encoding="utf-8")
slow = pytest.mark.slow


def same(got, expected, tolerance=1e-6):
    """Fails with what was expected and what came."""
    got, expected = np.asarray(got, float), np.asarray(expected, float)
    assert got.shape == expected.shape, f"expected shape {expected.shape}, got {got.shape}"
    off = np.abs(got - expected).max() if got.size else 0
    assert off <= tolerance, f"expected {expected}, got {got}, off by {off:.3g}"


def main(*arguments):
    """Runs the program in this process -> exit status."""
    return mlb.main([str(a) for a in arguments])


def fails(capsys, *arguments):
    """Runs a command that must end in one line of error and status 2; returns the line."""
    assert main(*arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    lines = [line for line in lines if not line.startswith("mlb: note:")]
    assert len(lines) == 1 and lines[0].startswith("mlb: error: "), lines
    return lines[0]


def script(text, *arguments, **more):
    """Starts a script in a process of its own, where mlb is the tested module."""
    text = f"import sys, time, torch, {NAME} as mlb\n{text}"
    more = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": HERE} | more
    return subprocess.Popen([sys.executable, "-c", text, *map(str, arguments)], **more)


def picture(path, size=(40, 40), mode="RGB", seed=0, **extra):
    """Writes a random picture; returns its path."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    array = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.frombytes(mode, size, array.tobytes()).save(path, **extra)
    return path


def disc(path, size=(40, 40), mode="L", soft=1, share=1 / 3):
    """Writes a label: a white disc on black; its edge is soft pixels wide, 0 for a hard one."""
    y, x = np.mgrid[:size[1], :size[0]]
    inside = min(size) * share - np.hypot(x - size[0] / 2, y - size[1] / 2)
    values = (inside / soft + 0.5).clip(0, 1) if soft else inside > 0
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.uint8(255 * values)).convert(mode).save(path)
    return path


def make_toy(root):
    """A toy data set in the layout of data_sample: 3 cut-outs, 2 backgrounds, 4 photos, 2 tests."""
    for folder, count in (("matte/foreground", 3), ("matte/background", 2),
                          ("segmentation/image", 4), ("test/image", 2)):
        for k in range(count):
            picture(root / folder / f"{k}.jpg", seed=k)
    for folder, count, soft in (("matte/alpha", 3, 6), ("segmentation/mask", 4, 0),
                                ("segmentation/alpha", 4, 4), ("test/alpha", 2, 5)):
        for k in range(count):
            disc(root / folder / f"{k}.png", soft=soft, share=0.3 + 0.02 * k)
    return root


@pytest.fixture
def toy(tmp_path):
    """The toy data set, new for each test."""
    return make_toy(tmp_path / "toy")


SMALL = "--size 32 --width 8 --batch 4 --teacher-steps 5 --steps 6 --device cpu".split()


def tiny(command, toy, out, *more):
    """The arguments of a small run of train or compare."""
    return [command, "--data", str(toy), "--out", str(out), *SMALL, *map(str, more)]


def options(toy, *more):
    """The options of a small run, checked."""
    o = mlb.parse(tiny("train", toy, toy / "out", *more))
    mlb.check(o)
    return o


def mixer(data, mix, size=32, seed=0, guided=False):
    """A mixer over a data set in the layout of data_sample."""
    return mlb.Mixer(mlb.pairs(data / "matte/foreground", data / "matte/alpha"),
                     list(mlb.pictures(data / "matte/background").values()),
                     mlb.pairs(data / "segmentation/image", data / "segmentation/mask"),
                     mix, size, seed, guided)


def state(path):
    """What a row's file holds, read without mlb."""
    return torch.load(path, weights_only=True)


def weights(out, row="MLB.0"):
    """A row's network as one vector."""
    return torch.cat([v.flatten().double() for v in state(out / f"{row}.pt")["net"].values()])


def log(path):
    """A row's CSV: {column: [a number a step]}."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in rows[0]}


def files_of(folder):
    """What must not change: {name: (bytes, time of writing)}."""
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(data, out, what it said) of a small run of train."""
    root = tmp_path_factory.mktemp("trained")
    done = script("sys.exit(mlb.main(sys.argv[1:]))",
                  *tiny("train", make_toy(root / "toy"), root / "out"))
    said, errors = done.communicate(timeout=300)
    assert done.returncode == 0 and not errors, errors
    return root / "toy", root / "out", said


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """(data, out, {(row, seed): the samples that its training took}) of a small comparison."""
    root, taken, rows = tmp_path_factory.mktemp("compared"), {}, []
    take, fit = mlb.Mixer.__getitem__, mlb.fit

    def spied(self, i):
        sample = take(self, i)
        if rows:
            taken[rows[-1]].append(sample)
        return sample

    def fitted(name, seed, *rest, **more):
        rows.append((name, seed))
        taken[name, seed] = []
        return fit(name, seed, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlb.Mixer, "__getitem__", spied)
        patch.setattr(mlb, "fit", fitted)
        toy, out = make_toy(root / "toy"), root / "out"
        assert main(*tiny("compare", toy, out, "--seeds", 2, "--steps", 2, "--teacher-steps", 2,
                          "--mix", 0.5)) == 0
    return toy, out, taken


# ---------------------------------------------------------------- 1 Data


def test_pictures_are_found_nested_and_linked_and_strays_are_not(tmp_path):
    root = tmp_path / "root"
    for name in ("b.JPG", "a/c.png", "._b.jpg", ".DS_Store", "Thumbs.db", "notes.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    picture(tmp_path / "elsewhere/d.webp")
    picture(tmp_path / "e.tif")
    (root / "folder").symlink_to(tmp_path / "elsewhere")
    (root / "f.tif").symlink_to(tmp_path / "e.tif")
    found = {stem: str(path.relative_to(root)) for stem, path in mlb.pictures(root).items()}
    assert found == {"b": "b.JPG", "c": "a/c.png", "d": "folder/d.webp", "f": "f.tif"}
    picture(root / "deep/b.png")
    with pytest.raises(mlb.UserError, match=r"b\.(png|JPG).*same name.*b\.(png|JPG)"):
        mlb.pictures(root)
    (tmp_path / "empty").mkdir()
    for name in ("nowhere", "empty"):
        with pytest.raises(mlb.UserError, match=name):
            mlb.pictures(tmp_path / name)


def test_pairs_leaves_out_the_lonely_and_refuses_strangers(tmp_path, capsys):
    for name in ("i/1.png", "i/2.png", "i/4.png", "i/7.png", "m/1.jpg", "m/3.jpg", "x/9.png"):
        picture(tmp_path / name)
    assert mlb.pairs(tmp_path / "i", tmp_path / "m") == [(tmp_path / "i/1.png", tmp_path / "m/1.jpg")]
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "4 pictures" in said and "mlb: note: " in said
    assert [name in said for name in ("2.png", "3.jpg", "4.png", "7.png")] == [True] * 3 + [False]
    with pytest.raises(mlb.UserError, match="no picture has a partner"):
        mlb.pairs(tmp_path / "i", tmp_path / "x")
    picture(tmp_path / "x/2.png")
    assert len(mlb.pairs(tmp_path / "x", tmp_path / "i")) == 1
    assert len(mlb.pairs(tmp_path / "i", tmp_path / "i")) == 4
    assert "left out" not in capsys.readouterr().err.replace("9.png", "").partition("\n")[2]


TURNS = {5: lambda x: x.swapaxes(0, 1), 6: lambda x: np.rot90(x, -1),
         7: lambda x: np.rot90(x, 2).swapaxes(0, 1), 8: lambda x: np.rot90(x)}


@pytest.mark.parametrize("suffix, turn", [("jpg", 6), *itertools.product(("png", "tif"), TURNS)])
def test_photos_and_labels_are_read_upright(suffix, turn, tmp_path):
    array = np.zeros((32, 48, 3), np.uint8)
    array[:16], array[:, :16] = 255, 128
    exif = Image.Exif()
    exif[0x0112] = turn
    for name, stored in (("p", array), ("l", array[..., 0])):
        Image.fromarray(stored).save(tmp_path / f"{name}.{suffix}", exif=exif)
    same(mlb.read(tmp_path / f"p.{suffix}"), TURNS[turn](array), 4 if suffix == "jpg" else 0)
    pair = mlb.read_pair(tmp_path / f"p.{suffix}", tmp_path / f"l.{suffix}")
    assert pair.shape == (48, 32, 4) and pair.dtype == np.uint8
    same(pair[..., 3], TURNS[turn](array[..., 0]), 4 if suffix == "jpg" else 0)


def test_large_pictures_are_shrunk_but_never_below_what_is_asked(tmp_path):
    jpg, png = picture(tmp_path / "p.jpg", (800, 640)), picture(tmp_path / "p.png", (400, 300))
    for path, short, expected in ((jpg, 0, (800, 640)), (jpg, 150, (200, 160)),
                                  (jpg, 161, (400, 320)), (png, 60, (80, 60)), (png, 0, (400, 300)),
                                  (png, 151, (400, 300)), (png, 150, (200, 150)),
                                  (png, 999, (400, 300))):
        assert mlb.read(path, short=short).size == expected, (path, short)


def test_labels_of_every_kind_mean_the_same(tmp_path):
    truth = np.asarray(Image.open(disc(tmp_path / "L.png", soft=0)))
    disc(tmp_path / "bit.png", mode="1", soft=0)
    disc(tmp_path / "rgb.png", mode="RGB", soft=0)
    Image.fromarray(truth // 255).save(tmp_path / "zero_one.png")
    Image.fromarray(truth // 255).convert("RGB").save(tmp_path / "zero_one_rgb.png")
    for colour, name in (((200, 10, 10, 0), "aisegment"), ((90, 90, 90, 0), "grey")):
        rgba = Image.new("RGBA", (40, 40), colour)
        rgba.putalpha(Image.fromarray(truth))
        rgba.save(tmp_path / f"{name}.png")
    opaque = Image.fromarray(truth).convert("RGBA")
    opaque.save(tmp_path / "opaque.png")
    for path in sorted(tmp_path.iterdir()):
        label = mlb.read(path, label=True)
        assert label.mode == "L", path
        assert np.array_equal(np.asarray(label), truth), path
    for level in (0, 128, 200):
        Image.new("L", (40, 40), level).save(tmp_path / "level.png")
        assert mlb.read(tmp_path / "level.png", label=True).getextrema() == (level, level)


@pytest.mark.parametrize("kind, sign", {
    "palette": "palette", "colour": "colour", "opaque": "colour", "deep": "16", "float": "32",
    "two": "2", "classes": "127", "cmyk": "colour"}.items())
def test_a_label_that_could_mean_several_things_is_refused(kind, sign, tmp_path):
    truth = np.asarray(Image.open(disc(tmp_path / "L.png", soft=0)))
    person, path = Image.fromarray(truth), tmp_path / "label.png"
    if kind == "cmyk":
        picture(path := tmp_path / "label.jpg", mode="CMYK")
    elif kind == "float":
        Image.fromarray(truth.astype(np.float32)).save(path := tmp_path / "label.tif")
    else:
        red = Image.merge("RGB", (person, *[Image.new("L", (40, 40))] * 2))
        {"palette": person.convert("P"), "colour": red, "opaque": red.convert("RGBA"),
         "deep": Image.fromarray(truth.astype(np.uint16) * 257),
         "two": Image.fromarray(truth // 255 * 2),
         "classes": Image.fromarray(truth // 255 * 127)}.get(kind).save(path)
    with pytest.raises(mlb.UserError, match=sign) as caught:
        mlb.read(path, label=True)
    assert str(path) in str(caught.value) and "save it" in str(caught.value)


def test_photos_of_every_kind_become_rgb(tmp_path):
    picture(tmp_path / "cmyk.jpg", mode="CMYK")
    picture(tmp_path / "grey.jpg", mode="L")
    picture(tmp_path / "progressive.jpg", progressive=True)
    picture(tmp_path / "rgba.png", mode="RGBA")
    picture(tmp_path / "la.png", mode="LA")
    picture(tmp_path / "lossless.webp")
    Image.open(picture(tmp_path / "x.png")).convert("P").save(tmp_path / "p.png", transparency=0)
    frames = [Image.new("RGB", (40, 40), c) for c in ("red", "blue")]
    for name in ("a.gif", "a.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
    for path in sorted(tmp_path.iterdir()):
        image = mlb.read(path)
        assert image.mode == "RGB" and image.size == (40, 40), path
    assert mlb.read(tmp_path / "a.gif").getpixel((5, 5)) in ((254, 0, 0), (255, 0, 0))
    Image.fromarray(np.full((40, 40), 65535, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(mlb.UserError, match="deep.png.*16"):
        mlb.read(tmp_path / "deep.png")


def test_profiles_of_other_colours_than_rgb_are_dropped(tmp_path):
    for mode, kept in (("RGB", b"profile"), ("CMYK", None), ("L", None)):
        path = picture(tmp_path / f"{mode}.jpg", mode=mode, icc_profile=b"profile")
        assert mlb.read(path).info.get("icc_profile") == kept, mode


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n%%EOF\n"


def hostile(folder):
    """{kind: path} of files that no program likes to meet."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = picture(folder / "whole.jpg", (300, 300)).read_bytes()
    png = picture(folder / "whole.png", (300, 300)).read_bytes()
    for name, content in {"zero.jpg": b"", "cut.jpg": whole[:len(whole) // 2], "eps.png": EPS,
                          "cut.png": png[:len(png) // 2], "text.jpg": b"not a picture\n" * 9,
                          "page.png": b"<!DOCTYPE html><html></html>", "new\nline.jpg": b"x",
                          "ünï çødé.jpg": b"x", "-dash.jpg": b"x", "with space.jpg": b"x"}.items():
        (folder / name).write_bytes(content)
    for name, size in {"one.png": (1, 1), "small.png": (15, 40), "low.png": (40, 15),
                       "thin.png": (16, 257), "flat.png": (257, 16)}.items():
        picture(folder / name, size)
    Image.new("1", (20000, 20000)).save(folder / "bomb.png")
    (folder / "circle.jpg").symlink_to("circle.jpg")
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    for name in ("whole.jpg", "whole.png"):
        (folder / name).unlink()
    return {p.name: p for p in folder.iterdir()} | {"gone.jpg": folder / "gone.jpg"}


def test_hostile_files_are_named_in_one_error(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)  # no interpreter is started
    monkeypatch.setattr(os, "system", None)
    for name, path in hostile(tmp_path / "h").items():
        with pytest.raises(mlb.UserError) as caught:
            mlb.read(path)
        assert str(path) in str(caught.value), name
    for size in ((16, 16), (16, 256), (256, 16)):
        assert mlb.read(picture(tmp_path / "p.png", size)).size == size


def test_what_can_not_be_read_for_want_of_permission_is_named(tmp_path):
    path, user = picture(tmp_path / "p.png"), os.geteuid()
    path.chmod(0)
    if user == 0:
        os.seteuid(65534)  # root may read anything
    try:
        with pytest.raises(mlb.UserError, match="p.png"):
            mlb.read(path)
    finally:
        os.seteuid(user)


def test_a_pair_is_one_picture_whatever_its_files_decode_to(tmp_path):
    """A JPEG decodes at an eighth, a PNG does not: what is left of both lies pixel upon pixel."""
    photo = disc(tmp_path / "p.jpg", (1010, 900), "RGB")
    mask = disc(tmp_path / "p.png", (1010, 900))
    for short in (0, 50, 100, 130, 899):
        pair = mlb.read_pair(photo, mask, short)
        assert pair.shape[2] == 4 and pair.dtype == np.uint8 and min(pair.shape[:2]) >= short
        assert short == 0 or min(pair.shape[:2]) < 2 * short
        assert abs(pair[..., 0].astype(float) - pair[..., 3]).mean() < 5
    assert np.array_equal(mlb.read_pair(photo), np.asarray(mlb.read(photo)))


@pytest.mark.parametrize("size, fits", [((100, 101), True), ((101, 100), True), ((50, 50), True),
                                        ((100, 103), False), ((103, 100), False), ((50, 48), False)])
def test_a_pair_of_other_aspects_is_refused_by_name(size, fits, tmp_path):
    photo, label = picture(tmp_path / "p.png", (100, 100)), disc(tmp_path / "l.png", size)
    if fits:
        assert mlb.read_pair(photo, label).shape == (100, 100, 4)
    else:
        with pytest.raises(mlb.UserError, match="l.png.*p.png"):
            mlb.read_pair(photo, label)


def test_composite_exercise02():
    F, B = np.array([1.0, 0.5, 0.0]), np.array([0.0, 0.5, 1.0])
    same(mlb.composite(F, 0.25, B), [0.25, 0.5, 0.75])
    rng = np.random.default_rng(0)
    F, B, a = rng.random((3, 4, 5)), rng.random((3, 4, 5)), rng.random((1, 4, 5))
    image = mlb.composite(F, a, B)
    same(mlb.composite(F, np.ones_like(a), B), F)
    same(mlb.composite(F, np.zeros_like(a), B), B)
    assert (image >= np.minimum(F, B) - 1e-9).all() and (image <= np.maximum(F, B) + 1e-9).all()
    same((image - B) / (F - B), np.broadcast_to(a, F.shape))  # the equation solved for alpha


def test_degrade_changes_light_focus_and_noise_in_bounds():
    grey, means, noises, tints = np.full((32, 32, 3), 128, np.uint8), [], [], []
    for k in range(300):
        x = mlb.degrade(grey, np.random.default_rng(k))
        assert x.shape == (32, 32, 3) and x.dtype == np.uint8
        means.append(x.mean())
        noises.append(x.std((0, 1)).mean())
        tints.append(x.mean((0, 1)).max() / x.mean((0, 1)).min())
    assert 85 < min(means) < 105 and 152 < max(means) < 180, "light differs, mildly"
    assert 120 < np.mean(means) < 136, "as often up as down"
    assert 0.22 < np.mean(np.array(noises) > 1) < 0.37 and 8 < max(noises) < 11.5, "some have noise"
    assert 1.08 < max(tints) < 1.11, "light is coloured, mildly"
    assert (grey == 128).all(), "a copy is changed"
    edge = np.zeros((32, 32, 3), np.uint8)
    edge[:, 16:] = 255
    changed = np.stack([mlb.degrade(edge, np.random.default_rng(k)) for k in range(300)])
    assert 205 < changed[:, :, 20:].mean() < 260 and changed[:, :, :12].mean() < 2
    quiet = changed[changed[:, :, :8].std((1, 2, 3)) == 0]
    soft = quiet[quiet[:, 16, 15, 0] > 5]
    assert 0.17 < len(soft) / len(quiet) < 0.35, "some are out of focus"
    assert soft[:, 16, 15].max() < 130 and soft[:, 16, 11].max() < 20, "by a pixel or two"
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, 2).repeat(8, 1)
    curves = [mlb.degrade(ramp, np.random.default_rng(k))[..., 0].mean(1) for k in range(60)]
    bent = [(c[128] - c[:1].mean()) / (c[-16] + 1) for c in curves]
    assert min(bent) < 0.5 < 0.58 < max(bent), "midtones brighter and darker: a curve, not a factor"


def test_clutter_draws_on_a_copy_of_a_background():
    grey, drawn, colours = np.full((64, 64, 3), 128, np.uint8), [], []
    for k in range(200):
        x = mlb.clutter(grey, np.random.default_rng(k))
        assert x.shape == (64, 64, 3) and x.dtype == np.uint8
        drawn.append((x != 128).any(2))
        colours.append(len(np.unique(x.reshape(-1, 3), axis=0)) - 1)
    share = np.mean(drawn, axis=(1, 2))
    assert 0.17 < share.mean() < 0.34 and 0.6 < share.max() and (share == 0).sum() < 16
    assert max(colours) in (6, 7), "up to seven shapes"
    assert 2.4 < np.mean(colours) < 4.2
    where = np.mean(drawn, axis=0)
    assert where.min() > 0.05 and where.max() < 0.5, "everywhere, and nowhere always"
    assert (grey == 128).all(), "a copy is drawn on"


def hairy(size=128):
    """A matte: a disc of half the width with a fringe of one-pixel hairs, bytes H×W."""
    y, x = np.mgrid[:size, :size] - size / 2
    matte = np.where(np.hypot(x, y) < size / 4, 255, 0)
    matte[size // 16:size // 4, size // 4:3 * size // 4:6] = 200
    return matte.astype(np.uint8)


def test_hurried_mask_exercise08():
    matte, body = hairy(), np.zeros((128, 128), bool)
    body[34:, :] = hairy()[34:] > 127
    masks = [mlb.hurried_mask(matte, np.random.default_rng(k)) for k in range(60)]
    for k, mask in enumerate(masks):
        assert mask.shape == matte.shape and mask.dtype == np.uint8
        assert set(np.unique(mask)) == {0, 255}, f"expected 0 and 255, got {np.unique(mask)}"
        assert np.array_equal(mask, mlb.hurried_mask(matte, np.random.default_rng(k)))
    found = np.stack(masks) > 0
    overlap = (found & body).sum((1, 2)) / (found | body).sum((1, 2))
    assert overlap.min() > 0.55 and 0.8 < overlap.mean() < 0.985, overlap
    assert overlap.std() > 0.01, "annotators differ"
    assert found[:, 8:20].mean() < 0.02, "hairs are cut off"
    assert found[:, 60:68, 60:68].all(), "the person is kept"
    assert not found[:, 104:].any() and not found[:, :, :16].any(), "and nothing far from it"
    assert (hairy() == matte).all(), "a copy is changed"


def test_hurried_masks_are_blurred_uneven_and_of_low_resolution():
    """A straight edge between black and white, as annotators click it."""
    matte, shifts, ragged, steps = np.zeros((128, 128), np.uint8), [], [], []
    matte[:, 64:] = 255
    for k in range(200):
        mask = mlb.hurried_mask(matte, np.random.default_rng(k)) > 0
        width = 128 - mask.sum(1) - 64  # how far each row's edge is to the right
        shifts.append(width.mean())
        ragged.append(np.ptp(width))
        steps.append(np.abs(np.diff(mask.argmax(1))).max())
    assert -4 < min(shifts) < -0.5 and 1 < max(shifts) < 9 and 0 < np.mean(shifts) < 2.5, shifts
    assert 2 < np.mean(ragged) < 8 and max(ragged) < 22, np.mean(ragged)
    assert min(steps) <= 1 and 2 <= max(steps) < 8, "blocks of up to four pixels"
    wide = np.kron(matte, np.ones((4, 4), np.uint8))  # the same, four times as large
    far = [np.ptp((mlb.hurried_mask(wide, np.random.default_rng(k)) > 0).sum(1)) for k in range(20)]
    assert 2.5 < np.mean(far) / np.mean(ragged[:20]) < 5, "its errors grow with the picture"


def equal(x, y):
    """Two samples, bit for bit."""
    return all(np.array_equal(x[key], y[key]) for key in ("image", "target", "mask", "natural"))


def test_a_sample_is_a_pure_function_of_seed_and_index_exercise05(toy):
    a, b = mixer(toy, 0.5, guided=True), mixer(toy, 0.5, guided=True)
    assert all(equal(a[i], b[i]) for i in (3, 0, 7, 2, 0))
    again = mlb.Mixer(a.composites, [p for p, in a.backgrounds], a.naturals, 0.5, 32)
    assert equal(again[3], mixer(toy, 0.5)[3]), "the seed is 0 where none is given, masks are as they are"
    assert not equal(a[0], a[1]) and not equal(a[0], mixer(toy, 0.5, seed=1)[0])
    assert not equal(a[1], mixer(toy, 0.5, seed=1)[0]), "not of their sum"


def test_samples_are_bytes_and_mixed_as_asked_exercise05(toy):
    for sample in (mixer(toy, mix, guided=True)[0] for mix in (0, 1)):
        shapes = {key: sample[key].shape for key in ("image", "target", "mask")}
        assert shapes == {"image": (3, 32, 32), "target": (1, 32, 32), "mask": (1, 32, 32)}
        assert all(sample[key].dtype == np.uint8 for key in shapes)
        assert isinstance(sample["natural"], bool) and sample["target"].max() > 240
    for mix in (0, 0.25, 1):
        share = np.mean([not mixer(toy, mix)[i]["natural"] for i in range(400)])
        assert abs(share - mix) < 0.07 and (share == mix or 0 < mix < 1), (
            f"expected {mix}, got {share}")


def test_masks_are_hurried_for_composites_of_a_guided_teacher_alone_exercise05(toy):
    for mix, guided in ((0, False), (0, True), (1, False), (1, True)):
        m = mixer(toy, mix, guided=guided)
        differ = [not np.array_equal(m[i]["mask"], m[i]["target"]) for i in range(8)]
        assert any(differ) == (mix == 1 and guided), f"composites {mix}, guided {guided}: {differ}"
        assert not guided or mix == 0 or all(set(np.unique(m[i]["mask"])) <= {0, 255} for i in range(8))


def test_photo_and_label_belong_together_exercise05(tmp_path):
    """Photos that are their own labels come out as their own targets, light and noise aside."""
    for folder in ("i", "m"):
        disc(tmp_path / folder / "1.png", (60, 48), "RGB")
    found = mlb.pairs(tmp_path / "i", tmp_path / "m")
    samples = [mlb.Mixer([], [], found, 0, 32)[i] for i in range(30)]
    for s in samples:
        target, image = s["target"][0], s["image"] / 255
        assert image[:, target > 242].mean() > 0.6 and image[:, target < 13].mean() < 0.15
    places = {tuple(np.argwhere(s["target"][0] > 127).mean(0).round()) for s in samples}
    assert len(places) > 5, "windows differ"


def test_a_person_stands_before_a_background_exercise05(tmp_path):
    """Red people before blue: where alpha is 1 the picture is red, where it is 0 it is blue."""
    for name, colour in (("f/1.png", "red"), ("b/1.png", "blue")):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (48, 48), colour).save(tmp_path / name)
    disc(tmp_path / "a/1.png", (48, 48), soft=8)
    people = mlb.pairs(tmp_path / "f", tmp_path / "a")
    m, blue, plain = mlb.Mixer(people, [tmp_path / "b/1.png"], [], 1.0, 32), [], []
    for s in (m[i] for i in range(150)):
        image, target = s["image"] / 255, s["target"][0] / 255
        red = image[:, target == 1]
        assert red[0].mean() > 0.7, "expected the red of the person, got %.2f, %.2f, %.2f" % tuple(
            red.mean(1))
        assert red[1:].mean() < 0.1 and not s["natural"]
        behind = image[:, target == 0]
        blue.append(behind[2].mean())
        plain.append(bool((behind[2] > 0.6).all() and (behind[:2] < 0.2).all()))
        half = (target > 0.45) & (target < 0.55)
        if plain[-1]:
            ratio = image[0, half].mean() / red[0].mean()
            assert 0.3 < ratio < 0.7, f"where alpha is half expected half the red, got {ratio:.2f}"
    assert np.mean(blue) > 0.5, "the background shows where alpha is 0"
    assert 0.2 < np.mean(plain) < 0.45, "3 of 10 backgrounds are left as they are"
    alone = mlb.Mixer(people, [], [], 1.0, 32)[0]
    assert (alone["image"][0] > 180).all(), "without backgrounds the photo stays as it is"


def test_left_and_right_of_a_sample_exercise05(tmp_path):
    half = np.zeros((40, 40), np.uint8)
    half[:, :20] = 255
    for folder in ("i", "m"):
        (tmp_path / folder).mkdir()
        Image.fromarray(half).save(tmp_path / folder / "1.png")
    m, sides = mlb.Mixer([], [], mlb.pairs(tmp_path / "i", tmp_path / "m"), 0, 32), []
    for s in (m[i] for i in range(60)):
        left, right = (s["target"][0, :, k].mean() for k in (slice(4), slice(-4, None)))
        sides.append(left > right)
        image = s["image"].mean(0)
        assert (left > right) == (image[:, :4].mean() > image[:, -4:].mean()), (
            "the person's label is on the other side than the person")
    assert 15 < sum(sides) < 45, "half are mirrored"


def test_labels_keep_their_values_exercise05(tmp_path):
    (tmp_path / "m").mkdir()
    Image.new("L", (40, 40), 255).save(tmp_path / "m/1.png")
    picture(tmp_path / "i/1.png")
    found = mlb.pairs(tmp_path / "i", tmp_path / "m")
    for m in (mlb.Mixer([], [], found, 0, 32), mlb.Mixer(found, [], [], 1, 32)):
        values = np.unique([m[i]["target"] for i in range(20)])
        assert values.tolist() == [255], f"expected 255 all over, as the file has it, got {values}"


def test_a_window_is_a_square_anywhere_in_its_picture(tmp_path):
    """The picture tells where it was cut: red is x, green is y, of each pixel."""
    for width, height in ((60, 40), (40, 60)):
        y, x = np.mgrid[:height, :width]
        path = tmp_path / f"{width}.png"
        Image.fromarray(np.stack([x, y, 0 * x], 2).astype(np.uint8)).save(path)
        m, corners = mlb.Mixer([], [], [], 0, 32), []
        for k in range(200):
            shown = m.window([(path,)], np.random.default_rng(k))
            assert shown.shape == (32, 32, 3), f"expected a square of 32, got {shown.shape}"
            red, green = shown[..., 0].astype(float), shown[..., 1].astype(float)
            assert np.ptp(red, 0).max() == np.ptp(green, 1).max() == 0, (
                "expected straight rows and columns")
            corners.append([red[0, 0], red[0, -1], green[0, 0], green[-1, 0]])
        left, right, top, bottom = np.array(corners).T
        assert 70 < (left > right).sum() < 130 and (top < bottom).all(), "half are mirrored"
        left, right = np.minimum(left, right), np.maximum(left, right)
        assert np.abs(right - left - bottom + top).max() <= 2, "expected squares, got other shapes"
        assert bottom.max() >= height - 2 and right.max() >= width - 2, "all places are shown"
        assert top.min() <= 1 and left.min() <= 1
        sides = bottom - top + 1
        assert 26 < sides.min() < 31 and 38 < sides.max() <= 40, "0.7 to 1 of the short side"


def test_a_window_is_shrunk_by_averaging_and_never_enlarged(tmp_path, monkeypatch):
    board = (np.indices((300, 300)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).convert("RGB").save(tmp_path / "b.png")
    asked, decode = [], mlb.read_pair
    monkeypatch.setattr(mlb, "read_pair", lambda *a, **k: asked.append(k) or decode(*a))
    m = mlb.Mixer([], [], [(tmp_path / "b.png",)] * 1000, 0, 32)
    shown = m.window(m.naturals, np.random.default_rng(0)).astype(float)
    assert shown.shape == (32, 32, 3) and (abs(shown - 127.5) < 9).all(), shown
    assert 32 <= 0.7 * asked[0]["short"] < 34, "the smallest window has at least 32 pixels"


def test_few_photos_are_decoded_once_and_many_at_every_use(tmp_path, monkeypatch):
    pair, most = (picture(tmp_path / "p.png"), disc(tmp_path / "m.png")), mlb.REMEMBERED
    for a, b, c in ((most, 0, 0), (1, most - 2, 1), (most, 1, 0), (most, 0, 1), (0, most, 1)):
        m = mlb.Mixer([pair] * a, [pair[0]] * b, [pair] * c, 0.5, 32)
        assert m.few == (a + b + c <= most), (a, b, c)
    decoded, read = [], mlb.read
    monkeypatch.setattr(mlb, "read", lambda *a, **k: decoded.append(a) or read(*a, **k))
    for count, expected in ((2, 2), (most + 1, 2 * 20)):
        mlb.read_once.cache_clear()
        decoded.clear()
        for i in range(20):
            mlb.Mixer([], [], [pair] * count, 0, 32)[i]
        assert len(decoded) == expected, f"{count} photos: {len(decoded)} files decoded"


def test_a_damaged_file_is_named_and_another_takes_its_place(toy, capsys):
    path = toy / "segmentation/image/1.jpg"
    path.write_bytes(path.read_bytes()[:400])
    samples = [mixer(toy, 0)[i] for i in range(40)]
    assert all(s["image"].shape == (3, 32, 32) for s in samples)
    assert not equal(samples[0], samples[1]) and capsys.readouterr().err.count("1.jpg") == 1
    for k in range(4):
        (toy / f"segmentation/image/{k}.jpg").write_bytes(b"")
    mlb.read_once.cache_clear()
    m, draws = mixer(toy, 0), []
    m.draw = lambda rng: draws.append(rng.bit_generator.state["state"]["state"]) or mlb.Mixer.draw(m, rng)
    with pytest.raises(mlb.UserError, match="ten .*jpg"):
        m[0]
    assert len(set(draws)) == 10, "ten draws, not one ten times"
    assert "ten" in fails(capsys, *tiny("train", toy, toy / "out"))


# ---------------------------------------------------------------- 2 Model


@pytest.mark.parametrize("guided", [False, True])
def test_net_gives_two_full_size_maps_and_takes_multiples_of_32(guided):
    net = mlb.MattingNet(8, guided).eval()
    matte, boundary = net(torch.rand(2, 3, 64, 96), torch.rand(2, 1, 64, 96))
    assert matte.shape == boundary.shape == (2, 1, 64, 96) and not torch.equal(matte, boundary)
    for shape in ((1, 3, 64, 70), (1, 3, 33, 64)):
        with pytest.raises(ValueError, match="multiples of 32"):
            net(torch.rand(shape))


def test_only_a_guided_net_looks_at_the_mask():
    images, masks = torch.rand(1, 3, 32, 32), torch.rand(2, 1, 1, 32, 32)
    for guided in (False, True):
        net = mlb.MattingNet(8, guided).eval()
        assert torch.equal(net(images, masks[0])[0], net(images, masks[1])[0]) != guided
    assert not mlb.MattingNet().guided and mlb.MattingNet().head.in_channels == 32


def test_net_sees_single_pixels_and_the_whole_picture():
    torch.manual_seed(0)
    net = mlb.MattingNet(8).eval()
    x = torch.rand(1, 3, 128, 128, requires_grad=True)
    net(x)[0][0, 0, 64, 64].backward()
    reach = x.grad.abs().sum(1)[0]
    assert reach[64, 64] > 0 and reach[0, 0] > 0, "a pixel depends on its own and on far ones"
    y = net(x)[0][0, 0]
    assert (y[::4, ::4] != y[1::4, 1::4]).any(), "the pixels of a 4×4 cell differ"
    torch.nn.init.zeros_(net.head.weight[:20])
    net.head.weight.data[:20], net.head.bias.data[:20] = 0, 0
    net.head.weight.data[20:], net.head.bias.data[20:] = 0, torch.tensor([1.0, 10, 100])
    matte, boundary = net(x)
    same(matte[0, 0].detach(), x[0, 0].detach() + 10 * x[0, 1].detach() + 100 * x[0, 2].detach(), 1e-4)
    assert not boundary.any(), "the gate lets each pixel's own colour through, to the matte alone"


def test_net_adds_what_it_keeps_to_what_it_computes():
    """Each stage of the decoder takes the sum of two maps."""
    net, took, gave = mlb.MattingNet(16).eval(), {}, {}
    for name, stage in net.named_children():
        stage.register_forward_hook(lambda stage, x, y, name=name: took.update(
            {name: x[0].detach()}) or gave.update({name: y.detach()}))
    net(torch.rand(1, 3, 64, 96))
    double = torch.nn.Upsample(scale_factor=2)
    same(took["up32"], gave["down32"] + gave["deep32"], 1e-5)
    for kept, lower, stage in (("down16", "up32", "up16"), ("down8", "up16", "up8"),
                               ("down4", "up8", "up4")):
        same(took[stage], gave[kept] + double(gave[lower]), 1e-5)
    widths = {name: y.shape[1] for name, y in gave.items()}
    assert [widths[f"down{k}"] for k in (4, 8, 16, 32)] == [16, 32, 48, 64]
    sides = [gave[f"down{k}"].shape[2:] for k in (4, 8, 16, 32)]
    assert sides == [(16, 24), (8, 12), (4, 6), (2, 3)], "halved down to 1/32"


def test_conv_divides_the_sides_and_needs_no_bias():
    for stride, size in ((1, 3), (2, 3), (4, 4)):
        block = mlb.conv(3, 8, stride, size)
        assert block(torch.rand(2, 3, 32, 64)).shape == (2, 8, 32 // stride, 64 // stride)
        assert block[0].bias is None and block(torch.rand(2, 3, 32, 64)).min() == 0
    assert mlb.conv(3, 8)(torch.rand(2, 3, 5, 5)).shape == (2, 8, 5, 5)


# ---------------------------------------------------------------- 3 MLB


def test_boundary_label_exercise01():
    M = torch.tensor([0, 0.04, 0.05, 0.06, 0.5, 0.94, 0.95, 0.96, 1])
    same(mlb.boundary_label(M), [0, 0, 0, 1, 1, 1, 0, 0, 0])
    same(mlb.boundary_label(M, 0.5, 0.99), [0, 0, 0, 0, 0, 1, 1, 1, 0])
    assert mlb.boundary_label(torch.rand(2, 1, 3, 4)).shape == (2, 1, 3, 4)
    for kind in (torch.float32, torch.float64, torch.bfloat16):
        got = mlb.boundary_label(M.to(kind)).dtype
        assert got == kind, f"expected the type of M, {kind}; got {got}".replace("torch.", "")


def test_blend_exercise03():
    M, a, S = torch.tensor([0.8]), torch.tensor([0.25]), torch.tensor([0.0])
    same(mlb.blend(M, a, S), [0.2])
    torch.manual_seed(0)
    M, a, S = torch.rand(2, 1, 9, 9), torch.rand(2, 1, 9, 9), (torch.rand(2, 1, 9, 9) > 0.5).float()
    B = mlb.blend(M, a, S)
    same(mlb.blend(M, torch.zeros_like(a), S), S)
    same(mlb.blend(M, torch.ones_like(a), S), M)
    assert (B >= torch.minimum(M, S) - 1e-6).all() and (B <= torch.maximum(M, S) + 1e-6).all()
    same((B - S) / (M - S), a, 1e-4)


def test_laplacian_loss_exercise04():
    flat, loss = torch.full((1, 1, 32, 32), 0.3), mlb.laplacian_loss
    same(loss(flat, flat), 0)
    same(loss(flat, flat + 0.5), 0)  # a constant lies in no band of the pyramid
    checks = ((torch.arange(32)[:, None] + torch.arange(32)) % 2 * 1.0)[None, None]
    # a checkerboard lies in the finest band alone, where it is ±1/2 everywhere
    same(loss(checks, 0 * checks, levels=1), 0.5)
    same(loss(checks, 0 * checks), 0.5 / 4)
    same(loss(0 * checks, checks), 0.5 / 4)
    for level in (1, 2, 3):  # coarser by halves: in a coarser band alone, which counts twice as much
        blocks = checks.repeat_interleave(2 ** level, 2).repeat_interleave(2 ** level, 3)
        same(loss(blocks[..., :32, :32], 0 * flat), 2 ** level * 0.5 / 4)
    blocks = blocks.repeat_interleave(2, 2).repeat_interleave(2, 3)[..., :32, :32]
    same(loss(blocks, 0 * flat), 0)  # too coarse for four levels


def test_mlb_loss_by_hand_exercise09():
    """White and black pixels that the net holds for even chances; a fourth is boundary."""
    zero = torch.zeros(1, 1, 16, 16)
    target, boundary = zero.clone(), zero.clone()
    target[..., :8], boundary[..., :4] = 1, 1
    terms = mlb.mlb_loss(zero, zero, target, boundary)
    same(terms["matte"], math.log(2))
    same(terms["boundary"], math.log(2))
    same(terms["detail"], 0.5)
    same(terms["laplacian"], mlb.laplacian_loss(zero + 0.5, target))
    same(terms["total"], sum(mlb.WEIGHTS[k] * terms[k] for k in mlb.WEIGHTS))
    assert set(terms) == {*mlb.WEIGHTS, "total"} and all(t.shape == () for t in terms.values())
    sure = mlb.mlb_loss(50 * (2 * target - 1), 50 * (2 * boundary - 1), target, boundary)
    same(sure["total"], 0, 1e-5)
    x, y = torch.tensor([1.0, -2.0]).view(2, 1, 1, 1).expand(2, 1, 16, 16), zero.expand(2, 1, 16, 16)
    terms = mlb.mlb_loss(x, -x, y, y)
    same(terms["matte"], (math.log1p(math.e) + math.log1p(math.exp(-2))) / 2)
    same(terms["boundary"], (math.log1p(math.exp(-1)) + math.log1p(math.exp(2))) / 2)


def test_every_term_counts_by_its_weight_exercise09():
    torch.manual_seed(0)
    a, b, y = torch.randn(2, 1, 16, 16), torch.randn(2, 1, 16, 16), torch.rand(2, 1, 16, 16)
    weigh, plain = {"matte": 2.0, "laplacian": 3.0, "detail": 5.0, "boundary": 7.0}, mlb.WEIGHTS.copy()
    assert set(plain) == set(weigh)
    try:
        mlb.WEIGHTS.update(weigh)
        terms = mlb.mlb_loss(a, b, y, mlb.boundary_label(y))
        same(terms["total"], sum(weigh[k] * terms[k] for k in weigh), 1e-5)
    finally:
        mlb.WEIGHTS.update(plain)


def test_detail_by_hand_exercise09():
    """It is the error at the boundary of each picture: many hairs count no more than few."""
    target, boundary = torch.zeros(3, 1, 16, 16), torch.zeros(3, 1, 16, 16)
    boundary[0, 0, 0, :2] = 1  # two pixels, one of them wrong by 1
    boundary[1, 0, :8] = 1  # half the picture, and nothing wrong
    logits = torch.full((3, 1, 16, 16), -50.0)
    logits[0, 0, 0, 0] = logits[0, 0, 7, 7] = 50  # the second is wrong too, but no boundary
    same(mlb.mlb_loss(logits, logits, target, boundary)["detail"], (1 / 2 + 0 + 0) / 3)
    target[1, 0, :8] = 1  # now all of it is
    same(mlb.mlb_loss(logits, logits, target, boundary)["detail"], (1 / 2 + 1 + 0) / 3)


def test_loss_of_a_plain_picture_exercise09():
    logits = torch.zeros(1, 1, 16, 16, requires_grad=True)
    terms = mlb.mlb_loss(logits, logits, torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16))
    same(terms["detail"].detach(), 0)
    terms["total"].backward()
    assert torch.isfinite(logits.grad).all() and logits.grad.abs().sum() > 0, (
        f"expected gradients that are numbers, got {logits.grad.flatten()[:4]}")


def test_loss_is_computed_in_fp32_under_autocast_exercise09():
    torch.manual_seed(0)
    a, b = torch.randn(2, 1, 16, 16), torch.rand(2, 1, 16, 16)
    plain = mlb.mlb_loss(a, a, b, mlb.boundary_label(b))
    with torch.autocast("cpu", torch.bfloat16):
        cast = mlb.mlb_loss(a, a, b, mlb.boundary_label(b))
    assert all(cast[k].dtype == torch.float32 and cast[k] == plain[k] for k in plain)
    half = mlb.mlb_loss(a.half(), a.half(), b.half(), mlb.boundary_label(b))
    assert half["total"].dtype == torch.float32 and abs(half["total"] - plain["total"]) < 1e-2


# ---------------------------------------------------------------- 4 Training


class Line(torch.nn.Module):
    """A network of two weights: a multiple of the red channel is both of its maps."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([0.5, -0.5]))

    def forward(self, x, masks):
        return 20 * self.w[0] * x[:, :1], 20 * self.w[1] * x[:, :1]


def step(lr, scaled=False, times=1, label=None, teacher=None, half=None, net=None):
    """The weights, gradients and scaler after steps of plain gradient descent on one batch."""
    torch.manual_seed(0)
    net, scaler = net or Line(), torch.amp.GradScaler("cpu", enabled=scaled)
    batch = {key: torch.randint(256, (2, channels, 32, 32), dtype=torch.uint8)
             for key, channels in (("image", 3), ("target", 1), ("mask", 1))}
    batch["natural"] = torch.tensor([True, False])
    optimizer = torch.optim.SGD(net.parameters(), lr)
    for _ in range(times):
        mlb.train_step(net, batch, label, teacher, optimizer, scaler, half)
    return next(net.parameters()).detach(), next(net.parameters()).grad, scaler, batch


@pytest.fixture
def losses(monkeypatch):
    """What mlb_loss is given, call by call."""
    seen, loss = [], mlb.mlb_loss
    monkeypatch.setattr(mlb, "mlb_loss", lambda *given: seen.append(given) or loss(*given))
    return seen


def test_train_step_clips_the_true_gradients_and_forgets_the_last_ones():
    moved, gradient, *_ = step(1.0)
    same((moved - torch.tensor([0.5, -0.5])).norm(), 1, 1e-4)
    assert gradient.norm() > 0.5 and moved[0] < 0.5, "downhill"
    same(step(1.0, scaled=True)[0], moved, 1e-4)
    same(step(0.0, times=3)[1], gradient)
    assert step(0.0, scaled=True, times=3)[2].state_dict()["_growth_tracker"] == 3


@pytest.mark.parametrize("label", ["S", "M′", "B", "B guided", "true matte"])
def test_train_step_labels_photos_and_leaves_composites(label, losses):
    def teacher(image, mask):
        return 4 * mask - 2 + 0 * image[:, :1], image[:, :1] - 1

    *_, batch = step(0.0, label=label, teacher=teacher if label in mlb.TEACHERS else None)
    image, target, S = (batch[key] / 255 for key in ("image", "target", "mask"))
    M, a = (4 * S - 2).sigmoid(), (image[:, :1] - 1).sigmoid()
    expected = {"M′": M, "B": a * M + (1 - a) * S, "B guided": a * M + (1 - a) * S}
    same(losses[0][2][0], expected.get(label, target)[0])
    same(losses[0][2][1], target[1])
    assert torch.equal(losses[0][3], mlb.boundary_label(losses[0][2]))
    same(losses[0][0].detach(), 10 * image[:, :1], 1e-5)


def test_values_of_a_step_exercise_nothing_out_of_range(losses):
    step(0.0)
    for name, x in zip(("target", "boundary"), losses[0][2:]):
        assert 0 <= x.min() and x.max() <= 1, f"{name}: expected 0 to 1, got up to {x.max():.0f}"


def test_precision_is_what_it_says_and_weights_stay_fp32(losses):
    for half in (None, torch.bfloat16, torch.float16):
        net = mlb.MattingNet(8)
        step(0.1, half=half, net=net)
        assert losses[-1][0].dtype == (half or torch.float32)
        assert all(p.dtype == torch.float32 for p in net.parameters())


def fit(toy, name="teacher", steps=6, teacher=None, more=(), seed=0):
    """Trains a row in toy/out -> its network."""
    o = options(toy, "--steps", steps, "--teacher-steps", steps, *more)
    (toy / "out").mkdir(exist_ok=True)
    path = toy / "out" / f"{name}.{seed}.pt"
    return mlb.fit(name, seed, o, mlb.open_data(o), path, teacher)


def test_every_parameter_learns_and_the_teacher_does_not(toy):
    teacher = fit(toy, steps=1)
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    torch.manual_seed(0)
    start = {key: value.clone() for key, value in mlb.MattingNet(8).named_parameters()}
    student = fit(toy, "MLB", 2, teacher)
    still = [key for key, value in student.named_parameters() if torch.equal(value, start[key])]
    assert not still, f"expected all to learn, unchanged after two steps: {still}"
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert student.down4[1].num_batches_tracked == 2, "it trains in training mode"


def test_the_first_step_is_as_large_as_the_learning_rate(toy):
    """Adam moves each weight by it; the weights of batch norm begin at 1, and a little decays."""
    net = fit(toy, steps=1, more=["--lr", 0.4])
    moved = torch.cat([stage[1].weight - 1 for stage in net.children() if len([*stage.children()])])
    same(moved.abs().median() / 0.02, 1, 0.02)
    start = torch.nn.Conv2d(1, 1, 1)  # any other seed would begin elsewhere
    nets = [fit(toy, "MLB", 1, seed=seed, more=["--lr", 0]) for seed in (0, 1)]
    torch.manual_seed(1)
    start = mlb.MattingNet(8)
    assert all(map(torch.equal, nets[1].parameters(), start.parameters()))
    assert not torch.equal(nets[0].head.weight, start.head.weight)


@pytest.fixture
def clock(monkeypatch):
    """A clock in seconds that stands still but for what the test adds."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_checkpoints_and_progress_come_every_ten_seconds_and_at_the_end(toy, capsys, monkeypatch,
                                                                       clock):
    saved, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: replace(a, b) or saved.append(
        (len(state(b)["log"]), pathlib.Path(a).exists())))

    def train_step(net, *_):
        clock[0] += 5 if clock[0] < 375 else 10 / 3  # 55 steps of 5 s, then faster ones
        return {name: torch.tensor(0.5) for name in (*mlb.WEIGHTS, "total")}

    monkeypatch.setattr(mlb, "train_step", train_step)
    fit(toy, steps=140)
    said = capsys.readouterr().out
    steps = [int(x) for x in re.findall(r"step +(\d+)/140", said)]
    assert steps == [step for step, _ in saved] and not any(part for _, part in saved)
    assert steps[:18] == list(range(3, 57, 3)) and steps[-2:] == [139, 140] or steps[:4] == [
        3, 6, 9, 12] and steps[-1] == 140, steps
    assert "loss 0.5000  11:25 left" in said.splitlines()[0] and "0:00 left" in said.splitlines()[-1]
    late = re.search(r"step +1[123]\d/140.* (\d):(\d\d) left", said)
    done = int(re.search(r"step +(\d+)", late[0])[1])
    same(60 * int(late[1]) + int(late[2]), (140 - done) * 10 / 3, 2)
    seconds = log(toy / "out/teacher.0.csv")["seconds"]
    same(seconds[:3] + seconds[-1:], [5, 5, 5, 10 / 3])


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_share_a_batch_and_the_first_one_writes(rank, toy, monkeypatch):
    taken, take = [], mlb.Mixer.__getitem__
    monkeypatch.setattr(mlb.Mixer, "__getitem__", lambda self, i: taken.append(i) or take(self, i))
    monkeypatch.setattr(mlb, "RANK", rank)
    monkeypatch.setattr(mlb, "RANKS", 2)
    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", lambda net: net)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda x: x.mul_(2))  # one like this one
    net = fit(toy, steps=3)
    assert taken == list(range(rank, 12, 2)) and net.down4[1].num_batches_tracked == 3
    assert len(list((toy / "out").iterdir())) == (2 if rank == 0 else 0)
    if rank == 0:
        assert 0.5 < log(toy / "out/teacher.0.csv")["matte"][0] < 0.9, "averaged, not summed"


def test_compile_is_for_those_who_ask(toy, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda net, **_: compiled.append(net) or net)
    fit(toy, steps=1)
    assert not compiled
    fit(toy, "MLB", steps=1, more=["--compile"])
    assert len(compiled) == 1


def test_fp16_takes_the_scaler_path_on_the_cpu_and_resumes_it(toy, monkeypatch):
    for stop, count in ((3, 4), (None, 8)):
        with monkeypatch.context() as patch:
            if stop:
                patch.setattr(mlb, "SAVE_SECONDS", 0)
                patch.setattr(mlb, "finite", lambda terms, where, finite=mlb.finite: finite(
                    terms, where) if "step 5" not in where else 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    fit(toy, "MLB", 8, more=["--amp", "fp16"])
            else:
                fit(toy, "MLB", 8, more=["--amp", "fp16"])
        kept = state(toy / "out/MLB.0.pt")
        assert kept["scaler"]["_growth_tracker"] == len(kept["log"]) == count
        assert all(v.isfinite().all() for v in kept["net"].values())


def test_a_loss_that_is_not_finite_stops_the_run(toy, capsys, monkeypatch):
    loss, calls = mlb.mlb_loss, []
    monkeypatch.setattr(mlb, "mlb_loss", lambda *given: calls.append(1) or {
        key: term * (math.nan if key == "detail" and len(calls) == 8 else 1)
        for key, term in loss(*given).items()})
    said = fails(capsys, *tiny("train", toy, toy / "out"))
    assert "MLB" in said and "step 3" in said and "'detail': nan" in said and "'matte': 0." in said
    assert {p.name for p in (toy / "out").iterdir()} == {"teacher.0.pt", "teacher.0.csv", "batch.png"}


METRICS = {"SAD", "MSE", "MAD", "Grad", "Boundary MAD"}


def test_train_writes_what_it_promises(trained):
    _, out, said = trained
    assert {p.name for p in out.iterdir()} == {
        "teacher.0.pt", "teacher.0.csv", "MLB.0.pt", "MLB.0.csv", "metrics.json", "table.md",
        "batch.png", "labels.png", "mattes.png"}
    scores = json.loads((out / "metrics.json").read_text())
    assert set(scores) == {"teacher", "MLB", "labels S", "labels M′", "labels B"}
    assert all(len(seeds) == 1 and set(seeds[0]) == METRICS for seeds in scores.values())
    assert (out / "table.md").read_text().strip() in said and "MSE e-3" in said
    for row, steps in (("teacher", 5), ("MLB", 6)):
        columns, kept = log(out / f"{row}.0.csv"), state(out / f"{row}.0.pt")
        assert len(columns["total"]) == len(kept["log"]) == steps, "an entry a step"
        assert set(columns) == {*mlb.WEIGHTS, "total", "lr", "seconds"}
        same([entry["total"] for entry in kept["log"]], columns["total"])
        rates = [min(k / 20, (1 + math.cos(math.pi * (k - 1) / steps)) / 2)
                 for k in range(1, steps + 1)]
        same(columns["lr"], 4e-3 * np.array(rates))
        for term in ("matte", "boundary"):
            assert abs(columns[term][0] - math.log(2)) < 0.3, "an untrained net's loss is chance's"
        assert 0 < sum(columns["seconds"]) < 100
    assert kept["options"]["size"] == 32 and kept["options"]["lr"] == 4e-3 and not kept["guided"]


def test_rows_differ_in_mix_and_label_alone(compared):
    _, out, taken = compared
    assert {row for row, _ in taken} == set(mlb.ROWS)
    pictures = {key: [s["image"].tobytes() for s in samples] for key, samples in taken.items()}
    assert all(len(found) == 2 * 4 for found in pictures.values())
    for seed in (0, 1):
        kinds = {row: [s["natural"] for s in taken[row, seed]] for row in mlb.ROWS}
        assert not any(kinds["teacher"]) and all(kinds["segmentation only"])
        assert 0 < sum(kinds["MLB"]) < 8, "a mix"
        for row in ("naive mix", "pseudo-labels", "MLB guided", "upper bound"):
            assert pictures[row, seed] == pictures["MLB", seed], "students share their samples"
    teachers = {x for (row, _), found in pictures.items() if "teacher" in row for x in found}
    students = {x for (row, _), found in pictures.items() if "teacher" not in row for x in found}
    assert not teachers & students, "a student must not see its teacher's composites"
    assert not set(pictures["MLB", 0]) & set(pictures["MLB", 1])
    for target, mask in [(s["target"], s["mask"]) for s in taken["guided teacher", 0]]:
        assert not np.array_equal(target, mask)
    truths = [s["target"] for s in taken["upper bound", 0] if s["natural"]]
    masks = [s["target"] for s in taken["MLB", 0] if s["natural"]]
    assert not any(map(np.array_equal, truths, masks)), "it learns from the true mattes"
    weighed = {row: weights(out, f"{row}.0") for row in mlb.ROWS if row != "guided teacher"}
    for one, two in itertools.combinations(weighed, 2):
        assert not torch.equal(weighed[one], weighed[two]), f"{one} and {two} learned the same"


def mean_scores(items, matte_of):
    """Mean metrics over items, tuples from a photo's path to its truth's."""
    found = [mlb.metrics(matte_of(item), np.asarray(Image.open(item[-1])) / 255) for item in items]
    return {name: np.mean([score[name] for score in found]) for name in METRICS}


def test_results_are_those_of_the_rows_files(compared, capsys):
    """Of networks on the test pictures, and of the labels of D_s, over all pictures and seeds."""
    toy, out, _ = compared
    scores = json.loads((out / "metrics.json").read_text())
    rows = [row for row in mlb.ROWS if row != "guided teacher"]
    assert list(scores) == rows + [f"labels {kind}" for kind in ("S", "M′", "B", "B guided")]
    tests = mlb.pairs(toy / "test/image", toy / "test/alpha")
    photos = [(*pair, toy / f"segmentation/alpha/{pair[0].stem}.png")
              for pair in mlb.pairs(toy / "segmentation/image", toy / "segmentation/mask")]
    for seed in (0, 1):
        nets = {row: mlb.load(out / f"{row}.{seed}.pt")[1] for row in mlb.ROWS}

        def label(item, kind):
            S, guided = mlb.read(item[1], True), "guided" in kind
            M, a = mlb.predict(nets["guided teacher" if guided else "teacher"], mlb.read(item[0]),
                               32, S if guided else None)
            S = np.asarray(S) / 255
            return {"S": S, "M′": M}.get(kind, a * M + (1 - a) * S)

        for row in ("teacher", "MLB", "MLB guided"):
            expected = mean_scores(tests, lambda item: mlb.predict(nets[row], mlb.read(item[0]), 32)[0])
            assert scores[row][seed] == pytest.approx(expected, rel=1e-4), row
        for kind in ("S", "M′", "B", "B guided"):
            expected = mean_scores(photos, lambda item: label(item, kind))
            assert scores[f"labels {kind}"][seed] == pytest.approx(expected, rel=1e-4), kind
    mse = [1000 * seed["MSE"] for seed in scores["MLB"]]
    assert f"{np.mean(mse):.2f} ± {np.std(mse, ddof=1):.2f}" in (out / "table.md").read_text()
    assert main("eval", "--weights", out / "MLB.1.pt", "--data", toy, "--device", "cpu") == 0
    assert f"| {scores['MLB'][1]['SAD']:.2f} |" in re.sub(" +", " ", capsys.readouterr().out)


def test_pictures_show_what_they_say(compared):
    toy, out, _ = compared
    sizes = {name: Image.open(out / f"{name}.png").size for name in ("batch", "labels", "mattes")}
    assert sizes["batch"] == (3 * 228 + 4, 34 + 8 * 36)
    rows = 34 + 3 * (112 + 2 * 224 + 12)
    assert sizes["labels"] == (9 * 228 + 4, rows)
    assert sizes["mattes"] == (9 * 228 + 4, 34 + 2 * (112 + 2 * 224 + 12))
    page = np.asarray(Image.open(out / "mattes.png"))
    truths = [np.asarray(Image.open(toy / f"test/alpha/{k}.png").resize((112, 112), Image.BICUBIC))
              for k in (0, 1)]
    shown = page[34:34 + 112, 8 * 228 + 4:8 * 228 + 116, 0]
    assert min(np.abs(shown.astype(int) - truth).mean() for truth in truths) < 8, "the truth, last"
    assert (page[:34] < 128).any() and (page[:, :4] == 255).all() and (page[-4:] == 255).all()
    error = page[34 + 116 + 228:, 8 * 228:][:224]
    assert (error == 255).all(), "the truth has no error"


def test_few_mattes_and_masks_are_taken_where_asked(toy):
    o = options(toy, "--mattes", 2, "--masks", 3)
    data, whole = mlb.open_data(o), mlb.open_data(options(toy))
    assert [len(data[key]) for key in ("mattes", "masks", "backgrounds", "tests")] == [2, 3, 2, 2]
    assert [len(whole[key]) for key in ("mattes", "masks")] == [3, 4]
    shutil.rmtree(toy / "matte/background")
    shutil.rmtree(toy / "segmentation/alpha")
    assert not mlb.open_data(o)["backgrounds"]
    assert main(*tiny("compare", toy, toy / "out", "--seeds", 1, "--steps", 1,
                      "--teacher-steps", 1)) == 0
    scores = json.loads((toy / "out/metrics.json").read_text())
    assert "MLB" in scores and not {"upper bound", "labels S"} & set(scores), "nobody knows"


@pytest.mark.parametrize("change, named", [
    (lambda d: shutil.rmtree(d / "matte/alpha"), "matte/alpha"),
    (lambda d: [p.unlink() for p in (d / "test/image").iterdir()], "test/image"),
    (lambda d: picture(d / "test/alpha/1.png", (37, 40), "L"), "test/alpha/1.png"),
    (lambda d: picture(d / "test/image/1.jpg", (1, 1)), "test/image/1.jpg"),
    (lambda d: (d / "matte/foreground").rename(d / "matte/fg"), "matte/foreground"),
    (lambda d: [p.rename(p.with_name("x" + p.name)) for p in (d / "test/alpha").iterdir()],
     "test/image"),
])
def test_bad_data_is_named_before_the_first_step(change, named, toy, tmp_path, capsys):
    change(toy)
    assert named in fails(capsys, *tiny("train", toy, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_run_is_never_overwritten_and_never_goes_on_as_another(trained, capsys):
    toy, out, _ = trained
    before = files_of(out)
    assert "holds a run" in fails(capsys, *tiny("train", toy, out))
    assert "holds a run" in fails(capsys, *tiny("compare", toy, out))
    for flag, value in (("--lr", 0.5), ("--mix", 0.5), ("--steps", 9), ("--teacher-steps", 9),
                        ("--batch", 8), ("--width", 9), ("--size", 64), ("--amp", "bf16"),
                        ("--masks", 2), ("--mattes", 2), ("--data", SAMPLE)):
        said = fails(capsys, *tiny("train", toy, out, "--resume", flag, value))
        assert flag in said and str(value) in said and ".pt" in said, said
    assert "--compile" in fails(capsys, *tiny("train", toy, out, "--resume", "--compile"))
    assert files_of(out) == before, "nothing changed"
    assert main(*tiny("train", toy, out, "--resume")) == 0
    after = files_of(out)
    assert all(after[name] == before[name] for name in before if name.endswith((".pt", ".csv")))
    assert after["metrics.json"][0] == before["metrics.json"][0]


def test_interrupted_by_ctrl_c_it_goes_on_to_the_same_bits(trained, tmp_path, capsys, monkeypatch):
    toy, plain, _ = trained
    out, train_step, count = tmp_path / "out", mlb.train_step, []

    def pressed(*given):
        count.append(1)
        if len(count) in (4, 11):
            os.kill(os.getpid(), signal.SIGINT)
        return train_step(*given)

    monkeypatch.setattr(mlb, "train_step", pressed)
    monkeypatch.setattr(mlb, "SAVE_SECONDS", 0)
    for expected in (130, 130, 0):
        assert main(*tiny("train", toy, out, "--resume")) == expected
        last = capsys.readouterr().err.strip().splitlines()[-1:]
        assert expected == 0 or "--resume" in last[0], last
    assert len(count) == 13, "two steps were done again"
    for row in ("teacher.0", "MLB.0"):
        one, two = (state(folder / f"{row}.pt") for folder in (out, plain))
        assert torch.equal(weights(out, row), weights(plain, row))
        moments = [torch.cat([m["exp_avg"].flatten() for m in x["optimizer"]["state"].values()])
                   for x in (one, two)]
        assert torch.equal(*moments)
        assert [e["total"] for e in one["log"]] == [e["total"] for e in two["log"]]
    scores = [json.loads((folder / "metrics.json").read_text()) for folder in (out, plain)]
    assert scores[0] == scores[1]


class Evil:
    """A pickle that would write a file if it were executed."""

    def __reduce__(self):
        return (open, ("executed", "w"))


def test_bad_checkpoints_are_named_and_never_executed(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    good, whole = state(trained[1] / "MLB.0.pt"), (trained[1] / "MLB.0.pt").read_bytes()
    nan = good["net"] | {"head.bias": torch.full((23,), math.nan)}
    contents = {
        "list": [1], "number": 3, "nothing": {}, "bare": {"net": {}}, "keys": {1: 2}, "nan": {"net": nan},
        "more": {"net": good["net"] | {"x": torch.ones(1)}}, "odd": {"net": {1: 2}},
        "wide": {"options": good["options"] | {"width": 1000}}, "text": {"options": "x"},
        "half": {"options": good["options"] | {"width": 0.5}},
        **{f"size {x}": {"options": good["options"] | {"size": x}} for x in ("x", None, 0, 1e9, math.nan)}}
    for name, change in contents.items():
        whole_ = isinstance(change, dict) and set(change) <= set(good) and name != "nothing"
        torch.save(good | change if whole_ and name != "bare" else change, f"{name}.pt")
    pathlib.Path("cut.pt").write_bytes(whole[:len(whole) // 2])
    pathlib.Path("empty.pt").touch()
    pathlib.Path("evil.pt").write_bytes(pickle.dumps(Evil()))
    torch.save(good | {"log": Evil()}, "evil2.pt")
    os.mkfifo("pipe.pt")
    begun, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in sorted(p.name for p in tmp_path.glob("*.pt")):
        said = fails(capsys, "matte", "p.jpg", "--weights", path, "--device", "cpu")
        assert path in said and ("delete it or" in said or path == "pipe.pt"), said
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < memory + 3e5, "in KB: not gigabytes"
    assert time.monotonic() - begun < 10 and not pathlib.Path("executed").exists()
    for command in (["eval"], ["bench", "--size", 32], ["matte", "p.jpg"]):
        more = [*command, "--device", "cpu", "--weights"]
        assert "no such file" in fails(capsys, *more, "gone.pt")
    out = tmp_path / "out"
    out.mkdir()
    (out / "MLB.0.pt").write_bytes(whole[:999])
    assert "take another --out" in fails(capsys, *tiny("train", trained[0], out, "--resume"))


def test_a_guided_teacher_is_for_masks_alone(compared, capsys):
    toy, out, _ = compared
    file = out / "guided teacher.0.pt"
    for command in (["eval", "--data", toy], ["bench", "--size", 32], ["matte", "p.jpg"]):
        said = fails(capsys, *command, "--device", "cpu", "--weights", file)
        assert "guided teacher" in said and "masks" in said


def test_train_with_guide_trains_the_guided_rows(toy):
    assert main(*tiny("train", toy, toy / "out", "--guide", "--seed", 3, "--amp", "bf16")) == 0
    scores = json.loads((toy / "out/metrics.json").read_text())
    assert set(scores) == {"MLB guided", "labels S", "labels B guided"}
    assert state(toy / "out/guided teacher.3.pt")["guided"]
    assert not state(toy / "out/MLB guided.3.pt")["guided"]


# ---------------------------------------------------------------- 5 Evaluation


def test_metrics_by_hand_exercise06():
    truth = np.zeros((40, 50))
    prediction = truth.copy()
    prediction[:20] = 0.5
    m = mlb.metrics(prediction, truth)
    same([m["SAD"], m["MSE"], m["MAD"]], [0.5, 0.125, 0.25])
    assert math.isnan(m["Boundary MAD"]), "no boundary, no figure"
    assert set(m) == METRICS
    assert all(v == 0 for k, v in mlb.metrics(truth, truth).items() if k != "Boundary MAD")
    for one, two in ((truth[None], truth[None]), (truth, truth.T)):
        with pytest.raises(ValueError):
            mlb.metrics(one, two)


def test_boundary_mad_looks_two_pixels_around_the_boundary_exercise06():
    for level, counts in ((0.5, True), (0.05, False), (0.95, False), (0.06, True), (0.94, True)):
        truth = np.zeros((9, 20))
        truth[:, 10], truth[:, 11:] = level, 1
        prediction = truth.copy()
        prediction[:, 8] += 0.5   # two pixels off: counts
        prediction[:, 7] += 0.25   # three: does not
        got = mlb.metrics(prediction, truth)["Boundary MAD"]
        assert got == pytest.approx(0.1) if counts else math.isnan(got), (level, got)


def grad_reference(x):
    """|∇x| by direct 2-D convolution with a Gaussian's analytic derivative, mirrored border."""
    sigma, reach = 1.4, 6
    d = np.arange(-reach, reach + 1)
    g = np.exp(-d ** 2 / (2 * sigma ** 2))
    g = g / g.sum()
    dg = -d / sigma ** 2 * g
    big = np.pad(x, reach, mode="symmetric")
    windows = np.lib.stride_tricks.sliding_window_view(big, (2 * reach + 1,) * 2)
    return np.hypot(np.einsum("ijkl,k,l->ij", windows, dg, g),
                    np.einsum("ijkl,k,l->ij", windows, g, dg))


def random_pairs(count):
    """Predictions and truths of all sizes and densities."""
    for k in range(count):
        rng = np.random.default_rng(k)
        t = (rng.random(rng.integers(3, 22, 2)) ** rng.uniform(0.2, 3)).round(int(rng.integers(1, 4)))
        yield (np.clip(t + rng.normal(0, 0.2, t.shape), 0, 1) if k % 2
               else rng.integers(0, 256, t.shape) / 255), t


def test_metrics_against_independent_computations_exercise06():
    for k, (p, t) in enumerate(random_pairs(200)):
        m, errors = mlb.metrics(p, t), [abs(a - b) for a, b in zip(p.flat, t.flat)]
        near = [abs(p[i, j] - t[i, j]) for i, j in np.ndindex(t.shape)
                if any(0.05 < x < 0.95 for x in t[max(0, i - 2):i + 3, max(0, j - 2):j + 3].flat)]
        expected = {"SAD": sum(errors) / 1000, "MSE": sum(e * e for e in errors) / p.size,
                    "MAD": sum(errors) / p.size, "Boundary MAD": sum(near) / max(1, len(near)),
                    "Grad": ((grad_reference(p) - grad_reference(t)) ** 2).sum() / 10}
        for name, value in expected.items():
            assert m[name] == pytest.approx(value, rel=1e-5, abs=1e-9), f"pair {k}: {name}"


class Probe(torch.nn.Module):
    """A network whose matte is the red channel and whose boundary is the green one, or the mask."""

    def __init__(self, guided=False):
        super().__init__()
        self.seen, self.unused = [], torch.nn.Parameter(torch.zeros(1))
        self.guided = guided

    def forward(self, x, masks=None):
        self.seen.append(tuple(x.shape))
        second = masks if masks is not None and masks.shape[1] else x[:, 1:2]
        return torch.logit(x[:, :1], 1e-6), torch.logit(second, 1e-6)


def test_predict_keeps_size_and_aspect():
    y, x = np.mgrid[:100, :160]
    image, probe = Image.fromarray(np.stack([x, y, 0 * x], 2).astype(np.uint8)), Probe()
    maps = mlb.predict(probe, image, 85)  # training pictures showed 0.85 of a photo's short side
    assert maps.shape == (2, 100, 160) and probe.seen == [(1, 3, 128, 160)], "padded"
    same(255 * maps[0], x, 0.01)
    same(255 * maps[1], y, 0.01)
    maps = mlb.predict(probe, image.resize((320, 200), Image.NEAREST), 85)
    assert maps.shape == (2, 200, 320) and probe.seen[1] == (1, 3, 128, 160), "as large as trained"
    same(255 * maps[0, 9:-9, 9:-9], (np.mgrid[:200, :320][1] / 2)[9:-9, 9:-9], 1)
    mask = Image.fromarray((y + x // 2).astype(np.uint8))
    same(255 * mlb.predict(Probe(True), image, 85, mask)[1], y + x // 2, 0.01)


def test_predict_repeats_the_edges_and_averages_what_it_shrinks():
    class Mean(Probe):
        """The mean of 3×3 pixels, and a chequerboard."""

        def forward(self, x, masks):
            mean = torch.nn.functional.avg_pool2d(x[:, :1], 3, 1, 1, count_include_pad=False)
            y, x = torch.meshgrid(torch.arange(x.shape[2]), torch.arange(x.shape[3]), indexing="ij")
            return torch.logit(mean, 1e-6), (1000.0 * ((x + y) % 2) - 500).expand(mean.shape)

    matte, _ = mlb.predict(Mean(), Image.new("RGB", (40, 40), "white"), 34)
    same(matte, np.ones((40, 40)), 1e-3)
    _, board = mlb.predict(Mean(), Image.new("RGB", (40, 40), "white"), 136)
    same(board[5:-5, 5:-5], np.full((30, 30), 0.5), 0.05)


# ---------------------------------------------------------------- 6 Benchmark


def test_fold_keeps_the_function_without_batch_norm_exercise10():
    torch.manual_seed(0)
    net = mlb.MattingNet(8)
    for _ in range(5):
        net(torch.rand(4, 3, 32, 32))  # running statistics other than 0 and 1
    for stage in net.children():
        for layer in stage.children():
            if isinstance(layer, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(layer.weight, 0.5, 2)
                torch.nn.init.uniform_(layer.bias)
    net.eval()
    before, x = {k: v.clone() for k, v in net.state_dict().items()}, torch.rand(1, 3, 64, 64)
    folded = mlb.fold(net)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    same(folded(x)[0].detach(), net(x)[0].detach(), 1e-4)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()), "a copy is folded"


def test_seconds_of_a_call(monkeypatch):
    assert 0.02 < mlb.seconds_of(lambda: time.sleep(0.02), "cpu") < 0.2
    launched, worked = [5.0], [0.0]  # 5 s from before the call, which must not count

    def synchronize(*_):
        worked[0] += sum(launched)
        launched.clear()

    # a device that works only while one waits for it, and a clock of its work alone
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(time, "perf_counter", lambda: worked[0])
    got = mlb.seconds_of(lambda: launched.append(2.0), "cuda:0")
    assert got == 2, f"expected the 2 s of the work, got {got} s"


def test_bench_prints_a_row_for_each_step(trained, capsys, monkeypatch):
    timed, real = [], mlb.seconds_of
    monkeypatch.setattr(mlb, "seconds_of", lambda run, device: timed.append(real(run, device)) or
                        (9.0 if len(timed) <= 16 else 0.002 if len(timed) % 4 else 0.001))
    monkeypatch.setattr(torch, "compile", lambda net, **_: net)
    for more, extra in (([], 0), (["--weights", trained[1] / "MLB.0.pt", "--compile"], 1)):
        timed.clear()
        assert main("bench", "--size", 64, "--width", 8, "--device", "cpu", *more) == 0
        said = capsys.readouterr().out
        rows = [[cell.strip() for cell in line.strip("|").split("|")]
                for line in said.splitlines() if line.startswith("| ")][2:]
        names = ["fp32", "+ channels-last", "+ batch norm folded", "+ bfloat16 weights"]
        assert [row[0] for row in rows] == [*names, *["+ torch.compile"] * extra,
                                            "end to end, in bytes"]
        assert "cpu" in said and "64x64" in said and len(timed) == 40 * len(rows)
        differences = [float(row[3]) for row in rows]
        assert differences[0] == 0 and max(differences[1:3]) <= 1e-4 and max(differences) < 0.05
        if not extra:
            assert [row[1] for row in rows[:4]] == ["2.00"] * 3 + ["1.00"]
            assert [row[2] for row in rows[:4]] == ["500.0"] * 3 + ["1000.0"]
            assert 0 < differences[4], "the fastest row's, in 256 levels"


# ---------------------------------------------------------------- 7 Matting


def test_blur_is_a_box_mean():
    x = torch.zeros(1, 61, 61)
    x[0, 30, 30] = 1
    y = mlb.blur(x, 6)
    assert y[0, 30, 30] > 0 and y[0, 30, 34] > 0 and y[0, 30, 42] == 0
    same(y[0].sum(), 1, 0.1)
    for shape, radius in (((2, 40, 30), 90), ((1, 100, 200), 6)):
        same(mlb.blur(torch.full(shape, 0.3), radius), np.full(shape, 0.3), 1e-5)


def test_estimate_foreground_takes_the_background_off_exercise07():
    """Composites of known foreground: at most half the colour error of the photo as it is."""
    ratios = []
    for k, path in enumerate(sorted((SAMPLE / "matte/foreground").iterdir())[:4]):
        truth = torch.from_numpy(np.array(mlb.read(path))).permute(2, 0, 1) / 255
        alpha = np.array(mlb.read(SAMPLE / "matte/alpha" / f"{path.stem}.png", label=True))
        alpha = torch.from_numpy(alpha)[None] / 255
        background = torch.tensor([[0.1, 0.8, 0.2], [0.9, 0.1, 0.7],
                                   [0.0, 0.2, 0.9], [1.0, 1.0, 0.2]])[k]
        image = alpha * truth + (1 - alpha) * background.view(3, 1, 1)
        found = mlb.estimate_foreground(image, alpha)
        assert found.shape == image.shape and 0 <= found.min() and found.max() <= 1
        edge = ((alpha > 0.05) & (alpha < 0.95)).expand_as(image)
        error, before = (found - truth)[edge].abs().mean(), (image - truth)[edge].abs().mean()
        ratios.append((error / before).item())
    assert np.mean(ratios) <= 0.5, f"expected at most 0.5 of the photo's colour error, got {ratios}"


def test_estimate_foreground_of_flat_colours_exercise07():
    """Where F and B are constant nothing is left to estimate; what is opaque stays as it is."""
    image = torch.rand(3, 40, 40)
    same(mlb.estimate_foreground(image, torch.ones(1, 40, 40)), image, 1e-3)
    alpha = (torch.linspace(-1, 2, 400).clip(0, 1)).expand(1, 400, 400)
    F, B = torch.tensor([0.9, 0.4, 0.2]).view(3, 1, 1), torch.tensor([0.1, 0.5, 0.8]).view(3, 1, 1)
    found = mlb.estimate_foreground(alpha * F + (1 - alpha) * B, alpha)
    off = (found - F).abs().mean((0, 1))[alpha[0, 0] > 0.1]
    assert off.max() < 0.06 and off.mean() < 0.02, f"expected F, off by up to {off.max():.3f}"


def test_matte_cuts_out_upright_at_the_photos_own_size(trained, tmp_path, capsys):
    exif, weights = Image.Exif(), trained[1] / "MLB.0.pt"
    exif[0x0112] = 6
    array = np.random.default_rng(0).integers(0, 256, (90, 130, 3), np.uint8)
    (tmp_path / "a b").mkdir()
    Image.fromarray(array).save(tmp_path / "a b/-1.jpg", exif=exif, icc_profile=b"a profile")
    picture(tmp_path / "other/2.jpg", (50, 40), "CMYK", icc_profile=b"a profile")
    picture(tmp_path / "other/deep/3.png", (1100, 1030))
    out = tmp_path / "new/out"
    assert main("matte", "--weights", weights, tmp_path / "a b/-1.jpg", tmp_path / "other", "--out",
                out, "--device", "cpu") == 0
    said = capsys.readouterr().out
    assert {p.name for p in out.iterdir()} == {"-1.png", "2.png", "3.png"}
    for name, size, profile in (("-1", (90, 130), b"a profile"), ("2", (50, 40), None),
                                ("3", (1100, 1030), None)):
        found = Image.open(out / f"{name}.png")
        assert found.size == size and found.mode == "RGBA" and str(out / f"{name}.png") in said
        assert found.info.get("icc_profile") == profile
    photo, net = mlb.read(tmp_path / "a b/-1.jpg"), mlb.load(weights)[1]
    matte = mlb.predict(net, photo, 32)[0]
    cut = np.asarray(Image.open(out / "-1.png")) / 255
    same(cut[..., 3], matte, 0.003)
    F = mlb.estimate_foreground(torch.from_numpy(np.array(photo)).permute(2, 0, 1) / 255,
                                torch.from_numpy(cut[..., 3]).float()[None])
    same(cut[..., :3], F.permute(1, 2, 0), 0.01)


def test_what_is_opaque_keeps_its_colours(trained, tmp_path, monkeypatch):
    y, x = np.mgrid[:1200, :1030]
    array = np.stack([128 + 100 * np.sin(x / 90), y / 5, 0 * x + x % 2 * 90], 2).astype(np.uint8)
    Image.fromarray(array).save(tmp_path / "p.png")
    matte = ((x - 300) / 300).clip(0, 1)
    monkeypatch.setattr(mlb, "predict", lambda net, photo, size, mask=None: torch.from_numpy(
        np.stack([matte, matte]).astype(np.float32)))
    assert main("matte", tmp_path / "p.png", "--weights", trained[1] / "MLB.0.pt", "--out",
                tmp_path / "o", "--device", "cpu") == 0
    cut = np.asarray(Image.open(tmp_path / "o/p.png")).astype(int)
    same(cut[..., 3], np.round(255 * matte), 0.6)
    assert np.array_equal(cut[:, 605:, :3], array[:, 605:]), "to the last pixel"
    assert np.abs(cut[9:-9, 400:590, :2] - array[9:-9, 400:590, :2]).mean() < 8, "and close elsewhere"


def test_bad_photos_are_named_and_the_rest_goes_on(trained, tmp_path, capsys):
    bad, weights = hostile(tmp_path / "h"), trained[1] / "MLB.0.pt"
    good, (tmp_path / "empty").mkdir() if False else picture(tmp_path / "g/good.png"), None
    photos = [str(p) for p in bad.values()] + [str(tmp_path / "g/good.png")]
    assert main("matte", "--weights", weights, "--out", tmp_path / "o", "--device", "cpu", "--",
                *photos) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said and len(said.strip().splitlines()) == len(bad) + 1
    for name in bad:
        assert name.replace("\n", " ") in said, name
    assert f"{len(bad)} of {len(photos)} failed" in said.splitlines()[-1]
    assert [p.name for p in (tmp_path / "o").iterdir()] == ["good.png"]
    before = files_of(tmp_path / "g")
    for photo in ("g", "g/good.png"):
        said = fails(capsys, "matte", tmp_path / photo, "--weights", weights, "--out",
                     tmp_path / "h/../g", "--device", "cpu")
        assert "another --out" in said
    assert files_of(tmp_path / "g") == before


# ---------------------------------------------------------------- 8 Command line


@pytest.mark.parametrize("sign, line", [
    ("--size", "train --size 50"), ("--size", "train --size 0"), ("--size", "bench --size 100"),
    ("--mix", "train --mix 1.5"), ("--mix", "train --mix -0.1"), ("--lr", "train --lr -1"),
    ("--lr", "train --lr nan"), ("--batch", "train --batch 0"), ("--seed", "train --seed -1"),
    ("batch norm", "train --batch 1 --size 32"), ("--device", "train --device gpu"),
    ("--device", "bench --device cuda:77"), ("--device", "train --device cuda:x"),
    ("--amp", "train --amp half"), ("--seed", f"train --seed {2 ** 31}"), ("fly", "fly"),
    ("--seed", "compare --seed 3"), ("--guide", "compare --guide"), ("COMMAND", ""),
    ("--seeds", "compare --seeds 0"), ("--steps", "train --steps many"), ("--fast", "bench --fast"),
    ("--steps", "train --steps 0"), ("--workers", "train --workers -1"), ("--width", "bench --width 0"),
    ("--weights", "eval"), ("PHOTO", "matte --weights x.pt"), ("nowhere", "train --data nowhere")])
def test_bad_options_are_named_in_one_line(sign, line, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sign in fails(capsys, *line.split())
    assert not list(tmp_path.iterdir())


def test_good_options_are_taken():
    for line in (f"train --seed {2 ** 31 - 1}", "train --mix 1", "train --mix 0", "bench --size 32",
                 "train --batch 1 --size 64", "train --batch 2 --size 32", "train --lr 0"):
        mlb.check(mlb.parse(line.split()))
    o = mlb.parse(["train"])
    mlb.check(o)
    if not torch.cuda.is_available():
        assert (o.device, o.amp) == ("cpu", "off"), "auto is settled"
    assert {o.command, o.size, o.batch, o.out} == {"train", 128, 8, "runs/mlb"}


def test_ranks_must_divide_the_batch(toy, capsys, monkeypatch):
    monkeypatch.setattr(mlb, "RANKS", 2)
    assert "2 ranks" in fails(capsys, "train", "--batch", 3, "--device", "cpu")
    assert "batch norm" in fails(capsys, *tiny("train", toy, toy / "out", "--batch", 2))
    mlb.check(mlb.parse(["train", "--batch", "2", "--size", "64", "--device", "cpu"]))


@pytest.mark.parametrize("command", ["train", "compare", "eval", "bench", "matte"])
def test_help_states_every_default(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(command, "--help")
    text = " ".join(capsys.readouterr().out.split())
    needed = {"eval": ["--weights", "w"], "matte": ["p", "--weights", "w"]}
    o = vars(mlb.parse([command] + needed.get(command, [])))
    assert len(o) > 4
    for name, default in o.items():
        if name not in ("command", "photos", "weights"):
            assert f"--{name.replace('_', '-')}" in text, name
            assert default in (False, "") or f"(default: {default})" in text, name


class Compiler(RuntimeError):
    """As torch raises it where --compile finds no compiler."""
    __module__ = "torch._dynamo.exc"


@pytest.mark.parametrize("problem, sign", [
    (torch.OutOfMemoryError("CUDA out of memory. Tried"), "lower --batch"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "lower --batch"),
    (Compiler("no C++\ncompiler"), "--compile needs"),
    (RuntimeError("PytorchStreamWriter failed writing file data/3"), "room"),
    (OSError(28, "No space left on device"), "No space left")])
def test_what_a_user_can_put_right_is_one_line(problem, sign, toy, capsys, monkeypatch):
    def train_step(*_):
        raise problem

    monkeypatch.setattr(mlb, "train_step", train_step)
    assert sign in fails(capsys, *tiny("train", toy, toy / "out"))


def test_our_own_mistakes_are_not_hidden(toy, monkeypatch):
    monkeypatch.setattr(mlb, "train_step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(*tiny("train", toy, toy / "out"))


def test_a_full_disk_is_one_line_and_nothing_half_written_counts(trained, tmp_path, capsys):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60000, limit[1]))  # as a full disk does it
    try:
        fails(capsys, *tiny("train", trained[0], tmp_path / "out"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not list((tmp_path / "out").glob("*.pt"))
    assert main(*tiny("train", trained[0], tmp_path / "out", "--resume")) == 0
    assert torch.equal(weights(tmp_path / "out"), weights(trained[1]))


# ---------------------------------------------------------------- README

FEW = {"train": "--steps 2 --teacher-steps 2 --size 32 --width 8 --batch 4 --workers 0 --out new",
       "compare": "--steps 1 --teacher-steps 1 --size 32 --width 8 --batch 4 --seeds 1 --out new",
       "eval": "", "bench": "--size 32 --width 8", "matte": "--out new"}
WEIGHED = ("eval", "bench", "matte")
COMMANDS = sorted(set(re.findall(r"mlb\.py ((?:train|compare|eval|bench|matte)\b[^`\n&|>;#]*)",
                                 README.replace("\\\n", " "))))


def test_the_readme_tells_of_every_command():
    assert {command.split()[0] for command in COMMANDS} == set(FEW)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_readme_runs(command, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "compile", lambda net, **_: net)
    name, *more = shlex.split(command)
    if name == "matte":  # all its options take a value; the rest are photos
        more = [str(picture(tmp_path / "p.jpg")) if not (
            word.startswith("--") or k and more[k - 1].startswith("--")) else word
                for k, word in enumerate(more)]
    more += FEW[name].split() + ["--device", "cpu"]
    more += ["--data", trained[0]] if name in ("train", "compare", "eval") else []
    more += ["--weights", trained[1] / "MLB.0.pt"] if name in WEIGHED else []
    assert main(name, *more) == 0, capsys.readouterr().err
    assert capsys.readouterr().out


def test_what_the_readme_names_exists():
    rows = README.split("| in the paper |")[1].split("\n\n")[0].splitlines()[2:]
    for name in re.findall(r"`([\w.]+)`", " ".join(row.split("|")[2] for row in rows)):
        assert operator.attrgetter(name)(mlb), name
    links = re.findall(r"\]\((?!http|#)([^)]+)\)", README)
    for link in links + re.findall(r"data_sample/[\w.]+\w", README):
        assert (HERE / link).exists(), link
    for name in re.findall(r"`(test_\w+)`", README):
        assert name in globals(), name


# ---------------------------------------------------------------- exercises: holes and bugs

HOLES = {  # number: function of mlb.py; tests ..._exercise01 to 10 guard them
    1: "boundary_label", 2: "composite", 3: "blend", 4: "laplacian_loss", 5: "Mixer.draw",
    6: "metrics", 7: "estimate_foreground", 8: "hurried_mask", 9: "mlb_loss", 10: "fold"}
TOLD = {  # number: its answer where comments tell it; the file of the exercise does not
    1: ("1 where 0.05 < M < 0.95, else 0", "1 where low < M < high, else 0"),
    2: ("I = αF + (1 − α)B", "image = αF + (1 − α)B"), 3: ("α′·M′ + (1 − α′)·S",)}
PLAIN = {  # number: a right answer that is not the book's
    1: "return torch.where((M <= low) | (M >= high), 0.0, 1.0).to(M)",
    2: "return foreground * alpha + background - background * alpha",
    3: "return S + alpha_t * (M_t - S)",
    4: """
        def bands(x):
            for level in range(levels):
                small = F.avg_pool2d(x, 2)
                yield 2 ** level, x - small.repeat_interleave(2, 2).repeat_interleave(2, 3)
                x = small
        both = zip(bands(prediction), bands(target))
        return sum(k * (a - b).abs().mean() for (k, a), (_, b) in both) / levels""",
    5: """
        natural = not rng.random() < self.mix
        both = self.window(self.naturals if natural else self.composites, rng)
        shown, target = both[:, :, :3], both[:, :, 3]
        if not natural and len(self.backgrounds) > 0:
            behind = self.window(self.backgrounds, rng)
            if rng.integers(10) < 7:
                behind = clutter(behind, rng)
            share = np.stack([target / 255] * 3, 2)
            shown = np.uint8(np.round(share * shown + (1 - share) * behind))
        mask = hurried_mask(target, rng) if self.guided and not natural else target
        shown = np.moveaxis(degrade(shown, rng), 2, 0)
        return dict(image=shown, target=target[None], mask=mask[None], natural=natural)""",
    6: """
        p, t = np.array(prediction, float), np.array(truth, float)
        if p.shape != t.shape or p.ndim != 2:
            raise ValueError("two pictures of one shape")
        near, wide = np.zeros(t.shape, bool), np.pad((t > 0.05) * (t < 0.95), 2)
        for i in range(5):
            for j in range(5):
                near |= wide[i:i + t.shape[0], j:j + t.shape[1]]
        grad = np.sum((gradient(p) - gradient(t)) ** 2) / 10
        return {"SAD": abs(p - t).sum() / 1e3, "MSE": np.mean((p - t) ** 2), "Grad": grad,
                "MAD": np.mean(abs(p - t)),
                "Boundary MAD": np.mean(abs(p - t)[near]) if near.sum() else float("nan")}""",
    7: """
        F_, B_, a = image, image, alpha
        for radius in [90, 6]:
            F_, B_ = (blur(F_ * a, radius) / (blur(a, radius) + 1e-5),
                      blur(B_ * (1 - a), radius) / (blur(1 - a, radius) + 1e-5))
            F_ = torch.clamp(F_ + a * (image - a * F_ - (1 - a) * B_), 0, 1)
        return F_""",
    8: """
        h, w = matte.shape
        soft = Image.fromarray(matte).filter(ImageFilter.BoxBlur(rng.uniform(1, 5) * w / 128))
        level = np.kron(rng.uniform(60, 220, (4, 4)), np.ones((-(-h // 4), -(-w // 4))))[:h, :w]
        k = int(rng.integers(1, 5))
        small = (np.asarray(soft) > level)[::k, ::k]
        return np.where(small.repeat(k, 0).repeat(k, 1)[:h, :w], 255, 0).astype(np.uint8)""",
    9: """
        x, y, t, a = (z.float() for z in (matte_logits, boundary_logits, target, boundary))
        details = [(e * b).sum() / max(1, b.sum()) for e, b in zip((x.sigmoid() - t).abs(), a)]
        terms = {"matte": (F.softplus(x) - x * t).mean(),
                 "laplacian": laplacian_loss(x.sigmoid(), t), "detail": sum(details) / len(details),
                 "boundary": (F.softplus(y) - y * a).mean()}
        return terms | {"total": sum(WEIGHTS[k] * v for k, v in terms.items())}""",
    10: """
        net = copy.deepcopy(net)
        for block in [b for b in net.children() if isinstance(b, nn.Sequential)]:
            c, b = block[0], block[1]
            scale = b.weight / torch.sqrt(b.running_var + b.eps)
            c.weight = nn.Parameter(c.weight * scale.view(-1, 1, 1, 1))
            c.bias = nn.Parameter(b.bias - b.running_mean * scale)
            block[1] = nn.Identity()
        return net"""}
LIGHT = "image = degrade(image, rng).transpose(2, 0, 1)"
BUGS = {  # number: (what it is, text that mlb.py holds once, the bug, a test that notices it)
    1: ("the foreground is multiplied by alpha twice", "return alpha * foreground +",
        "return alpha * (alpha * foreground) +", "test_a_person_stands_before_a_background_exercise05"),
    2: ("height and width mixed up", "height, width, _ = whole.shape",
        "width, height, _ = whole.shape", "test_a_window_is_a_square_anywhere_in_its_picture"),
    3: ("labels in 0..255", "batch[key].to(device, non_blocking=True) / 255",
        "batch[key].to(device, non_blocking=True).float()",
        "test_values_of_a_step_exercise_nothing_out_of_range"),
    4: ("the optimizer does not know the head", "AdamW(net.parameters(),",
        "AdamW(list(net.parameters())[:-2],", "test_every_parameter_learns_and_the_teacher_does_not"),
    5: ("the label goes through the photo's light and noise", LIGHT,
        LIGHT + "\n        target = degrade(np.stack([target] * 3, 2), rng)[..., 0]",
        "test_labels_keep_their_values_exercise05"),
    6: ("division by an empty boundary", "boundary.sum((1, 2, 3)).clamp(min=1)",
        "boundary.sum((1, 2, 3))", "test_loss_of_a_plain_picture_exercise09"),
    7: ("BGR for RGB", LIGHT, LIGHT.replace(".tr", "[..., [2, 1, 0]].tr"),
        "test_a_person_stands_before_a_background_exercise05"),
    8: ("the clock is read while the device works", "    run()\n    wait()\n", "    run()\n",
        "test_seconds_of_a_call"),
    9: ("sigmoid taken twice", "entropy_with_logits(matte_logits, target)",
        "entropy_with_logits(matte, target)", "test_mlb_loss_by_hand_exercise09"),
    10: ("the blend turned round", "return alpha_t * M_t + (1 - alpha_t) * S",
         "return alpha_t * S + (1 - alpha_t) * M_t", "test_blend_exercise03"),
    11: ("the photo is mirrored without its label", LIGHT, "if rng.random() < 0.5:\n"
         "            image = image[:, ::-1]\n        " + LIGHT,
         "test_left_and_right_of_a_sample_exercise05")}


def source():
    """The text of mlb.py, line ends as they are."""
    return (HERE / "mlb.py").read_bytes().decode()


def with_hole(number, answer=None):
    """mlb.py with one function left to write: its docstring stays, its body goes."""
    text = source()
    node = ast.parse(text)
    for part in HOLES[number].split("."):
        node = next(child for child in node.body if getattr(child, "name", "") == part)
    docstring, first, *_ = node.body
    indent, count = " " * first.col_offset, node.end_lineno - docstring.end_lineno
    if answer is None:
        answer = f'raise NotImplementedError("Exercise {number}: about {count} lines")'
    lines = text.split("\n")  # not splitlines, which also splits where Python does not
    lines[docstring.end_lineno:node.end_lineno] = [
        indent + line for line in inspect.cleandoc(answer).split("\n")]
    text = "\n".join(lines)
    for told in TOLD.get(number, ()):
        text = text.replace(told, "...")
    return text


def with_bug(number):
    """mlb.py with a bug planted."""
    (what, old, new, _), text = BUGS[number], source()
    assert text.count(old) == 1, f"bug {number}: mlb.py holds {old!r} {text.count(old)} times"
    return text.replace(old, new)


def write(arguments):
    """Writes mlb.py with a hole or a bug -> exit status."""
    tables = {"hole": (HOLES, with_hole), "bug": (BUGS, with_bug)}
    match arguments:
        case [("hole" | "bug") as kind, number] if number in map(str, tables[kind][0]):
            sys.stdout.buffer.write(tables[kind][1](int(number)).encode())  # UTF-8 in any locale
            return 0
    choices = " | ".join(f"{kind} {min(table)}..{max(table)}"
                         for kind, (table, _) in tables.items())
    print(f"usage: python test_mlb.py {choices}  > my_mlb.py", file=sys.stderr)
    return 2


def as_module(text):
    """A module made of a text instead of a file."""
    module = types.ModuleType("changed_mlb")
    module.__file__ = str(HERE / "mlb.py")
    exec(compile(text, module.__file__, "exec"), vars(module))
    return module


def call(name, module, folder):
    """Calls a test as pytest does, with module for mlb and an empty folder for tmp_path."""
    folder.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "mlb", module)
        seen = []
        loss = module.mlb_loss
        fixtures = {"tmp_path": lambda: folder, "toy": lambda: make_toy(folder / "toy"),
                    "monkeypatch": lambda: patch, "losses": lambda: patch.setattr(
                        module, "mlb_loss", lambda *given: seen.append(given) or loss(*given)) or seen}
        test = globals()[name]
        test(**{key: fixtures[key]() for key in inspect.signature(test).parameters})


# These read the text of mlb.py: marked slow, so that no change to it is noticed by its spelling.


@slow
@pytest.mark.parametrize("number", HOLES)
def test_a_hole_is_red_until_it_is_filled_rightly(number, tmp_path):
    whole, holed, get = source(), with_hole(number), operator.attrgetter(HOLES[number])
    old, new = ast.parse(whole), ast.parse(holed)
    assert len(holed) < len(whole) and len(old.body) == len(new.body), "all else stays as it is"
    for told in TOLD.get(number, ()):
        assert told in whole and told not in holed, f"the answer is told: {told}"
    module, plain = as_module(holed), as_module(with_hole(number, PLAIN[number]))
    assert get(module).__doc__ and ast.parse(with_hole(number, PLAIN[number]))
    tests = [name for name in globals() if name.endswith(f"_exercise{number:02}")]
    assert tests
    for name in tests:
        with pytest.raises(NotImplementedError, match=f"Exercise {number}: "):
            call(name, module, tmp_path / "red" / name)
        call(name, as_module(whole), tmp_path / "book" / name)
        call(name, plain, tmp_path / "plain" / name)


@slow
@pytest.mark.parametrize("number", BUGS)
def test_a_bug_is_noticed(number, tmp_path):
    assert max(map(len, with_bug(number).split("\n"))) <= 100, "it looks like its neighbours"
    call(BUGS[number][3], as_module(source()), tmp_path / "without")
    with pytest.raises(AssertionError):
        call(BUGS[number][3], as_module(with_bug(number)), tmp_path / "with")


@slow
def test_the_file_of_an_exercise_is_printed(capsysbinary, tmp_path):
    assert write(["hole", "10"]) == 0 and capsysbinary.readouterr().out == with_hole(10).encode()
    assert write(["bug", "1"]) == 0 and capsysbinary.readouterr().out == with_bug(1).encode()
    for arguments in ("", "hole", "hole 0", "bug 99", "hole three", "fly 3", "bug 1 2"):
        assert write(arguments.split()) == 2, arguments
        said = capsysbinary.readouterr()
        assert not said.out and said.err.count(b"\n") == 1
        assert b"hole 1..10 | bug 1..11 " in said.err
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('No module named torch')")
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, __file__, "hole", "3"], env=env, capture_output=True)
    assert done.returncode == 2 and not done.stdout and done.stderr.count(b"\n") == 1, done.stderr
    assert b"torch" in done.stderr
    env.pop("PYTHONPATH")
    with open(tmp_path / "my_mlb.py", "wb") as file:
        subprocess.run([sys.executable, __file__, "hole", "3"], check=True, stdout=file, env=env,
                       cwd=tmp_path)
    (tmp_path / "torch.py").unlink()
    red = subprocess.run([sys.executable, "-m", "pytest", "-k", "exercise03", __file__, "-p",
                          "no:cacheprovider"], text=True, capture_output=True, cwd=tmp_path,
                         env=env | {"MLB": "my_mlb"})
    assert red.returncode == 1 and "Exercise 3: about" in red.stdout, red.stdout + red.stderr


# Exercises to extend mlb.py: collected where your file has the function.

if hasattr(mlb, "edge_band"):
    def test_edge_band_against_distances():
        S = (np.random.default_rng(0).random((24, 31)) > 0.85).astype(np.float32)
        for radius in (1, 2, 4):
            got = mlb.edge_band(torch.from_numpy(S)[None, None], radius)
            expected = np.zeros_like(S)
            for i, j in np.ndindex(S.shape):
                near = S[max(0, i - radius):i + radius + 1, max(0, j - radius):j + radius + 1]
                expected[i, j] = near.min() != near.max()
            same(got, expected[None, None])
        assert mlb.edge_band(torch.ones(1, 1, 8, 8), 3).sum() == 0, "no edge, no band"


if hasattr(mlb, "connectivity"):
    def components(mask):
        """4-connected components by flood fill, in row order of their first pixel."""
        seen, found = np.zeros_like(mask), []
        for start in zip(*np.nonzero(mask)):
            if not seen[start]:
                seen[start], stack, pixels = True, [start], []
                while stack:
                    i, j = stack.pop()
                    pixels.append((i, j))
                    for p in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
                        inside = 0 <= p[0] < mask.shape[0] and 0 <= p[1] < mask.shape[1]
                        if inside and mask[p] and not seen[p]:
                            seen[p] = True
                            stack.append(p)
                found.append(pixels)
        return found

    def test_connectivity_against_its_definition():
        for p, t in random_pairs(60):
            last = np.full(t.shape, np.nan)
            for k in range(1, 11):
                found = components((p >= k / 10) & (t >= k / 10))
                largest = set(max(found, key=len, default=()))  # the first of equals
                for ij in np.ndindex(t.shape) if found else ():
                    if ij not in largest and np.isnan(last[ij]):
                        last[ij] = (k - 1) / 10
            last[np.isnan(last)] = 1
            phi = [np.where(x - last >= 0.15, 1 - (x - last), 1) for x in (p, t)]
            same(mlb.connectivity(p, t), np.abs(phi[0] - phi[1]).sum() / 1000, 1e-9)


# ---------------------------------------------------------------- slow ones: over 5 seconds each

HASH = """
import hashlib
o = mlb.parse(["train", "--size", sys.argv[1], "--device", "cpu"])
samples = mlb.mixer_of("MLB", 0, o, mlb.open_data(o))
loader = torch.utils.data.DataLoader(samples, None, range(200), num_workers=int(sys.argv[2]))
digest = hashlib.sha256()
for s in loader:
    for key in ("image", "target", "mask"):
        digest.update(bytes(torch.as_tensor(s[key]).numpy()))
print(digest.hexdigest())
"""


@slow
@pytest.mark.parametrize("size", [128, 160])
def test_samples_are_the_same_bits_whatever_threads_and_workers(size):
    found = [script(HASH, size, workers, env={**os.environ, "OMP_NUM_THREADS": threads}).communicate()
             for threads, workers in (("1", 0), ("2", 0), ("2", 2))]
    assert len(found[0][0]) == 65 and len({out for out, _ in found}) == 1, found


KILLED = "mlb.SAVE_SECONDS = 0\nsys.exit(mlb.main(sys.argv[1:]))"


@slow
def test_killed_at_any_moment_it_goes_on_to_the_same_weights(toy, tmp_path):
    plain, out, more = tmp_path / "plain", tmp_path / "out", ["--steps", 40, "--teacher-steps", 30]
    assert main(*tiny("train", toy, plain, *more, "--workers", 2)) == 0, "workers change nothing"
    for lines in (2, 25, 20, 17):  # of progress, then some milliseconds more
        child = script(KILLED, *tiny("train", toy, out, *more, "--resume"), bufsize=1)
        for _ in range(lines):
            child.stdout.readline()
        time.sleep(0.003 * lines)
        child.kill()
        child.communicate()
        assert child.returncode == -signal.SIGKILL
    assert script(KILLED, *tiny("train", toy, out, *more, "--resume")).wait() == 0
    for row, steps in (("teacher.0", 30), ("MLB.0", 40)):
        assert torch.equal(weights(out, row), weights(plain, row))
        assert len(log(out / f"{row}.csv")["total"]) == steps
    assert (out / "metrics.json").read_bytes() == (plain / "metrics.json").read_bytes()


@slow
def test_overfits_one_batch():
    torch.manual_seed(0)
    net, samples = mlb.MattingNet(), [mixer(SAMPLE, 0.5, 64)[i] for i in range(4)]
    batch = torch.utils.data.default_collate(samples)
    optimizer, scaler = torch.optim.AdamW(net.parameters(), 5e-3), torch.amp.GradScaler("cpu", enabled=False)
    losses = [mlb.train_step(net, batch, "S", None, optimizer, scaler, None)["matte"].item()
              for _ in range(150)]
    assert losses[-1] < 0.15 * losses[0], f"from {losses[0]} to {losses[-1]}"


@slow
def test_the_student_beats_the_teacher(tmp_path):
    """The method's promise, in a tenth of the default steps, at half the size."""
    assert main("train", "--out", tmp_path, "--size", 64, "--teacher-steps", 120, "--steps", 200,
                "--device", "cpu") == 0
    scores = json.loads((tmp_path / "metrics.json").read_text())
    assert scores["MLB"][0]["MSE"] < 0.7 * scores["teacher"][0]["MSE"], scores
    assert scores["labels B"][0]["MSE"] < scores["labels S"][0]["MSE"], scores


RANKS = """
if sys.argv[1] == "plain":
    mlb.MattingNet.train = lambda self, mode=True: torch.nn.Module.train(self, False)
else:
    step, count = mlb.train_step, []
    def fails(*given):
        count.append(1)
        if mlb.RANK == 1 and len(count) == 3:
            raise mlb.UserError("rank 1 of 2 has no more memory")
        return step(*given)
    mlb.train_step = fails
sys.exit(mlb.main(sys.argv[2:]))
"""


def torchrun(ranks, kind, folder, *arguments):
    """Runs train under torchrun on the CPU -> (the finished process, its seconds)."""
    (folder / "ranks.py").write_text(f"import sys, torch, {NAME} as mlb\n{RANKS}")
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone",
                           f"--nproc_per_node={ranks}", str(folder / "ranks.py"), kind, *arguments],
                          text=True, capture_output=True, timeout=120,
                          env={**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"})
    return done, time.monotonic() - begun


@slow
def test_two_ranks_learn_what_one_learns(toy, tmp_path):
    """The same global batch; batch norm in eval mode, since each rank has statistics of its own."""
    curves = []
    for ranks in (1, 2):
        out = tmp_path / str(ranks)
        done, _ = torchrun(ranks, "plain", tmp_path, *tiny(
            "train", toy, out, "--teacher-steps", 20, "--steps", 20))
        assert done.returncode == 0 and len(list(out.iterdir())) == 9, done.stderr
        assert done.stdout.count("| MLB ") == 1, "one rank tells"
        curves.append(log(out / "teacher.0.csv")["total"] + log(out / "MLB.0.csv")["total"])
    assert len(curves[0]) == 40
    same(curves[1], curves[0], 1e-4)


@slow
def test_a_failing_rank_ends_the_job(toy, tmp_path):
    done, seconds = torchrun(2, "fails", tmp_path, *tiny("train", toy, tmp_path / "out"))
    assert done.returncode != 0 and "rank 1 of 2 has no more memory" in done.stderr
    assert seconds < 15, f"{seconds:.1f} s"


PEAK = """
import resource
begun = time.perf_counter()
code = mlb.main(sys.argv[1:])
print(code, time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@slow
def test_a_12_megapixel_photo_takes_seconds_and_little_memory(trained, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    coarse = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    large = Image.fromarray(coarse).resize((4000, 3000), Image.BICUBIC)
    large.save(tmp_path / "p.jpg", exif=exif)
    said, errors = script(PEAK, "matte", tmp_path / "p.jpg", "--weights", trained[1] / "MLB.0.pt",
                          "--size", 512, "--out", tmp_path / "o", "--device", "cpu").communicate()
    code, seconds, memory = map(float, said.split()[-3:])
    assert code == 0 and Image.open(tmp_path / "o/p.png").size == (3000, 4000), errors
    assert memory < 1200, f"{memory:.0f} MiB"
    assert seconds < 10, f"{seconds:.1f} s"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_trains_benches_and_mattes(toy, tmp_path):
    out = tmp_path / "out"
    assert main(*tiny("train", toy, out)[:-1], "cuda", "--workers", 2, "--compile") == 0
    assert state(out / "MLB.0.pt")["scaler"], "fp16 with a scaler is CUDA's default"
    assert main("bench", "--size", 64, "--device", "cuda") == 0
    assert main("matte", picture(tmp_path / "p.png"), "--weights", out / "MLB.0.pt", "--out", out) == 0


if __name__ == "__main__":
    sys.exit(write(sys.argv[1:]))
