# SPDX-License-Identifier: MIT
"""What mlb.py promises, in mlb.py's order: python -m pytest [-m "not slow"]

To see how the method is tested, read first what this runs:
python -m pytest -vv -k "blend_exercise or boundary_label_exercise or by_hand or label_of_their_row"
How tests are tested: test_right_answers_are_green_and_wrong_ones_red, test_a_bug_is_noticed.
MLB=my_mlb python -m pytest tests your own copy, my_mlb.py. Exercises: python test_mlb.py tells how;
grep -n _exercise test_mlb.py finds their tests; answers are at the end of this file.
"""

import ast
import functools
import importlib
import inspect
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import traceback
import types
import warnings
from pathlib import Path
from unittest.mock import MagicMock, Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageCms

HERE = Path(__file__).parent
SAMPLE = HERE / "data_sample"
sys.path.insert(0, os.getcwd())
mlb = importlib.import_module(os.environ.get("MLB", "mlb"))
torch.set_num_threads(1)  # pictures of 32 pixels are not worth a second thread

TINY = ["--size=32", "--width=8", "--batch=4", "--teacher-steps=5", "--steps=6", "--device=cpu"]


def assert_close(got, expected, tolerance=1e-6):
    """Numbers, arrays or tensors of one shape that differ by at most the tolerance."""
    __tracebackhide__ = True
    assert got is not None, "expected numbers, got None: is there a return?"
    got, expected = np.asarray(got, float), np.asarray(expected, float)
    assert got.shape == expected.shape, f"expected shape {expected.shape}, got {got.shape}"
    off = np.abs(got - expected)
    worst = tuple(map(int, np.unravel_index(off.argmax(), off.shape)))
    said = f"expected {expected[worst]:.6g}, got {got[worst]:.6g} at {worst}"
    assert (off <= tolerance).all(), said


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Each test runs in a new folder: whatever it writes lies there."""
    monkeypatch.chdir(tmp_path)


def save_picture(path, array, **options):
    """Saves an array of bytes, H×W or H×W×3 or 4, at a path whose folders need not be there yet."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path, **options)
    return path


def save_photo(path, width=40, height=40, seed=0, **options):
    """Saves a picture of noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return save_picture(path, noise, **options)


def disc(width=40, height=40, soft=1, radius=13):
    """A matte, bytes H×W: a disc in the middle, its edge `soft` pixels wide (0: a mask)."""
    y, x = np.mgrid[:height, :width]
    inside = radius + 0.25 - np.hypot(x - width / 2, y - height / 2)
    return (255 * (inside / max(soft, 1e-9) + 0.5).clip(0, 1)).astype(np.uint8)


def make_toy(root):
    """A whole data set of tiny pictures below root."""
    photos = ["matte/foreground", "matte/background", "segmentation/image", "test/image"]
    labels = {"matte/alpha": 6, "segmentation/alpha": 4, "segmentation/mask": 0, "test/alpha": 5}
    for k in range(4):
        for folder in photos:
            save_photo(root / folder / f"{k}.jpg", seed=k)
        for folder, soft in labels.items():
            save_picture(root / folder / f"{k}.png", disc(soft=soft, radius=12 + k))
    return root


@pytest.fixture
def toy(tmp_path):
    """A tiny data set of one's own."""
    return make_toy(tmp_path / "toy")


def call(*words):
    """The program with a command line -> its exit status."""
    return mlb.main([str(word) for word in words])


def run(command, toy, out, *more):
    """A tiny training -> the program's exit status."""
    return call(command, "--data", toy, "--out", out, *TINY, *more)


def start(*words, **env):
    """Python on these words, with mlb.py at hand and one thread."""
    home = str(Path(mlb.__file__).parent)
    return subprocess.Popen(
        [sys.executable, "-u", *map(str, words)],
        env=os.environ | {"PYTHONPATH": home, "OMP_NUM_THREADS": "1"} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def error_of(capsys, *words):
    """The one line that the program says when it refuses these words of a command line."""
    __tracebackhide__ = True
    capsys.readouterr()
    assert call(*words) == 2
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if not line.startswith("mlb: note: ")]
    assert len(errors) == 1, f"expected one line, got {errors}"
    assert errors[0].startswith("mlb: error: ")
    return errors[0]


def weights(out, row="MLB.0"):
    """All weights of a row's file as one vector."""
    net = torch.load(out / f"{row}.pt", weights_only=True)["net"]
    return torch.cat([value.flatten().double() for value in net.values()])


def log_of(path):
    """A row's CSV as an array whose fields are the columns."""
    return np.genfromtxt(path, delimiter=",", names=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(data, out) of a tiny training, to be looked at and not changed."""
    root = tmp_path_factory.mktemp("trained")
    assert run("train", make_toy(root / "toy"), root / "out", "--amp", "fp16") == 0
    return root / "toy", root / "out"


def refusal(call, *given):
    """What the UserError of a call says."""
    with pytest.raises(mlb.UserError) as problem:
        call(*given)
    return str(problem.value)


# == 1  Data ====================================================================================


def test_pictures_are_found_in_folders_and_behind_links_and_others_counted(capsys):
    for name in ("r/b.JPG", "r/a/c.png", "r/._b.jpg", "elsewhere/d.webp"):
        save_photo(name)
    Path("r/e.heic").touch()
    Path("r/link").symlink_to(Path("elsewhere").resolve())
    found = [str(path) for path in mlb.find_pictures("r")]
    assert found == ["r/a/c.png", "r/b.JPG", "r/link/d.webp"]
    said = capsys.readouterr().err
    assert said.startswith("mlb: note: 1 files") and "e.heic" in said


def test_pictures_pair_by_name_then_by_stem(capsys):
    """The two forms of é are one letter; of two equal names or stems none is taken, but counted."""
    photos = (
        "i/clip1/0.jpg i/clip2/0.jpg i/x/7.jpg i/x/9.jpg i/y/9.jpg i/8.jpg i/8.gif i/\u00e9.jpg"
    )
    labels = "m/clip1/0.png m/clip2/0.png m/y/7.png m/e\u0301.png"
    for name in f"{photos} {labels} m/8.png m/9.png".split():
        save_photo(name)
    found = " ".join(str(label) for _, label in mlb.pairs("i", "m"))
    assert found == labels, f"expected {labels}, got {found}"
    said = capsys.readouterr().err
    assert said.startswith("mlb: note: 6 pictures without") and said.count("\n") == 1


def test_folders_without_a_pair_are_refused():
    save_photo("one/a.jpg")
    save_photo("two/b.jpg")
    assert "one: no name" in refusal(mlb.pairs, "one", "two")
    assert "none: no pictures" in refusal(mlb.pairs, "one", "none")


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_photos_and_labels_are_read_upright(suffix):
    array = np.zeros((32, 48), np.uint8)
    array[:16, 16:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    path = save_picture(f"p.{suffix}", array, exif=exif)
    photo, label = mlb.read_pair(path, path)
    upright = np.rot90(array, -1)
    assert_close(label, upright, 4)
    assert_close(photo.getchannel("R"), upright, 4)


def test_labels_of_every_kind_mean_the_same():
    mask = disc(soft=0, radius=13.5)
    image = Image.fromarray(mask)
    kinds = [image.convert(mode) for mode in ("L", "1", "RGB", "RGBA")]
    kinds.append(Image.fromarray(mask // 255))
    kinds.append(Image.fromarray(np.dstack([mask // 2, mask // 3, mask, mask])))  # AISegment's
    kinds.append(Image.merge("LA", [image.point(lambda value: 99), image]))
    kinds.append(kinds[-2].quantize(8))
    for kind in kinds:
        kind.save("label.png")
        assert_close(mlb.read("label.png", label=True), mask)


@pytest.mark.parametrize("mode", ["I;16", "F", "P", "RGB", "RGBA", "CMYK", "LAB"])
def test_labels_of_colours_or_more_bits_are_refused(mode):
    image = Image.fromarray(disc(soft=0))
    colours = Image.merge("RGB", [image, image.rotate(45), image])
    colours.convert(mode).save("label.tif")
    assert "label.tif" in refusal(mlb.read, "label.tif", True)


def test_class_numbers_are_refused_but_a_stray_pixel_of_one_makes_no_mask():
    matte = np.eye(40)
    matte[3:] = 0
    assert_close(mlb.read(save_picture("stray.png", matte), label=True), matte)
    classes = save_picture("classes.png", disc() // 100)
    assert "classes.png" in refusal(mlb.read, classes, True)


def test_a_pair_is_of_one_aspect():
    photo = save_photo("p.png", 100, 100)
    mlb.read_pair(photo, save_picture("m.png", disc(50, 51)))
    said = refusal(mlb.read_pair, photo, save_picture("m.png", disc(100, 103)))
    assert "m.png" in said and "p.png" in said


def test_hostile_files_are_named(monkeypatch):
    whole = save_photo("whole.jpg", 90, 90)
    Path("cut.jpg").write_bytes(whole.read_bytes()[:2000])
    Path("empty.jpg").touch()
    os.mkfifo("pipe.jpg")
    save_photo("ppm.png", format="PPM")
    save_photo("narrow.png", 15, 40)
    save_photo("long.png", 16, 257)
    save_photo("bomb.png", 200, 200)
    Image.new("I;16", (40, 40)).save("deep.png")
    Image.new("F", (40, 40)).save("float.tif")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9000)
    mlb.read(whole)
    whole.unlink()
    for name in ["whole.jpg", *os.listdir()]:
        assert name in refusal(mlb.read, name)


def test_composite_exercise02():
    """In [0, 1] and in bytes; one channel of alpha for three colours."""
    foreground = np.array([[1.0, 0.5, 0.0], [0.2, 0.2, 0.2]])
    background = 1 - foreground
    alpha = np.array([[0.25], [0.75]])
    expected = np.array([[0.25, 0.5, 0.75], [0.35, 0.35, 0.35]])
    for scale in (1, 255):
        front, behind = scale * foreground, scale * background
        got = mlb.composite(front, alpha, behind)
        assert got is not None, "expected numbers, got None: is there a return?"
        assert got.shape == (2, 3), f"expected shape (2, 3) as of the colours, got {got.shape}"
        assert (front + behind == scale).all(), "expected input as it was, got input changed"
        for i, j in np.ndindex(2, 3):
            case = f"foreground {front[i, j]:g}, alpha {alpha[i, 0]:g}, background {behind[i, j]:g}"
            wanted = scale * expected[i, j]
            off = abs(got[i, j] - wanted)
            assert off < 1e-6, f"expected {wanted:g} for {case}, got {got[i, j]:g}"
    (half,) = mlb.composite(np.uint8([10]), np.float32([0.5]), np.uint8([20]))
    assert half == 15, f"expected 15 half-way from byte 10 to 20, got {half:g}: a difference wraps"


def over_seeds(augment, given):
    """What an augmentation makes of what it is given, with 100 seeds."""
    return np.stack([augment(given, np.random.default_rng(k)) for k in range(100)])


def test_degrade_changes_light_and_noise_and_blurs():
    edge = np.full((32, 32, 3), 128, np.uint8)
    edge[:, 16:] = 0
    shown = over_seeds(mlb.degrade, edge)
    grey, black = shown[:, :, :12, 0], shown[:, :, 16, 0]
    light = grey.mean((1, 2))
    assert_close([light.min(), light.max()], [93, 166], 12)
    noisy, blurred = grey.std((1, 2)) > 1, black.mean(1) > 12
    assert_close([noisy.mean(), blurred.mean()], [0.27, 0.27], 0.1)


def test_clutter_draws_on_seven_backgrounds_of_ten():
    grey = np.full((64, 64, 3), 128, np.uint8)
    drawn = (over_seeds(mlb.clutter, grey) != grey).any((1, 2, 3))
    assert_close(drawn.mean(), 0.7, 0.1)


def test_clutter_draws_three_kinds_of_things(monkeypatch):
    draw = Mock()
    monkeypatch.setattr(mlb.ImageDraw, "Draw", lambda picture: draw)
    over_seeds(mlb.clutter, np.zeros((64, 64, 3), np.uint8))
    assert {name for name, *_ in draw.mock_calls} == {"ellipse", "rectangle", "line"}
    for _, (places, *_), _ in draw.mock_calls:
        assert -0.2 <= min(places) / 64 and max(places) / 64 <= 1.6, "near the picture"


def test_hurried_mask_of_a_person_exercise08():
    matte = disc(100, 120, radius=32)
    body = matte > 127
    matte[8:28, 20:80:6] = 200
    masks = over_seeds(mlb.hurried_mask, matte)
    shape, values = masks.shape[1:], np.unique(masks).tolist()
    assert shape == matte.shape, f"expected shape {matte.shape}, got {shape}"
    assert values == [0, 255], f"expected 0 and 255, got {values[:5]}"
    inside = masks > 0
    hair = inside[:, 8:20].mean()
    assert hair < 0.005, f"expected hair cut off, got {hair:.1%} of its place in masks"
    overlap = (inside & body).sum((1, 2)) / (inside | body).sum((1, 2))
    assert overlap.min() > 0.55, f"expected an IoU over 0.55, got {overlap.min():.2f}"
    alike = (masks[:, 29:91] == masks[:, 30:92]).all(2).mean()
    said = f"expected a lower resolution, cut before it is enlarged, got {alike:.0%} of rows alike"
    assert alike > 0.4, said


def test_hurried_mask_is_random_and_uneven_exercise08():
    masks = over_seeds(mlb.hurried_mask, np.full((40, 64), 170, np.uint8))
    uneven = (masks.max((1, 2)) > masks.min((1, 2))).mean()
    assert uneven > 0.5, "expected a level that differs from place to place, got one level"
    smooth = (masks[:, :, 1:] == masks[:, :, :-1]).mean()
    said = (
        "expected large pieces (levels change slowly), 90% of pixels as their neighbour, got {:.0%}"
    )
    assert smooth > 0.9, said.format(smooth)
    assert (masks[0] != masks[1]).any(), "expected two seeds to differ, got one mask"
    again = over_seeds(mlb.hurried_mask, np.full((40, 64), 170, np.uint8))
    assert (masks == again).all(), "expected one seed to give one mask, got another"


def test_half_of_the_annotators_are_careful(monkeypatch):
    monkeypatch.setattr(mlb, "hurried_mask", lambda matte, rng: 0 * matte)
    matte = disc(soft=6)
    masks = over_seeds(mlb.annotate, matte)
    careful = (masks == 255 * (matte > 127)).all((1, 2))
    hurried = (masks == 0).all((1, 2))
    assert_close([careful.mean(), hurried.mean()], [0.5, 0.5], 0.1)


def person_mixer(mix=0.5, **more):
    """A mixer of one photo whose red is its matte, so that red shows what alpha did to it; the
    background of composites is blue."""
    y, x = np.mgrid[:48, :48]
    matte = save_picture("matte.png", (12 * x + 6 * y - 250).clip(0, 255))
    black = Image.new("L", (48, 48))
    Image.merge("RGB", [Image.open(matte), black, black]).save("red.png")
    Image.new("RGB", (48, 48), "blue").save("blue.png")
    pair = "red.png", "matte.png"
    return mlb.Mixer([pair], ["blue.png"], [pair], mix, size=32, **more)


def test_samples_depend_on_seed_and_index_alone_exercise05(monkeypatch):
    monkeypatch.setattr(mlb, "annotate", one_grey_mask)  # hurried_mask is a hole of its own
    mixer = person_mixer(guided=True)
    samples = [mixer[i] for i in range(9)]
    keys = sorted(samples[0])
    expected = ["image", "mask", "natural", "target"]
    assert keys == expected, f"expected keys {expected}, got {keys}"
    kind = type(samples[0]["natural"]).__name__
    assert "bool" in kind, f"expected natural as True or False, got {kind}"
    for i in (8, 0, 7, 3, 0, 5, *range(9)):
        for key, again in mixer[i].items():
            same = np.array_equal(again, samples[i][key])
            assert same, f"expected sample {i} as before, got another {key}"
    other = person_mixer(seed=1)[0]
    differ = not np.array_equal(other["image"], samples[0]["image"])
    assert differ, "expected seeds to differ, got the same"
    for key, channels in {"image": 3, "target": 1, "mask": 1}.items():
        got = other[key]
        expected = channels, 32, 32
        assert got.shape == expected, f"expected {key} of shape {expected}, got {got.shape}"
        assert got.dtype == np.uint8, f"expected {key} as a numpy array of bytes, got {got.dtype}"


def test_mix_is_the_share_of_composites_exercise05():
    mixer = person_mixer(0.25)
    share = np.mean([not mixer[i]["natural"] for i in range(100)])
    assert abs(share - 0.25) < 0.15, f"expected a share of composites of 0.25, got {share:.2f}"


def one_grey(given, rng):
    """Stands for degrade or clutter: all of one random level."""
    return np.full_like(given, rng.integers(256))


def one_grey_mask(matte, rng):
    """Stands for annotate."""
    assert matte.ndim == 2, f"expected annotate of a matte H×W, got one of shape {matte.shape}"
    return one_grey(matte, rng)


def half_square(image, rng):
    """Stands for degrade: red r becomes r²/2, which shows whether it was called, on what, when."""
    return np.uint8(image / 510.0 * image)


def green_clutter(image, rng):
    """Stands for clutter."""
    return 0 * image + np.uint8([0, 255, 0])


def test_a_photo_as_it_is_by_hand_exercise05(monkeypatch):
    """A natural photo, though there are backgrounds; a composite, if there are none."""
    monkeypatch.setattr(mlb, "clutter", green_clutter)
    monkeypatch.setattr(mlb, "degrade", half_square)
    for mix, backgrounds in ((0, [("blue.png", None)]), (1, [])):
        mixer = person_mixer(mix)
        mixer.backgrounds = backgrounds
        red, *others = mixer[0]["image"]
        assert not np.any(others), "expected the photo as it is, red, got other colours"
        assert red.max() != 255, "expected degrade on the photo, got it as it was"
        assert red.max() == 127, f"expected degrade once, on the whole photo, got {red.max()}"
        target = mixer[0]["target"][0] / 255
        highest = 255 * target.max()
        assert highest == 255, f"expected a target without degrade, to 255, got it to {highest:g}"
        soft = ((target > 0.1) & (target < 0.9)).mean()
        assert soft > 0.2, f"expected a soft target, got {soft:.0%} between 0.1 and 0.9"
        off = abs(red / 255 - target**2 / 2).mean()
        said = f"expected photo and label cut as one, sides in their order, got {off:.2f} off"
        assert off < 0.02, said


def test_a_composite_by_hand_exercise05(monkeypatch):
    """The photo's red is the target t; on green it is t·t + (1 − t)·0 = t², degraded t⁴ / 2."""
    monkeypatch.setattr(mlb, "clutter", green_clutter)
    monkeypatch.setattr(mlb, "degrade", half_square)
    mixer = person_mixer(mix=1)
    for i in range(10):
        target = mixer[i]["target"][0] / 255
        red, green, blue = mixer[i]["image"] / 127
        black = (red + green + blue).max() == 0
        assert not black, "expected a picture, got a black one: to_bytes takes 0 to 255"
        assert blue.max() < 0.5, "expected clutter on the background, got it left out"
        said = "expected the person in front, degraded once at the end, got red {:.2f} of 1"
        assert red.max() > 0.9, said.format(red.max())
        off = abs(red - target**4).mean() + abs(green - (1 - target) ** 2).mean()
        said = "expected degrade last, of a composite with alpha = target / 255, got {:.2f} off"
        assert off < 0.02, said.format(off)


def test_a_composite_is_rounded_to_bytes_exercise05(monkeypatch):
    """The photo's red is the target t: before black it becomes t²."""
    monkeypatch.setattr(mlb, "clutter", lambda image, rng: 0 * image)
    monkeypatch.setattr(mlb, "degrade", lambda image, rng: image)
    sample = person_mixer(mix=1)[0]
    target = sample["target"][0].astype(float)
    off = abs(sample["image"][0] - target**2 / 255).max()
    assert off < 0.51, f"expected colours rounded to bytes, got them {off:.2f} off"


def test_an_annotated_mask_changes_nothing_else_exercise05(monkeypatch):
    monkeypatch.setattr(mlb, "annotate", lambda matte, rng: 0 * matte)
    plain, guided = (person_mixer(1, guided=guided)[0] for guided in (False, True))
    for key in ("image", "target"):
        same = np.array_equal(plain[key], guided[key])
        assert same, f"expected guided to change the mask alone, got another {key}"


def test_each_sample_has_random_numbers_of_its_own_exercise05(monkeypatch):
    mixer = person_mixer(mix=1)
    for step, other in (("degrade", "clutter"), ("clutter", "degrade")):
        monkeypatch.setattr(mlb, step, one_grey)
        monkeypatch.setattr(mlb, other, lambda image, rng: image)
        greys = {int(mixer[i]["image"][2].max()) for i in range(8)}
        assert len(greys) > 4, f"expected {step} with the sample's rng, got samples alike"


def test_every_picture_is_drawn_from_exercise05(monkeypatch):
    mixer = person_mixer()
    mixer.naturals, mixer.backgrounds = 2 * mixer.naturals, 3 * mixer.backgrounds
    monkeypatch.setattr(mixer, "crop", Mock(wraps=mixer.crop))
    for mixer.mix in (0, 1):
        mixer[0]
    got = [len(call.args[0]) for call in mixer.crop.call_args_list]
    said = f"expected crops of 2 photos, 1 composite, 3 backgrounds, got {got}"
    assert got[0] == 2 and sorted(got[1:]) == [1, 3], said


def test_only_composites_for_the_guided_have_annotated_masks_exercise05(monkeypatch):
    monkeypatch.setattr(mlb, "annotate", one_grey_mask)
    for mix, guided, expected in ((1, True, True), (1, False, False), (0, True, False)):
        mixer = person_mixer(mix, guided=guided)
        if guided:
            mixer.backgrounds = []
        target, mask = mixer[0]["target"], mixer[0]["mask"]
        kind = "annotate's" if expected else "its target as the"
        annotated = (mask == mask.max()).all()
        same = np.array_equal(mask, target)
        said = f"expected {kind} mask for mix {mix} and guided {guided}, got another"
        assert annotated if expected else same, said
        if expected:
            levels = {int(mixer[i]["mask"].max()) for i in range(8)}
            assert len(levels) > 4, "expected annotate with the sample's rng, got masks alike"


def test_a_crop_is_a_square_anywhere_mirrored_or_not():
    """A pixel's red and green tell where in the photo it was."""
    y, x = np.mgrid[:40, :60]
    path = save_picture("p.png", np.dstack([4 * x, 4 * y, y]))
    mixer = mlb.Mixer([], [], [], 0, 32)
    crops = over_seeds(lambda item, rng: mixer.crop([item], rng)[0] / 4, (path, None))
    corners = crops[:, [0, -1], [0, -1], :2]
    (left, top), (right, bottom) = corners.transpose(1, 2, 0)
    height = bottom - top
    assert_close(abs(right - left), height, 1)
    assert_close([height.min(), height.max()], [27, 39], 1.5)
    assert_close([right.min(), right.max(), top.min(), bottom.max()], [0, 59, 0, 39], 1.5)
    assert_close((left > right).mean(), 0.5, 0.1)  # mirrored


def test_a_photo_is_decoded_no_smaller_than_its_smallest_crop_needs(monkeypatch):
    monkeypatch.setattr(mlb, "read_pair_once", Mock(wraps=mlb.read_pair))
    person_mixer(mix=0)[0]
    _, _, short = mlb.read_pair_once.call_args.args
    assert short == 46, "32 / 0.7"


def test_a_damaged_file_is_named_and_another_takes_its_place(capsys):
    mixer = person_mixer(mix=0)
    gone = "gone.png", "alpha.png"
    mixer.naturals.append(gone)
    assert len([mixer[i] for i in range(20)]) == 20
    assert capsys.readouterr().err.count("gone.png") == 1, "expected one note"
    mixer.naturals = [gone]
    assert "gone.png" in refusal(mixer.__getitem__, 0)


DIGEST = f"""
import hashlib, sys, torch, {mlb.__name__} as mlb
digest = hashlib.sha256()
matte, segmentation = mlb.SAMPLE / "matte", mlb.SAMPLE / "segmentation"
composites = mlb.pairs(matte / "foreground", matte / "alpha")
backgrounds = mlb.find_pictures(matte / "background")
naturals = mlb.pairs(segmentation / "image", segmentation / "mask")
for size in (128, 160):
    mixer = mlb.Mixer(composites, backgrounds, naturals, 0.5, size, seed=1, guided=True)
    one_by_one = [[i] for i in range(12)]
    for sample in torch.utils.data.DataLoader(
        mixer, batch_sampler=one_by_one, num_workers=int(sys.argv[1])
    ):
        for key in ("image", "target", "mask"):
            digest.update(sample[key].numpy().tobytes())
print(digest.hexdigest())
"""


@pytest.mark.slow
def test_samples_have_the_same_bits_for_any_threads_and_workers():
    children = [
        start("-c", DIGEST, workers, OMP_NUM_THREADS=threads)
        for threads, workers in (("1", 0), ("2", 0), ("2", 2))
    ]
    found = {child.communicate()[0] for child in children}
    assert len(found) == 1, f"expected the same bits, got {found}"
    assert len(found.pop()) == 65, "expected a digest"


# == 2  Model ===================================================================================


@pytest.mark.parametrize("guided", [False, True])
def test_the_network_gives_two_full_size_maps(guided):
    net = mlb.MattingNet(8, guided).eval()
    image, mask = torch.rand(1, 3, 64, 96), torch.rand(1, 1, 64, 96)
    matte, boundary = net(image, mask)
    assert matte.shape == boundary.shape == mask.shape
    assert not torch.equal(matte, boundary), "expected two maps, got one twice"
    other, _ = net(image, 1 - mask)
    assert torch.equal(matte, other) != guided, "expected only guided ones to look at masks"


def test_the_network_is_compact():
    count = sum(p.numel() for p in mlb.MattingNet().parameters())
    assert_close(count, 530_000, 5000)


def test_each_skip_matters():
    """With all that is coarser silent, what a layer is given still depends on the picture."""
    net, given = mlb.MattingNet(8).eval(), []
    for name in ("deep32", "up32", "up16", "up8"):
        torch.nn.init.zeros_(getattr(net, name)[1].weight)
    for layer in (net.up32, net.up16, net.up8, net.up4):
        layer.register_forward_pre_hook(lambda _, inputs: given.extend(inputs))
    net(torch.rand(2, 3, 32, 32))
    for one, other in given:
        assert not torch.equal(one, other), f"expected a skip of {len(one)} channels, got none"


# == 3  MLB =====================================================================================


def test_boundary_label_exercise01():
    M = torch.tensor([0, 0.05, 0.06, 0.94, 0.95, 1])
    given = M.clone().view(1, 1, 2, 3)
    usual = mlb.boundary_label(given).flatten()
    for value, got, wanted in zip(M, usual, [0, 0, 1, 1, 0, 0], strict=True):
        assert got == wanted, f"expected {wanted} for M {value:g}, got {got:g}"
    narrow = mlb.boundary_label(given, 0.01, 0.06).flatten()
    for value, got, wanted in zip(M, narrow, [0, 1, 0, 0, 0, 0], strict=True):
        case = f"M {value:g}, low 0.01 and high 0.06"
        assert got == wanted, f"expected {wanted} for {case}, got {got:g}"
    assert torch.equal(given.flatten(), M), "expected M as it was, got input changed"
    kind = mlb.boundary_label(M.double()).dtype
    assert kind == torch.float64, f"expected torch.float64 as M has, got {kind}"


def test_blend_exercise03():
    """M′ where α′ is 1, S where it is 0, between them in proportion."""
    cases = [(0.8, 0.25, 0, 0.2), (0.8, 0, 1, 1), (0.8, 1, 0, 0.8), (0.3, 0.5, 1, 0.65)]
    cases = torch.tensor([*cases, (0.2, 0.5, 0.4, 0.3), (0.4, 0.2, 1, 0.88)])
    given = cases[:, :3].T.clone()
    found = mlb.blend(*given.view(3, 1, 1, 2, 3)).flatten()
    for (M_t, alpha_t, S, wanted), got in zip(cases, found, strict=True):
        case = f"M′ {M_t:g}, α′ {alpha_t:g} and S {S:g}"
        assert abs(got - wanted) < 1e-6, f"expected {wanted:g} for {case}, got {got:g}"
    assert torch.equal(given, cases[:, :3].T), "expected input as it was, got input changed"


def test_a_guided_teacher_is_believed_where_it_contradicts_the_mask():
    """By 0.8: B, which is 0.2, becomes 0.8 · 0.8 + 0.2 · 0.2."""
    M_t = torch.tensor([0.8, 0.8, 0.8])
    alpha_t = torch.tensor([0.25, 0.25, 1])
    S = torch.tensor([0.0, 1, 0])
    assert_close(mlb.guided_blend(M_t, alpha_t, S), [0.68, 0.92, 0.8])


def test_laplacian_loss_exercise04():
    checks = torch.tensor(np.indices((32, 32)).sum(0) % 2.0)[None, None]
    got = mlb.laplacian_loss(checks, checks + 0.5)
    assert got is not None, "expected a number, got None: is there a return?"
    said = "expected 0 for pictures that differ by a constant, 0.5, which is in no band, got {:.4g}"
    assert abs(got) < 1e-6, said.format(got)
    got = mlb.laplacian_loss(checks, 0 * checks, levels=1)
    said = "expected 0.5 for a checkerboard of pixels against black, 1 level, got {:.4g}"
    assert abs(got - 0.5) < 1e-6, said.format(got)
    for level, expected in enumerate([0.125, 0.25, 0.5, 1, 0]):  # the last: too coarse
        squares = F.interpolate(checks, scale_factor=2**level)[..., :32, :32]
        got = mlb.laplacian_loss(0 * squares, squares)
        case = f"a checkerboard of {2**level}-pixel squares against black, 4 levels"
        assert abs(got - expected) < 1e-6, f"expected {expected} for {case}, got {got:.4g}"


def test_mlb_loss_by_hand_exercise09():
    """Half of the pixels are white, a quarter is boundary."""
    target, boundary, zero = torch.zeros(3, 2, 1, 16, 16)
    target[..., :8] = 1
    boundary[..., :4] = 1
    logits = (12 * boundary - 6).requires_grad_()
    other = (zero - 6).requires_grad_()
    terms = mlb.mlb_loss(logits, other, target, boundary)
    expected = {
        # a quarter each: right in the boundary, then white missed, then black right
        "matte": np.log1p(np.exp([-6, 6, -6, -6])).mean(),
        "boundary": np.log1p(np.exp([6, -6, -6, -6])).mean(),  # missed, then right
        "detail": 1 / (1 + math.exp(6)),
        "laplacian": mlb.laplacian_loss(logits.sigmoid(), target),
    }
    expected["total"] = sum(expected.values())
    assert set(terms) == set(expected), f"expected {set(expected)}, got {set(terms)}"
    for name, value in expected.items():
        off = abs(terms[name] - value)
        case = f"{name} {value:.5f} (half the pixels white, a quarter boundary)"
        assert off < 1e-5, f"expected {case}, got {terms[name]:.5f}"
        assert terms[name].requires_grad, f"expected a gradient of {name}, got none"


def test_detail_is_a_mean_over_pictures_exercise09():
    """Of two boundary pixels one is wrong; half a picture is boundary, all wrong; one has none."""
    target, boundary, logits = torch.zeros(3, 3, 1, 16, 16)
    boundary[0, 0, 0, :2] = boundary[1, 0, :8] = target[1, 0, :8] = 1
    logits -= 50
    logits[0, 0, :8, 0] = 50  # most of them no boundary
    detail = mlb.mlb_loss(logits, logits, target, boundary)["detail"]
    said = "expected detail 0.5, the mean of three pictures' 1/2, 1 and 0 (no boundary), got {:.4f}"
    assert abs(detail - 0.5) < 1e-6, said.format(detail)


def test_loss_is_finite_and_in_fp32_exercise09():
    """16-bit logits, a picture without boundary."""
    logits = torch.linspace(-3, 3, 256).view(1, 1, 16, 16).bfloat16().requires_grad_()
    black = torch.zeros(1, 1, 16, 16)
    expected = mlb.mlb_loss(logits.float(), logits.float(), black, black)
    with torch.autocast("cpu", torch.bfloat16):
        got = mlb.mlb_loss(logits, logits, black, black)
    off = abs(got["total"] - expected["total"])
    assert off < 1e-6, f"expected the total as in fp32, got it {off:.1g} off"
    got["total"].backward()
    assert logits.grad.isfinite().all(), "expected finite gradients, got others"
    sure = black + 200
    matte = mlb.mlb_loss(sure, sure, black, black)["matte"]
    said = "expected matte 200 for a wrong logit of 200, got {:g}: use the logits"
    assert abs(matte - 200) < 1e-3, said.format(matte)  # a sigmoid of 1 has forgotten how sure


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_hair_of_one_pixel_is_memorised(seed):
    """Of three pictures one's hair is red, one's green, one's blue, before noise of other colours.
    The detail term ends at 0.02; without the gate of green at 0.06, without any at 0.13."""
    torch.manual_seed(seed)
    image = 60 + 140 * torch.randint(2, (3, 3, 32, 32), dtype=torch.uint8)
    hair = torch.stack([image[k, k : k + 1] for k in range(3)])
    batch = {"image": image, "target": hair, "mask": hair}
    net = mlb.MattingNet(8)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for _ in range(60):
        terms = mlb.train_step(net, batch, None, None, optimizer, scaler, None)
    detail = terms[mlb.COLUMNS.index("detail")]
    assert detail < 0.03, f"expected hair memorised, got a detail term of {detail:.3f}"


def make_batch():
    """A photo and a composite of noise, as the mixer gives them."""
    torch.manual_seed(0)
    noise = torch.randint(256, (2, 5, 32, 32)).byte()
    image, target, mask = noise.split((3, 1, 1), dim=1)
    natural = torch.tensor([True, False])
    return {"image": image, "target": target, "mask": mask, "natural": natural}


def test_pictures_reach_the_network_in_0_to_1():
    for got in mlb.label_batch(make_batch(), None, None, "cpu"):
        assert_close([got.min(), got.max()], [0, 1])


# == 4  Training ==================================================================================

OUT = Path("out")  # below a folder of each test's own
ONE_STEP = ["--teacher-steps", 1, "--steps", 1]


def train_error(capsys, toy, out, *more):
    """The one line that a tiny training says when it is refused."""
    return error_of(capsys, "train", "--data", toy, "--out", out, *TINY, *more)


def scores_of(out):
    """metrics.json of a folder."""
    return json.loads((out / "metrics.json").read_text())


def grey(path):
    """A label in [0, 1]."""
    return np.asarray(Image.open(path)) / 255


class Line(torch.nn.Conv2d):
    """The smallest network: matte and boundary are weighted sums of a pixel's colours."""

    def __init__(self):
        super().__init__(3, 2, kernel_size=1, bias=False)

    def forward(self, image, mask):
        return super().forward(image).split(1, dim=1)


def take_step(net, batch, label="S", teacher=None, scaled=False, half=None):
    """A training step that moves no weight; gradients can be looked at."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", enabled=scaled)
    mlb.train_step(net, batch, label, teacher, optimizer, scaler, half)


@pytest.fixture
def loss(monkeypatch):
    """mlb_loss, whose call_args tell what it was given."""
    monkeypatch.setattr(mlb, "mlb_loss", Mock(wraps=mlb.mlb_loss))
    return mlb.mlb_loss


def test_learning_rate_is_a_ramp_then_half_a_cosine():
    rates = [mlb.learning_rate(step, 1000, 0.4) for step in (1, 20, 501, 1000)]
    assert_close(rates, [0.02, 0.399644, 0.2, 0.000001])


def test_an_orthogonal_matrix_keeps_directions_and_forgets_lengths():
    """As a singular value decomposition knows them; of nothing comes nothing."""
    G = torch.randn(8, 50, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(G, full_matrices=False)
    lengths = left.T @ mlb.orthogonal(G) @ right.T
    assert_close(lengths, lengths.diagonal().diag(), 1e-4)
    assert_close(lengths.diagonal(), torch.ones(8), 0.35)
    assert_close(mlb.orthogonal(0 * G), 0 * G)


def test_muon_moves_by_a_mean_of_gradients_as_far_as_the_learning_rate_says():
    x = torch.nn.Parameter(torch.zeros(4))
    muon = mlb.Muon([x], {"lr": 0.1, "weight_decay": 0})
    first, second = torch.tensor([[1.0, 0, 0, 0], [0, 10, 0, 0]])
    x.grad = first
    muon.step()
    start = x.detach().clone()
    x.grad = second
    muon.step()
    moved = x.detach() - start
    mean = second + 0.95 * (0.95 * first + second)
    assert_close(moved / moved.norm(), -mean / mean.norm())
    assert_close(moved.square().mean().sqrt(), 0.1, 0.035)


def test_fp16s_scaler_leaves_the_true_gradients():
    net, gradients = Line(), []
    for scaled in (False, True):
        take_step(net, make_batch(), scaled=scaled)
        gradients.append(net.weight.grad.clone())
    assert_close(*gradients)


def test_train_step_forgets_the_last_gradients():
    net, batch = Line(), make_batch()
    take_step(net, batch)
    first = net.weight.grad.clone()
    take_step(net, batch | {"target": batch["image"][:, :1]})
    take_step(net, batch)
    assert_close(net.weight.grad, first)


@pytest.mark.parametrize("label", ["S", "M′", "B", "B guided"])
def test_photos_get_the_label_of_their_row_and_composites_keep_theirs(label, loss):
    zero, batch = torch.zeros(2, 1, 32, 32), make_batch()
    teacher = Mock(return_value=(zero, zero - math.log(3)))  # M′ is 1/2, α′ is 1/4
    take_step(Line(), batch, label, None if label == "S" else teacher)
    *_, target, boundary = loss.call_args.args
    matte, S = batch["target"] / 255, batch["mask"] / 255
    B_guided = mlb.guided_blend(zero + 0.5, zero + 0.25, S)
    photo = {"S": matte, "M′": zero + 0.5, "B": 0.125 + 0.75 * S, "B guided": B_guided}[label]
    assert_close(target, torch.stack([photo[0], matte[1]]))
    assert torch.equal(boundary, mlb.boundary_label(target)), "the label's boundary is learned"


@pytest.mark.parametrize("device, amp", [("cpu", amp) for amp in mlb.HALF] + [("meta", "off")])
@pytest.mark.parametrize("name", mlb.ROWS)
def test_a_step_of_every_row_keeps_to_its_precision_and_device(
    name, device, amp, loss, monkeypatch
):
    """meta stands in for a GPU: it computes nothing, and refuses to meet what lies on the CPU."""
    if device == "meta":
        monkeypatch.setattr(torch, "autocast", MagicMock())
    row, half = mlb.ROWS[name], mlb.HALF[amp]
    net = mlb.MattingNet(8, row.guided).to(device)
    teacher = mlb.MattingNet(8, guided="guided" in name).to(device) if row.teacher else None
    take_step(net, make_batch(), row.label, teacher, amp == "fp16", half)
    _, logits, *_ = loss.call_args.args
    assert logits.dtype == (half or torch.float32)
    assert {p.dtype for p in net.parameters()} == {torch.float32}


def test_training_is_channels_last():
    """A pixel's channels lie side by side."""
    image, *_ = mlb.label_batch(make_batch(), None, None, "cpu")
    net = mlb.new_net("teacher", 0, mlb.parse(["train", "--device", "cpu"]))
    assert image.stride(1) == net.down4[0].weight.stride(1) == 1


def test_rows_start_from_their_seed_all_weights_learn_and_kernels_alone_decay():
    toy = make_toy(Path("toy"))
    run("train", toy, OUT, *ONE_STEP, "--lr", 0.4, "--weight-decay", 50, "--seed", 1)
    _, net = mlb.load(OUT / "MLB.1.pt")
    torch.manual_seed(1)
    start = mlb.MattingNet(8).state_dict()
    for name, weight in net.named_parameters():
        decay = 0.02 * 50 if weight.dim() > 1 else 0  # all of it: kernels forget their start
        moved = weight - (1 - decay) * start[name]
        matrix = torch.atleast_2d(moved).flatten(1)
        longest = torch.linalg.matrix_norm(matrix, 2) / math.sqrt(max(matrix.shape))
        assert_close(longest, 0.02, 0.007)


def test_train_writes_what_it_promises(trained):
    out = trained[1]
    files = "teacher.0.pt teacher.0.csv MLB.0.pt MLB.0.csv metrics.json table.md "
    files += "batch.png labels.png mattes.png"
    assert sorted(os.listdir(out)) == sorted(files.split())
    scores = scores_of(out)
    assert list(scores) == ["teacher", "MLB", "labels S", "labels M′", "labels B"]
    assert [list(score) for score in scores["MLB"]] == [list(mlb.SCALES)], "one seed"


def test_each_row_shows_its_first_batch(toy, monkeypatch):
    monkeypatch.setattr(mlb, "save_batch", Mock())
    monkeypatch.setattr(mlb, "evaluate_seed", Mock())
    run("train", toy, OUT)
    shown = [call.args[-1].stem for call in mlb.save_batch.call_args_list]
    assert shown == ["teacher.0", "MLB.0"]


@pytest.mark.parametrize("name", ["batch", "labels", "mattes"])
def test_a_sheet_is_not_blank(name, trained):
    page = grey(trained[1] / f"{name}.png")
    assert page[40:].std() > 0.1


@pytest.mark.parametrize("high", [112, 84])
def test_a_sheets_detail_is_where_its_map_is_highest(high):
    """Below the whole picture, whose row is the lower, the wider the picture."""
    spot = torch.zeros(high, 112)
    spot[70:80, 40:50] = 1
    views = {"photo": spot.expand(3, -1, -1), "truth": spot}
    mlb.save_sheet({"x": (views, spot, 0.5)}, "sheet.png")
    whole, detail = np.split(grey("sheet.png")[34:, 228:452], [2 * high + 4])
    area = high * 112 / (high // 2) ** 2  # of the picture, in frames
    assert_close(detail[:224].mean(), area * whole[:-4].mean(), 0.005)


def test_a_batchs_picture_is_the_one_with_hair_at_its_mask():
    """Of a photo without hair, one with hair at its mask and one with as much far away."""
    mask, hair = torch.zeros(2, 3, 1, 64, 64)
    mask[:, :, :, :20] = 1
    hair[1, :, 20:40, 22:26] = hair[2, :, 20:40, 50:54] = 0.5
    image = (mask + hair).expand(-1, 3, -1, -1)
    mlb.save_batch(image, mask, mask + hair, torch.ones(3), "B", Path("x.pt"))
    label = grey("batch.png")[34:258, 456:680]
    assert label[:, 77:91].mean() > 0.1, "hair at the mask, as the second picture has"
    assert label[:, 160:].mean() < 0.01, "not far away, as the third has"


def test_a_sheet_shows_where_columns_differ_most(trained, monkeypatch):
    toy, out = trained
    monkeypatch.setattr(mlb, "save_sheet", Mock())
    _, net = mlb.load(out / "MLB.0.pt")
    mlb.evaluate({"MLB": net}, mlb.pairs(toy / "test/image", toy / "test/alpha"), 32, "sheet.png")
    shown, _ = mlb.save_sheet.call_args.args
    views, where, _ = shown["photo: most disputed"]
    error = (views["MLB"] - views["truth"]).abs()
    assert_close(where, error / math.sqrt(2))  # the deviation of two


def test_a_rows_file_is_its_checkpoint_and_its_log(trained):
    state = torch.load(trained[1] / "MLB.0.pt", weights_only=True)
    log = log_of(trained[1] / "MLB.0.csv")
    assert list(log.dtype.names) == mlb.COLUMNS
    assert len(state["log"]) == 6, "an entry a step"
    assert (log["waited"] < log["seconds"]).all()
    for term in ("matte", "boundary"):
        assert_close(log[term][0], math.log(2), 0.3)  # what a coin would give
    assert state["scaler"]["_growth_tracker"] == 6, "fp16 has a scaler"
    assert state["net"]["down4.1.num_batches_tracked"] == 6, "batch norm is in training mode"


TWO_STEPS = ["--masks", 1, "--mix", 0.5, "--steps", 2, "--teacher-steps", 2]


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """(data, out) of a tiny comparison, three rows side by side."""
    root = tmp_path_factory.mktemp("compared")
    torch.set_num_threads(3)
    run("compare", make_toy(root / "toy"), root / "out", "--seeds", 2, *TWO_STEPS)
    torch.set_num_threads(1)
    return root / "toy", root / "out"


def test_rows_of_a_seed_differ_in_mix_and_label_alone(toy):
    """Two teachers, six students: of them the first has no composites, the last true mattes."""
    args = mlb.parse(["compare", "--data", str(toy), "--mix", "0.5", "--workers", "0"])
    data = mlb.open_data(args)
    loaders = [mlb.new_loader(name, 1, 0, 1, args, data) for name in mlb.ROWS]
    mixers = [loader.dataset for loader in loaders]
    assert [mixer.seed for mixer in mixers] == [3] * 2 + [2] * 6, "a teacher's are others"
    assert [mixer.mix for mixer in mixers] == [1, 1, 0] + [0.5] * 5
    assert [mixer.guided for mixer in mixers] == [False, True] + [False] * 6
    assert [mixer.naturals == data["masks"] for mixer in mixers] == [True] * 7 + [False]


def test_rows_side_by_side_learn_what_they_learn_alone(compared):
    toy, out = compared
    run("compare", toy, OUT, "--seeds", 1, *TWO_STEPS)
    for row in mlb.ROWS:
        same = torch.equal(weights(out, f"{row}.0"), weights(OUT, f"{row}.0"))
        assert same, f"{row} depends on the rows beside it"


def test_compare_gives_means_and_deviations_of_all_rows(compared):
    out = compared[1]
    scores = scores_of(out)
    rows = [row for row in mlb.ROWS if row != "guided teacher"]  # test pictures have no masks
    assert mlb.load(out / "guided teacher.0.pt")[1].guided
    assert not mlb.load(out / "MLB guided.0.pt")[1].guided
    assert list(scores) == [*rows, "labels S", "labels M′", "labels B", "labels B guided"]
    one, two = (1000 * score["MSE"] for score in scores["MLB"])
    cell = f" {(one + two) / 2:.2f} ± {abs(one - two) / math.sqrt(2):.2f} |"
    assert cell in (out / "table.md").read_text(encoding="utf-8")


def test_label_rows_are_what_blending_by_hand_gives(compared):
    toy, out = compared
    photo = Image.open(toy / "segmentation/image/0.jpg")
    S = grey(toy / "segmentation/mask/0.png")
    M_t, alpha_t = mlb.predict(mlb.load(out / "teacher.1.pt")[1], photo, 32).numpy()
    B = alpha_t * M_t + (1 - alpha_t) * S
    score = mlb.metrics(B, grey(toy / "segmentation/alpha/0.png"))
    assert_close(scores_of(out)["labels B"][1]["MSE"], score["MSE"])


def test_label_rows_take_a_blend_that_looks_around(compared, monkeypatch):
    """As in exercise 18, where alpha_t counts near the mask's edge alone."""
    toy, out = compared
    _, teacher = mlb.load(out / "teacher.1.pt")
    files = [toy / "segmentation" / name for name in ("image/0.jpg", "alpha/0.png", "mask/0.png")]
    before = mlb.views_of({"teacher": teacher}, 32, *files)
    around = torch.nn.MaxPool2d(kernel_size=9, stride=1, padding=4)
    monkeypatch.setattr(mlb, "blend", lambda M_t, alpha_t, S: around(S) * M_t)
    after = mlb.views_of({"teacher": teacher}, 32, *files)
    assert_close(after["labels B"], around(before["labels S"][None])[0] * before["labels M′"])


def test_data_are_taken_as_asked_and_as_far_as_they_are_there(toy, capsys):
    shutil.rmtree(toy / "matte/background")
    shutil.rmtree(toy / "segmentation/alpha")
    run("compare", toy, OUT, *ONE_STEP, "--seeds", 1, "--mattes", 2, "--masks", 3)
    printed = capsys.readouterr().out
    assert "2 mattes, 0 backgrounds, 3 masks" in printed
    assert (OUT / "table.md").read_text(encoding="utf-8") in printed
    scores = scores_of(OUT)
    assert not {"upper bound", "labels B"} & set(scores), "nobody knows the truth"


@pytest.mark.parametrize("name", ["segmentation/alpha/2", "segmentation/mask/3", "test/alpha/1"])
def test_what_evaluation_cannot_read_is_refused_before_the_first_step(name, toy, capsys):
    path = toy / f"{name}.png"
    path.write_bytes(path.read_bytes()[:70])
    assert str(path) in train_error(capsys, toy, OUT)
    assert not list(OUT.glob("*.pt"))


def test_a_loss_that_is_not_finite_stops_the_run(toy, capsys, monkeypatch):
    monkeypatch.setattr(time, "monotonic", itertools.count(0, 100).__next__)  # saves each step
    error = train_error(capsys, toy, OUT, "--amp", "fp16", "--lr", 1e9)
    for word in ("teacher", "step 2", "detail"):
        assert word in error
    assert len(mlb.load(OUT / "teacher.0.pt")[0]["log"]) == 1, "the last good checkpoint stays"


def test_progress_and_time_left_come_early_and_every_ten_seconds(toy, capsys, monkeypatch):
    train_step = Mock(wraps=mlb.train_step)
    monkeypatch.setattr(mlb, "train_step", train_step)
    monkeypatch.setattr(time, "monotonic", lambda: train_step.call_count)  # a step takes a second
    run("train", toy, OUT, "--teacher-steps", 20)
    lines = [line for line in capsys.readouterr().out.splitlines() if "/20" in line]
    for step, line in zip((3, 14, 20), lines, strict=True):
        assert f" {step}/20" in line
    assert "0:17" in lines[0]


def test_what_holds_a_training_up_is_noted(capsys):
    args = mlb.parse(["train", "--device", "cpu"])
    fast, slow = ([0] * 7 + [seconds] for seconds in (1, 3))
    mlb.report("MLB", 0, 200, 50 * [fast] + 50 * [slow], args)
    assert "OMP_NUM_THREADS" in capsys.readouterr().err
    args.device = "cuda:0"
    mlb.report("MLB", 0, 2, 2 * [[0] * 6 + [1, 2]], args)  # half of each step was waiting
    assert "50% of MLB" in capsys.readouterr().err


def test_only_the_first_rank_holds_the_folder(monkeypatch):
    with mlb.locked("."):
        refusal(mlb.locked(".").__enter__)
        monkeypatch.setattr(mlb, "RANK", 1)
        with mlb.locked("."):
            pass


@pytest.mark.parametrize(
    "device, ranks, synchronised", [("cpu", 2, 0), ("meta", 1, 0), ("meta", 2, 1)]
)
def test_batch_norm_is_synchronised_over_gpus(device, ranks, synchronised, monkeypatch):
    monkeypatch.setattr(mlb, "WORLD_SIZE", ranks)
    args = mlb.parse(["train", "--device", device])
    assert ("SyncBatchNorm" in str(mlb.new_net("MLB", 0, args))) == synchronised


CHANGES = ["lr 0.5", "mix 0.5", "steps 9", "batch 8", "width 9", "size 64", "amp off", "masks 2"]


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_goes_on_with_its_own_options_alone(change, trained, capsys):
    name, value = change.split()
    error = train_error(capsys, *trained, "--amp", "fp16", "--resume", f"--{name}", value)
    assert name in error.split(";")[-1], f"{error} does not name --{name}"


def test_a_folder_with_other_files_is_refused(toy, capsys):
    OUT.mkdir()
    (OUT / "table.md").touch()
    assert "not empty" in train_error(capsys, toy, OUT)


def test_a_run_is_never_overwritten_nor_mixed_with_another(compared, capsys):
    before = weights(compared[1])
    assert "--resume" in train_error(capsys, *compared, *TWO_STEPS)
    for more in (["--seed", 0], ["--seed", 7]):
        error = train_error(capsys, *compared, *TWO_STEPS, "--resume", *more)
        assert "another command or seed" in error
    assert torch.equal(weights(compared[1]), before)


def test_a_row_by_another_name_is_refused(trained, capsys):
    out = shutil.copytree(trained[1], OUT)
    shutil.copy(out / "teacher.0.pt", out / "MLB.0.pt")
    assert "row" in train_error(capsys, trained[0], out, "--amp", "fp16", "--resume")


def test_a_copied_run_goes_on_with_copied_data_alone(trained, capsys):
    toy = shutil.copytree(trained[0], "copy")
    out = shutil.copytree(trained[1], Path("copy/out"))
    more = ["--amp", "fp16", "--resume"]
    assert run("train", toy, out, *more) == 0
    assert torch.equal(weights(out), weights(trained[1])), "a finished run stays as it was"
    assert "goes on after step 6" in capsys.readouterr().out
    save_photo("copy/matte/background/0.jpg", 50)
    assert ".pt" in train_error(capsys, toy, out, *more)


SAVE_EACH_STEP = f"""
import itertools, sys, time
import {mlb.__name__} as mlb
time.monotonic = itertools.count(0, 100).__next__  # each look at the clock takes 100 seconds
sys.exit(mlb.main(sys.argv[1:]))
"""


def test_ctrl_c_ends_compare_at_once_and_tells_how_to_go_on():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    with start(mlb.__file__, "compare", "--device", "cpu") as child:
        child.stdout.readline()
        time.sleep(0.5)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=2)
    assert child.returncode == 130
    assert said.count("\n") <= 2 and "--resume" in said


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same_weights(toy, capsys):
    """And while one run lives, no other writes to its folder."""
    out, more = Path("killed"), ["--teacher-steps", 25, "--steps", 25, "--resume"]
    run("train", toy, OUT, *more)
    words = ["train", "--data", toy, "--out", out, *TINY, *more]
    for lines in (3, 13, 16):  # of progress: in the teacher twice, then in the student
        with start("-c", SAVE_EACH_STEP, *words) as child:
            for _ in range(lines):
                child.stdout.readline()
            assert f"{out}: another run" in train_error(capsys, toy, out, *more)
            child.kill()
    assert run("train", toy, out, *more) == 0
    assert torch.equal(weights(out), weights(OUT))


RANK = f"""
import sys
import {mlb.__name__} as mlb
conv = mlb.conv
mlb.conv = lambda *given, **more: conv(*given, **more).eval()
sys.exit(mlb.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_two_ranks_learn_what_one_learns(toy, monkeypatch):
    """Without batch norm, of which each rank has statistics of its own on a CPU."""
    Path("rank.py").write_text(RANK)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    words = ["rank.py", "train", "--data", toy, "--out", "two", *TINY]
    with start(*torchrun, *words) as child:
        child.communicate()
    conv = mlb.conv
    monkeypatch.setattr(mlb, "conv", lambda *given, **more: conv(*given, **more).eval())
    run("train", toy, "one")
    for name in ("teacher.0.csv", "MLB.0.csv"):
        one, two = (log_of(Path(out, name)) for out in ("one", "two"))
        assert_close(two["total"], one["total"], 1e-4)


@pytest.mark.slow
def test_the_student_beats_its_teacher():
    shutil.copytree(SAMPLE, "sample", ignore=shutil.ignore_patterns("*[2-9].???"))  # a fifth
    steps = ["--teacher-steps", 60, "--steps", 90]
    run("train", "sample", OUT, *steps, "--size", 64, "--width", 32, "--batch", 8)
    mse = {row: seeds[0]["MSE"] for row, seeds in scores_of(OUT).items()}
    assert mse["MLB"] < 0.7 * mse["teacher"]
    assert mse["labels B"] < mse["labels S"]


class Evil:
    """An object whose pickle opens a file when it is read."""

    def __reduce__(self):
        return open, ("executed", "w")


def test_bad_checkpoints_are_one_line_and_never_executed(trained, capsys):
    path = trained[1] / "MLB.0.pt"
    whole = torch.load(path, weights_only=True)
    nan, wide = torch.full((23,), math.nan), torch.ones(1).expand(99999, 3, 4, 4)
    torch.save({}, "empty.pt")
    torch.save({key: whole[key] for key in ("net", "log", "options")}, "bare.pt")
    torch.save(whole | {"log": Evil()}, "evil.pt")
    torch.save(whole | {"options": {"size": 32}}, "options.pt")
    torch.save(whole | {"net": whole["net"] | {"head.bias": nan}}, "nan.pt")
    torch.save(whole | {"net": whole["net"] | {"down4.0.weight": wide}}, "wide.pt")
    Path("cut.pt").write_bytes(path.read_bytes()[:9999])
    os.mkfifo("pipe.pt")
    words = ["matte", "p.jpg", "--weights"]
    for name in [*os.listdir(), "missing.pt"]:
        assert name in error_of(capsys, *words, name)
    assert "as wide" in error_of(capsys, *words, "wide.pt"), "no terabytes are made"
    assert not Path("executed").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_trains_benches_and_mattes(toy):
    out = "runs/mlb"  # where matte looks for weights
    assert run("train", toy, out, "--device", "cuda", "--workers", 2) == 0
    assert call("bench", "--size", 64, "--weights", f"{out}/MLB.0.pt") == 0
    assert call("matte", toy / "test/image") == 0


# == 5  Evaluation ================================================================================


def test_gradient_of_steps_and_ramps():
    y, x = np.mgrid[:30, :40]
    assert_close(mlb.gradient(x * 0 + 1), x * 0)  # at the border, too
    ramp = mlb.gradient(0.03 * x - 0.04 * y)
    assert_close(ramp[6:-6, 6:-6], np.full((18, 28), 0.05), 1e-4)
    for step in (x < 20, y < 15):
        assert_close(mlb.gradient(step).max(), 0.2725, 1e-4)  # Σ t·g(t)/σ² for t = 1 to 6


def test_metrics_by_hand_exercise06():
    """Near the boundary, two pixels of which one lies in a corner, are 25 and 9 pixels."""
    truth = np.zeros((20, 30))
    truth[0, 0] = truth[10, 10] = 0.5
    truth[5, 15], truth[15, 5] = 0.05, 0.95
    prediction = truth.copy()
    prediction[12, 12] = 0.4
    prediction[15, 5] = 0.65
    steeper = mlb.gradient(prediction) - mlb.gradient(truth)
    expected = {
        "SAD": 0.7 / 1000,
        "MSE": 0.25 / 600,
        "MAD": 0.7 / 600,
        "Grad": (steeper**2).sum() / 10,
        "Boundary MAD": 0.4 / 34,
    }
    found = mlb.metrics(prediction, truth)
    for name, value in expected.items():
        off = abs(found[name] - value)
        assert off < 1e-6, f"expected {name} {value:.5g}, got {found[name]:.5g}"


def test_metrics_without_a_boundary_or_of_two_shapes_exercise06():
    truth = np.zeros((40, 50))
    nothing = mlb.metrics(truth, truth)["Boundary MAD"]
    assert math.isnan(nothing), f"expected nan where there is no boundary, got {nothing}"
    try:
        mlb.metrics(truth, truth[:1])
        got = "none"
    except Exception as problem:
        got = type(problem).__name__
    assert got == "ValueError", f"expected a ValueError for shapes that broadcast, got {got}"


class Probe(mlb.MattingNet):
    """A network whose matte is the mask, or else the picture's red; its boundary the opposite."""

    def forward(self, image, mask):
        self.seen = tuple(image.shape[2:])
        logits = torch.logit(mask if self.guided else image[:, :1], 1e-6)
        return logits, -logits


def test_predict_keeps_place_and_shows_people_as_large_as_in_training():
    net, mask = Probe(8, guided=True), Image.fromarray(disc(384, 330, soft=99))
    found = mlb.predict(net, mask.convert("RGB"), 136, mask)
    assert net.seen == (160, 192), "136 / 0.85 = 160, and multiples of 32"
    assert_close(255 * found[0], mask, 4)
    assert_close(found[1], 1 - found[0], 1e-3)


@pytest.fixture
def student(trained):
    """The options that choose the weights of a tiny training."""
    return ["--weights", trained[1] / "MLB.0.pt", "--device", "cpu"]


def test_eval_prints_what_the_training_measured(trained, student, capsys):
    call("eval", "--data", trained[0], *student)
    numbers = capsys.readouterr().out.split("| ")[-5:]
    assert "| ".join(numbers) in (trained[1] / "table.md").read_text(encoding="utf-8")


def test_eval_refuses_a_pair_of_another_aspect(toy, student, capsys):
    path = save_picture(toy / "test/alpha/1.png", disc(60, 40))
    assert str(path) in error_of(capsys, "eval", "--data", toy, *student)


# == 6  Benchmark =================================================================================


def test_fold_keeps_the_function_exercise10():
    net = mlb.MattingNet(8).eval()
    for name, values in net.state_dict().items():
        if ".1." in name and values.dim():  # batch norm's, as after a training
            values.uniform_(0.5, 2)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = net(image)[0]
        folded = mlb.fold(net)
        assert_close(folded(image)[0], expected, 1e-3)
        assert torch.equal(net(image)[0], expected), "expected the network kept, got input changed"
    assert "BatchNorm" not in str(folded), "expected batch norm folded away, got it left"


def test_bench_prints_a_row_for_each_step(student, capsys, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda net, **options: net)
    assert call("bench", "--size", 64, "--compile", *student) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " FPS " in line]
    off = [float(line.split()[-1]) for line in lines]
    assert len(off) == 6
    assert "nan" not in "".join(lines), "each row is timed"
    assert max(off[:3]) < 1e-4, "neither layout nor folding changes the matte"
    assert 0 < off[3] < 0.05, "16 bits change it a little"


def test_bench_needs_no_weights():
    assert call("bench", "--size", 32, "--width", 8, "--device", "cpu") == 0


def test_the_clock_waits_for_cuda(monkeypatch):
    seen = Mock()
    seen.clock.side_effect = [1.0, 3.5]
    monkeypatch.setattr(time, "perf_counter", seen.clock)
    monkeypatch.setattr(torch.cuda, "synchronize", seen.wait)
    assert mlb.seconds_of(seen.run, "x", "cuda:0") == 2.5
    calls = [name for name, *_ in seen.mock_calls]
    assert calls == ["wait", "clock", "run", "wait", "clock"]


# == 7  Matting ===================================================================================

CUT = Path("cutouts")  # where matte puts them


def test_blur_spreads_a_pixel_over_its_radius():
    spot = torch.zeros(1, 96, 120)
    spot[0, 48, 60] = 1
    spread = mlb.blur(spot, 12)[0] > 1e-6
    assert_close([spread.any(1).sum(), spread.any(0).sum()], [28, 28], 8)
    assert_close(mlb.blur(0 * spot + 0.5, 12), 0 * spot + 0.5)


def test_estimate_foreground_exercise07():
    """A person with a soft edge, before stripes."""
    y, x = np.mgrid[:96, :96]
    person = torch.tensor(np.stack([200 + 0 * x, y, x + y])) / 200
    alpha = torch.tensor(disc(96, 96, soft=12, radius=30))[None] / 255
    background = torch.ones_like(person)
    background[0] = torch.tensor(x % 2)
    image = alpha * person + (1 - alpha) * background
    found = mlb.estimate_foreground(image, alpha)
    low, high = found.min(), found.max()
    assert low >= 0 and high <= 1, f"expected colours in [0, 1], got {low:.2f} to {high:.2f}"
    edge = abs(alpha[0] - 0.5) < 0.4
    ratio = abs(found - person)[:, edge].mean() / abs(image - person)[:, edge].mean()
    assert ratio < 0.26, f"expected under 0.26 of the photo's error, got {ratio:.2f}"


def test_people_are_cut_out_at_the_photos_own_size(student):
    assert call("matte", save_photo("a b/1.jpg", 90, 130), *student) == 0
    cut = Image.open(CUT / "1.png")
    assert (cut.mode, cut.size) == ("RGBA", (90, 130))


def test_alpha_is_the_matte_and_colours_are_the_persons_alone():
    red = disc(96, 64, soft=20)
    photo = np.dstack([red, 0 * red, 255 - red])
    cut = np.asarray(mlb.cut_out(Probe(8), 54, Image.fromarray(photo)))
    colours, alpha = cut[..., :3], cut[..., 3]
    assert_close(alpha, red, 9)
    assert not colours[alpha == 0].any(), "nothing is left of the background"
    assert_close(colours[alpha == 255], photo[alpha == 255])


def test_opaque_pixels_of_a_large_photo_keep_their_colours():
    """Though the person's colours are estimated at half its size."""
    red = disc(1088, 1088, soft=20, radius=300)
    green = np.random.default_rng(0).integers(0, 256, red.shape, np.uint8)
    photo = np.dstack([red, green, red])
    cut = np.asarray(mlb.cut_out(Probe(8), 925, Image.fromarray(photo)))
    opaque = cut[..., 3] == 255
    assert_close(cut[opaque, :3], photo[opaque])


def test_bad_photos_are_named_and_the_rest_goes_on(student, capsys):
    """Bad is also a second photo of one name, and an empty folder."""
    good = save_photo("good.png")
    Path("cut.png").write_bytes(good.read_bytes()[:99])
    os.mkfifo("pipe.jpg")
    Path("empty").mkdir()
    bad = ["cut.png", "pipe.jpg", "gone.jpg", "empty"]
    assert call("matte", *bad, good, save_photo("b/good.jpg"), *student) == 2
    lines = capsys.readouterr().err.splitlines()
    for name, line in zip([*bad, "b/good.jpg", "5 of 6"], lines, strict=True):
        assert name in line
    assert os.listdir(CUT) == ["good.png"]


@pytest.mark.parametrize("photo", ["a.png", "other/a.jpg", "link/a.png"])
def test_no_photo_is_written_over(photo, student):
    """Neither itself, nor another of its name, nor one that a link leads to."""
    before = save_photo("a.png").read_bytes()
    save_photo("other/a.jpg")
    Path("link").mkdir()
    Path("link/a.png").symlink_to(Path("a.png").resolve())
    assert call("matte", photo, "--out", ".", *student) == 2
    assert Path("a.png").read_bytes() == before


def test_photos_are_cut_out_beside_their_folder(student):
    save_photo("photos/a.jpg")
    Path("photos/b.jpg").mkdir()
    for _ in range(2):
        assert call("matte", "photos", "photos/a.jpg", "--out", ".", *student) == 0
    assert sorted(os.listdir()) == ["a.png", "photos"]


def test_what_lies_in_out_is_never_input(student):
    save_photo("a.jpg")
    for _ in range(2):
        assert call("matte", ".", *student) == 0
        assert os.listdir(CUT) == ["a.png"]


def test_a_photos_colour_profile_is_heeded():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for old, new in ((b"sRGB", b"mine"), (b"rXYZ", b"?"), (b"gXYZ", b"rXYZ"), (b"?", b"gXYZ")):
        profile = profile.replace(old, new)  # what it calls red is green
    red = np.full((32, 32, 3), (250, 0, 0))
    path = save_picture("p.png", red, icc_profile=profile)
    assert_close(mlb.read(path).getpixel((9, 9)), (0, 250, 0), 4)


def test_weights_of_drawn_people_tell_so(trained, student, capsys, monkeypatch):
    save_photo("a.jpg")
    call("matte", "a.jpg", *student)
    assert "note" not in capsys.readouterr().err
    monkeypatch.setattr(mlb, "SAMPLE", trained[0])
    call("matte", "a.jpg", *student)
    assert "drawn" in capsys.readouterr().err


# == 8  Command line ==============================================================================


BAD = """train --size 50
train --size 0
train --size 32 --batch 1
train --mix 1.5
train --lr nan
train --batch 0
train --seed -1
eval --size 1000000001
train --step 9
train --amp half
train --device gpu
compare --seed 3
compare --seeds 0
eval --weights none.pt
bench --size 100
fly"""


@pytest.mark.parametrize("line", BAD.splitlines())
def test_a_bad_option_is_named_in_one_line(line, capsys):
    options = [word for word in line.split() if word.startswith("--")] or ["fly"]
    assert options[-1] in error_of(capsys, *line.split())


def test_readmes_figures_are_of_these_defaults():
    found = vars(mlb.parse(["compare"]))
    expected = {"size": 128, "width": 32, "batch": 8, "teacher_steps": 1500, "steps": 1200}
    expected |= {"lr": 3e-3, "weight_decay": 1, "mix": 0.25, "mattes": 0, "masks": 0, "seeds": 3}
    assert {key: found[key] for key in expected} == expected
    assert mlb.parse(["bench"]).size == 512
    assert mlb.parse(["bench"]).width == 32


def test_a_driver_without_a_usable_gpu_is_noted(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(os.path, "exists", lambda path: True)
    mlb.settle(mlb.parse(["bench"]))
    assert "driver" in capsys.readouterr().err


def test_our_own_bugs_show_their_traceback(toy, monkeypatch):
    monkeypatch.setattr(mlb, "train_step", Mock(side_effect=ZeroDivisionError))
    with pytest.raises(ZeroDivisionError):
        run("train", toy, OUT)


def test_an_error_of_writing_names_the_file(toy, capsys, monkeypatch):
    monkeypatch.setattr(torch, "save", Mock(side_effect=OSError(28, "No space left")))
    error = train_error(capsys, toy, OUT)
    assert "No space left" in error and "out/teacher.0" in error


def test_a_clusters_leftover_ranks_are_one_line(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "WORLD_SIZE" in error_of(capsys, "bench", "--device", "cpu")


def test_without_weights_those_of_the_last_training_are_taken(trained, capsys):
    words = ["eval", "--data", trained[0], "--device", "cpu"]
    assert "train first" in error_of(capsys, *words)
    shutil.copytree(trained[1], "runs/mlb")
    assert call(*words) == 0


FEW = {
    "train": "--data data_sample --size 32 --batch 4 --steps 2 --teacher-steps 2 --workers 0",
    "compare": "--data data_sample --size 32 --batch 4 --steps 1 --teacher-steps 1 --seeds 1",
    "eval": "--data data_sample --weights toy.pt",
    "bench": "--size 32 --weights toy.pt",
    "matte": "--weights toy.pt",
}
COMMAND = r"mlb\.py ((?:train|compare|eval|bench|matte)\b[^`\n&|>;#]*)"
PAGES = [path.read_text(encoding="utf-8") for path in (HERE / "README.md", SAMPLE / "README.md")]
COMMANDS = sorted({command for page in PAGES for command in re.findall(COMMAND, page)})


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_readme_runs(command, trained):
    save_photo("PHOTO", format="PNG")
    Path("data_sample").symlink_to(trained[0])
    Path("toy.pt").symlink_to(trained[1] / "MLB.0.pt")
    words = command.split()
    assert call(*words, *FEW[words[0]].split(), "--device", "cpu") == 0


@pytest.mark.parametrize("command", FEW)
def test_help_tells_the_usage(command, capsys):
    with pytest.raises(SystemExit):
        call(command, "--help")
    assert capsys.readouterr().out.startswith(f"usage: mlb {command}")


# == Exercises ==================================================================================
# python test_mlb.py tells how to use them. Their answers are the last section of this file.


def edge_band_exercise16():
    """Edges of one pixel and of half a picture, whose rim is no edge."""
    S = torch.zeros(2, 1, 40, 44)
    S[0, 0, 20, 20] = S[1, :, :, 22:] = 1
    names = ["a single pixel", "half a picture (its rim is no edge)"]
    for radius in (1, 2, 12):
        expected = torch.zeros_like(S)
        expected[0, 0, 20 - radius : 21 + radius, 20 - radius : 21 + radius] = 1
        expected[1, :, :, 22 - radius : 22 + radius] = 1
        found = mlb.edge_band(S, radius)
        assert found.shape == S.shape, f"expected shape {[*S.shape]}, got {[*found.shape]}"
        for k, _, y, x in (found != expected).nonzero().tolist():
            values = f"expected {expected[k, 0, y, x]:g}, got {found[k, 0, y, x]:g}"
            pytest.fail(f"{values} in row {y}, column {x}, radius {radius} of {names[k]}")


def connectivity_exercise17():
    """A person of 21 pixels, 3 more that touch it at a corner, which is no link."""
    truth = np.zeros((9, 9))
    truth[1:4, 1:8] = truth[4:7, 8] = 1
    apart, linked, rims = truth.copy(), truth.copy(), np.zeros((9, 9))
    apart[6:8, 3] = linked[4, 4] = 1
    rims[1:4, :6] = rims[2, 8] = 1
    for name, prediction, other, expected in (
        ("the truth itself", truth, truth, 0),
        ("two pixels more, apart", apart, truth, 2),
        ("one pixel more, linked", linked, truth, 1),
        ("0.9 truth, 3 of its pixels linked by a corner alone", 0.9 * truth, truth, 3 * 0.1),
        ("0.9 truth, a pixel of it beyond the rim", 0.9 * rims, rims, 0.1),
        ("0.8 truth", 0.8 * truth, truth, 21 * 0.2 + 3 * 0.2),
    ):
        found = 1000 * mlb.connectivity(prediction, other)
        off = abs(found - expected)
        assert off < 1e-6, f"expected 1000·Conn of {expected:.1f} for {name}, got {found:.1f}"
    truth = np.zeros((9, 9))
    truth[1:7, 1:6] = 0.5
    truth[1:6, 7:9] = 1  # the largest region at 0.6, but not at 0.5
    found = 1000 * mlb.connectivity(truth.clip(0, 0.9), truth)
    said = f"expected 1000·Conn of 1.0 (level 0 where not linked at 0.5), got {found:.1f}"
    assert abs(found - 1) < 1e-6, said


if hasattr(mlb, "edge_band"):
    test_edge_band_exercise16 = edge_band_exercise16
if hasattr(mlb, "connectivity"):
    test_connectivity_exercise17 = connectivity_exercise17


HOLES = {  # tests whose names end in _exercise01 and so on guard them
    1: "boundary_label",
    2: "composite",
    3: "blend",
    4: "laplacian_loss",
    5: "Mixer.draw",
    6: "metrics",
    7: "estimate_foreground",
    8: "hurried_mask",
    9: "mlb_loss",
    10: "fold",
    16: "edge_band",
    17: "connectivity",
}
NEW = {  # what mlb.py does not have: a hole puts it there
    16: '''
        def edge_band(S, radius):
            """Where a mask S, N×1×H×W or 1×H×W of 0 and 1, has an edge: 1 where the window of
            2·radius + 1 by 2·radius + 1 pixels around a pixel holds both 0 and 1, else 0. The
            picture's rim is no edge."""
    ''',
    17: '''
        def connectivity(prediction, truth):
            """Conn of two mattes, arrays H×W (Rhemann et al., CVPR 2009; as evaluation code has
            it), in thousands. At each t of 0.1, 0.2 ... 1 there is a largest 4-connected region
            where both mattes are at least t. A pixel's level l is the highest t such that it lies
            in the largest region at t and at every lower level, else 0. φ of a matte is
            1 − (value − l) where that difference is 0.15 or more, else 1.
            Conn = Σ|φ(prediction) − φ(truth)| / 1000.
            Regions without scipy: number the pixels, and let each take the highest number among
            its four neighbours until nothing changes."""
    ''',
}
HINTS = {  # what a message of Python's or torch's means here
    "NoneType": "; is there a return?",
    "ambiguous": "; no if, and, max of arrays, but where, &, maximum: all pixels at once",
    "bitwise": "; put each comparison in parentheses",
    "Cannot handle": "; degrade takes bytes H×W×3, see to_bytes",
    "broadcast": "; alpha needs an axis for colours, as target[..., None] has",
    "high <= 0": "; are there backgrounds?",
    "__array_interface__": "; crop returns a picture and its label",
    "lut entries": "; degrade takes colours: should a matte be degraded?",
    "0-d tensor": "; return a dict of terms",
    "positional arguments": "; crop takes the whole list, and draws an item of it",
    "requires_grad": "; terms stay tensors",
}


@pytest.fixture(autouse=True, scope="session")
def say_what_is_tested(request):
    """-k exercise without MLB= tests the reference, which is always green: say so."""
    if "exercise" in request.config.option.keyword and "MLB" not in os.environ:
        warnings.warn("mlb.py itself is tested, not your file: set MLB=my_mlb", stacklevel=1)


@functools.cache
def functions(text):
    """{name: node of its syntax tree} of the functions of a text."""
    nodes = ast.walk(ast.parse(text, "your file"))
    return {node.name: node for node in nodes if isinstance(node, ast.FunctionDef)}


def hole_of(text, number):
    """The docstring of a hole's function in a text, and the number of its last line."""
    node = functions(text)[HOLES[number].split(".")[-1]]
    return node.body[0], node.end_lineno


def with_holes(answers):
    """mlb.py with other bodies of some functions, {number: body}; None: to be written."""
    text = (HERE / "mlb.py").read_text(encoding="utf-8")
    for number, answer in answers.items():
        if number in NEW:
            above, main, below = text.partition("if __name__")
            text = above + textwrap.dedent(NEW[number]).lstrip() + "\n\n" + main + below
        docstring, last = hole_of(text, number)
        size = last - docstring.end_lineno or len(ANSWERS[number].strip().split("\n"))
        size = "1 line" if size == 1 else f"{size} lines"
        hole = f'raise NotImplementedError("not written yet, exercise {number}, about {size}")'
        body = textwrap.dedent(answer or hole).strip()
        lines = text.split("\n")
        body = textwrap.indent(body, " " * docstring.col_offset)
        lines[docstring.end_lineno : last] = [body]
        text = "\n".join(lines)
        for told in TOLD.get(number, []):
            text = text.replace(told, "why?" if number == 5 else "?")
    return text


def told_of(number):
    """Right answers to an exercise, mlb.py's own first, and what a prediction is compared with."""
    told = []
    if number in HOLES and number not in NEW:
        text = with_holes({})
        docstring, last = hole_of(text, number)
        body = text.split("\n")[docstring.end_lineno : last]
        told = ["mlb.py's answer:", "\n".join(body), "Right as well:"]
    for answers in (ANSWERS, PREDICTED):
        if number in answers:
            told.append(answers[number].strip("\n"))
    return "\n\n".join(textwrap.dedent(part).rstrip() for part in told)


def with_bug(number):
    """mlb.py with a bug."""
    old, new, _ = BUGS[number].split(" => ")
    text = with_holes({})
    assert text.count(old) == 1, f"bug {number}: mlb.py holds {text.count(old)} times {old}"
    return text.replace(old, new)


@functools.cache
def compiled(text):
    """The code of a text of mlb.py."""
    return compile(text, "your file", "exec")


def module_of(text):
    """A text of mlb.py as a module."""
    module = types.ModuleType("my_mlb")
    module.__file__ = str(HERE / "mlb.py")
    exec(compiled(text), vars(module))
    return module


def failure(test, text):
    """What a test of this file says of another text of mlb.py; "" if it passes."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        # the only fixture that tests of exercises and bugs have
        fixtures = dict.fromkeys(inspect.signature(test).parameters, monkeypatch)
        try:
            # tests say mlb.blend and the like: for this test, mlb is the student's module
            monkeypatch.setitem(globals(), "mlb", module_of(text))
            test(**fixtures)
        except (Exception, pytest.fail.Exception) as problem:
            said = str(problem).split("\n")[0]
            ours = isinstance(problem, (AssertionError, pytest.fail.Exception))
            if (ours and "expected" in said) or "not written yet" in said:
                return said
            hints = [hint for word, hint in HINTS.items() if word in said]
            said += "".join(hints[:1])
            frames = traceback.extract_tb(problem.__traceback__)
            names = [name.split(".")[-1] for name in HOLES.values()]
            lines = [frame.lineno for frame in frames if frame.name in names]
            where = ""
            for line in lines[-1:]:
                where = f" in line {line}, {text.splitlines()[line - 1].strip(' :')}"
            return f"{type(problem).__name__}{where}: {said}"
    return ""


def alarm(seconds):
    """Ends an exercise whose loop has no end, after some seconds; 0: no more."""

    def ring(*_):
        pytest.fail(f"expected an end, got {seconds} seconds of work: does your loop end?")

    if hasattr(signal, "SIGALRM"):  # not on Windows
        signal.signal(signal.SIGALRM, ring)
        signal.alarm(seconds)


def exercise(number, text):
    """What the tests of an exercise say of a text of mlb.py, the first that fails; or ""."""
    for name, test in list(globals().items()):
        if name.endswith(f"_exercise{number:02}"):
            said = failure(test, text)
            if said:
                return f"{said} ({name})"
    return ""


def grade(text):
    """Prints a table of the exercises whose functions are not mlb.py's -> whether all passed."""
    yours, ours = functions(text), functions(with_holes({}))
    found = {}
    for number, name in HOLES.items():
        name = name.removeprefix("Mixer.")
        one, other = yours.get(name), ours.get(name)
        if other and not one:
            found[name] = number, "expected this function, got a file without it"
        elif one and (other is None or ast.dump(one) != ast.dump(other)):
            alarm(20)  # an exercise takes a second
            found[name] = number, exercise(number, text)
            alarm(0)
    failed = [name for name, (_, said) in found.items() if said]
    for name, (number, said) in found.items():
        for used in failed:
            if name in failed and name in yours and f"{used}(" in ast.unparse(yours[name].body):
                said += f"; it uses {used}, which is not right yet either"
        print(f"{number:2}  {name:20}  {said or 'passed'}")
    passed = len(found) - len(failed)
    print(f"{passed} of {len(found)} passed; functions that are as in mlb.py are not listed")
    return 0 < passed == len(found)


USAGE = """usage: python test_mlb.py hole 3 --to my_mlb.py   mlb.py without the body of a function,
                                                  1 to 10, 16 or 17; hole 1 2 3: of three
       python test_mlb.py bug 4 --to bug4.py      mlb.py with a bug, 1 to 11
       python test_mlb.py grade my_mlb.py         what is right, and what came instead
       python test_mlb.py answer 5                right answers; 11 to 15, 18, 19: what is measured
       python test_mlb.py instructor              notes for who teaches, with answers"""


def main(words):
    """The command line -> exit status."""
    try:
        match words:
            case ["hole", *numbers, "--to", path] if numbers:
                text = with_holes(dict.fromkeys(map(int, numbers)))
            case ["bug", number, "--to", path]:
                text = with_bug(int(number))
            case ["grade", path]:
                return 0 if grade(Path(path).read_text(encoding="utf-8")) else 1
            case ["instructor"]:
                told = [f"{number}{text.rstrip()}" for number, text in PREDICTED.items()]
                print(NOTES.replace("{predicted}", "\n".join(told)))
                return 0
            case ["answer", number]:
                told = told_of(int(number))
                if not told:
                    raise ValueError
                print(told)
                return 0
            case _:
                raise ValueError
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
        print(f"{path} is written; look for NotImplementedError" if words[0] == "hole" else path)
    except FileExistsError:
        print(f"test_mlb.py: {path} is there already; choose another name", file=sys.stderr)
        return 2
    except (KeyError, ValueError):
        if words and "-" not in words[0]:
            print(f"test_mlb.py: there is no {' '.join(words)}", file=sys.stderr)
        print(USAGE, file=sys.stderr)
        return 2
    except SyntaxError as problem:
        print(f"{path}, line {problem.lineno}: {problem.msg}", file=sys.stderr)
        return 2
    except OSError as problem:
        print(f"test_mlb.py: {problem}", file=sys.stderr)
        return 2
    return 0


# == Spoilers ===================================================================================
# Look away while you work: answers, wrong answers, bugs, and the notes for who teaches.


TOLD = {  # other places where mlb.py gives an answer away: a hole leaves them out
    1: ["0.05 < M < 0.95", "low < M < high"],
    2: ["alpha · foreground + (1 − alpha) · background"],
    3: ["α′·M′ + (1 − α′)·S", "w·M′ + (1 − w)·B"],
    5: ["a matte has no light, blur or noise"],
}
ANSWERS = {  # right answers that differ from mlb.py's
    1: "return torch.where((M <= low) | (M >= high), 0.0, 1.0).to(M)",
    2: """
        rest = background - background * alpha
        return foreground * alpha + rest
    """,
    3: "return S + alpha_t * (M_t - S)",
    4: """
        total, rest = 0, prediction - target
        for level in range(levels):
            mean = rest.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
            band = rest - mean.repeat_interleave(2, 2).repeat_interleave(2, 3)
            total = total + 2**level * band.abs().mean()
            rest = mean
        return total / levels
    """,
    5: """
        natural = bool(rng.random() > self.mix)
        if natural:
            image, target = self.crop(self.naturals, rng)
        else:
            image, target = self.crop(self.composites, rng)
        if not natural and len(self.backgrounds) > 0:
            behind = self.crop(self.backgrounds, rng)[0]
            behind = clutter(behind, rng)
            alpha = np.stack([target / 255] * 3, axis=2)
            image = np.uint8(np.round(composite(image, alpha, behind)))
        mask = target
        if self.guided and not natural:
            mask = annotate(target, rng)
        image = np.moveaxis(degrade(image, rng), 2, 0)
        return dict(image=image, target=target[None], mask=mask[None], natural=natural)
    """,
    6: """
        p, t = np.array(prediction, float), np.array(truth, float)
        if p.shape != t.shape or p.ndim != 2:
            raise ValueError("two pictures of one shape")
        error = abs(p - t)
        hair = np.pad((t > 0.05) * (t < 0.95), 2)
        near = np.zeros(t.shape, bool)
        for i, j in np.ndindex(5, 5):
            near |= hair[i : i + t.shape[0], j : j + t.shape[1]]
        return {
            "SAD": error.sum() / 1000,
            "MSE": np.mean(error * error),
            "MAD": error.sum() / error.size,
            "Grad": np.sum((gradient(p) - gradient(t)) ** 2) / 10,
            "Boundary MAD": np.mean(error[near]) if near.sum() else math.nan,
        }
    """,
    7: """
        F, B, a = image, image, alpha
        for radius in [90, 6]:
            F = blur(F * a, radius) / (blur(a, radius) + 1e-5)
            B = blur(B * (1 - a), radius) / (blur(1 - a, radius) + 1e-5)
            F = F + a * (image - a * F - (1 - a) * B)
            F = torch.clamp(F, 0, 1)
        return F
    """,
    8: """
        image = Image.fromarray(matte)
        size = image.size
        image, blur = image.reduce(int(rng.integers(1, 4))), ImageFilter.BoxBlur(rng.uniform(1, 2))
        image = image.filter(blur)
        level = Image.fromarray(rng.integers(110, 230, (6, 6), np.uint8)).resize(image.size)
        inside = np.where(np.asarray(image) > np.asarray(level), 255, 0).astype(np.uint8)
        return np.array(Image.fromarray(inside).resize(size, Image.NEAREST))
    """,
    9: """
        x, y, t, a = (z.float() for z in (matte_logits, boundary_logits, target, boundary))
        off = (x.sigmoid() - t).abs()
        details = [(e * b).sum() / max(1, b.sum()) for e, b in zip(off, a)]
        terms = {
            "matte": (F.softplus(x) - x * t).mean(),
            "detail": sum(details) / len(details),
            "laplacian": laplacian_loss(x.sigmoid(), t),
            "boundary": (F.softplus(y) - y * a).mean(),
        }
        return dict(terms, total=sum(terms.values()))
    """,
    10: """
        net = copy.deepcopy(net)
        for stage in [s for s in net.children() if isinstance(s, nn.Sequential)]:
            c, b = stage[:2]
            scale = b.weight / torch.sqrt(b.running_var + b.eps)
            c.weight = nn.Parameter(c.weight * scale.view(-1, 1, 1, 1))
            c.bias = nn.Parameter(b.bias - b.running_mean * scale)
            stage[1] = nn.Identity()
        return net
    """,
    16: """
        size = 2 * radius + 1
        highest = F.max_pool2d(S, size, 1, radius)
        lowest = -F.max_pool2d(-S, size, 1, radius)
        return (highest != lowest).to(S.dtype)
    """,
    17: """
        level, linked = np.zeros(truth.shape), np.ones(truth.shape, bool)
        for step in range(1, 11):
            both = np.minimum(prediction, truth) >= step / 10
            number = both * (1 + np.arange(both.size).reshape(both.shape))
            for _ in range(both.size):  # the highest number floods its component
                x = np.pad(number, 1)
                around = [number, x[2:, 1:-1], x[:-2, 1:-1], x[1:-1, 2:], x[1:-1, :-2]]
                number = both * np.max(around, axis=0)
            sizes = np.bincount(number.ravel())
            sizes[0] = 0
            linked &= both & (number == sizes.argmax())
            level[linked] = step / 10
        gaps = [x - level for x in (prediction, truth)]
        phi_p, phi_t = [1 - gap * (gap >= 0.15) for gap in gaps]
        return abs(phi_p - phi_t).sum() / 1000
    """,
}
# wrong answers: what of the right one => is changed to what => ... => words of the message. Such as
# "M <= low => M < low => expected 0": with M < low instead of M <= low it is to say "expected 0"
WRONG = {
    1: """
        M <= low => M < low => expected 0 for M 0.05, got 1
        M >= high => M > high => expected 0 for M 0.95, got 1
        M >= high => M >= 0.95 => expected 0 for M 0.06, low 0.01 and high 0.06, got 1
        M <= low => M.sub_(low) <= 0 => expected
        .to(M) => .float() => expected torch.float64
    """,
    2: """
        foreground * alpha + rest => np.clip(foreground * alpha + rest, 0, 1) => got 1
        foreground * alpha => foreground * (alpha > 0.5) => expected 0.25 for foreground 1, alpha
        background - background * alpha => background => background 0.5, got 0.625
        rest = background - => rest = background; background -= => input changed
        foreground * alpha + rest => background + alpha * (foreground - background) => wraps
    """,
    3: """
        S + alpha_t * (M_t - S) => M_t + alpha_t * (S - M_t) => expected 0.2 for M′ 0.8, α′ 0.25
        alpha_t * (M_t => (alpha_t > 0.5) * (M_t => expected 0.2 for M′ 0.8, α′ 0.25 and S 0, got 0
        S + alpha_t * (M_t - S) => alpha_t * M_t => expected 1 for M′ 0.8, α′ 0 and S 1, got 0
        return S => S = S.round(); return S => and S 0.4
        alpha_t * (M_t - S) => M_t.sub_(S).mul_(alpha_t) => input changed
        S + alpha_t * (M_t - S) => S.add_(alpha_t * (M_t - S)) => input changed
    """,
    4: """
        2**level * => => expected 0.25 for a checkerboard of 2-pixel squares
        band.abs() => (band**2) => 1 level, got 0.25
        rest = mean => pass => expected 0.125
        / levels => => expected 0.125 for
    """,
    5: """
        > self.mix => < self.mix => share of composites
        rng.random() > => np.random.random() > => expected sample
        self.composites, rng) => self.composites, np.random.default_rng()) => expected sample
        (self.naturals, rng) => (self.naturals, rng)[0], self.crop(self.naturals, rng)[1] => as one
        mask = target => mask = target = target // 128 * 255 => soft target
        target / 255 => target > 127 => of a composite
        target / 255 => target => alpha = target / 255
        if not natural and => if => as it is
        behind = clutter(behind, rng) => pass => expected clutter
        np.round(composite(image, alpha, behind)) => composite(image, alpha, behind) => rounded
        image = np.uint8 => image = clutter(np.uint8 => behind))) => behind))), rng) => in front
        degrade(image, rng) => image => expected degrade on
        np.round(composite => np.round(1 / 255 * composite => black
        self.crop(self.backgrounds, rng) => self.crop(self.backgrounds[0], rng) => draws an item
        composite(image => composite(degrade(image, rng) => degraded once
        self.guided and => => expected its target
        target=target => target=degrade(np.dstack([target] * 3), rng)[..., 0] => without degrade
        target=target[None], mask=mask => target=mask[None], mask=target => annotate
        target=target[None] => target=mask[None] => the mask alone
        mask = annotate(target, rng) => mask = np.uint8(255) * (target > 127) => annotate's
        annotate(target, rng) => annotate(target[None], rng)[0] => of a matte H×W
        natural = bool(rng.random() > self.mix) => natural = int(rng.random() > self.mix) => got int
        degrade(image, rng) => degrade(clutter(image, rng), rng) => as it is
        degrade(image, rng) => degrade(image, np.random.default_rng(0)) => degrade with the sample's
        clutter(behind, rng) => clutter(behind, np.random.default_rng(self.seed)) => clutter with
        annotate(target, rng) => annotate(target, np.random.default_rng(0)) => masks alike
        crop(self.backgrounds => crop(self.backgrounds[:1] => expected crops
    """,
    6: """
        abs(p - t) => (p - t) => expected
        / 10, => / 1000, => expected Grad
        else math.nan => else 0 => expected nan
        (5, 5) => (3, 3) => expected Boundary MAD
        p.shape != t.shape or => => expected a ValueError
        np.mean(error * error) => 1000 * np.mean(error * error) => expected MSE
    """,
    7: """
        [90, 6] => [6] => of the photo's error
        [90, 6] => [90] => of the photo's error
        F + a * (image => F + 0 * (image => of the photo's error
        torch.clamp(F, 0, 1) => F => expected colours in [0, 1]
    """,
    8: """
        (6, 6), => (1, 1), => one level
        size = image.size => size = image.size[::-1] => expected shape
        size = image.size => size = image.size; rng = np.random.default_rng(0) => two seeds
        size = image.size => size = image.size; rng = np.random.default_rng() => one seed
        (6, 6), => image.size[::-1], => large pieces
        .reduce(int(rng.integers(1, 4))) => => lower resolution
        int(rng.integers(1, 4)) => 1 => image.filter(blur) => image => hair cut off
        255, 0) => 1, 0) => expected 0 and 255
    """,
    9: """
        (F.softplus(x) - x * t).mean() => F.binary_cross_entropy(x.sigmoid(), t) => use the logits
        (e * b).sum() / max(1, b.sum()) => (e * b).mean() => expected detail
        max(1, b.sum()) => b.sum() => got nan
        z.float() => z => fp32
        (F.softplus(x) - x * t).mean() => (F.softplus(x) - x * t).sum() => expected matte
        laplacian_loss(x.sigmoid(), t) => laplacian_loss(x, t) => expected laplacian
        off = (x.sigmoid() => off = (x.detach().sigmoid() => gradient of detail
    """,
    10: """
        copy.deepcopy(net) => net => input changed
        torch.sqrt(b.running_var + b.eps) => (b.running_var + b.eps) => expected
        b.bias - b.running_mean * scale => b.bias - b.running_mean => expected
        stage[1] = nn.Identity() => pass => expected
    """,
    16: """
        (highest != lowest) => (highest > S) => expected 1, got 0 in row 20, column 20, radius 1
        (highest != lowest) => (S > lowest) => expected 1, got 0 in row 19, column 19, radius 1
        (S, size, 1, radius) => (S, 3, 1, 1) => radius 2 of a single pixel
        F.max_pool2d(-S, size, 1, radius) => F.max_pool2d(F.pad(-S, [radius] * 4), size, 1) => rim
        (S, size, 1, radius) => (S, size, 1) => RuntimeError
    """,
    17: """
        (gap >= 0.15) => (gap >= 0) => for 0.9 truth
        linked &= both & => linked = both & => level 0
        (number == sizes.argmax()) => (number > 0) => for 0.9 truth
        x[1:-1, :-2]] => x[1:-1, :-2], x[2:, 2:], x[:-2, :-2]] => for 0.9 truth
        phi_p - phi_t => phi_p - 1 => for the truth itself
        abs(phi_p - phi_t) => (phi_p - phi_t) => for two pixels more
        np.minimum(prediction, truth) >= => prediction >= => one pixel more, linked
        around = [number, => around = [number, np.roll(number, -1, 1), => beyond the rim
    """,
}
BUGS = {  # what mlb.py holds once => the bug => end of the name of the test that notices it
    1: "alpha * foreground + => alpha * (alpha * foreground) + => composite_exercise02",
    2: "in photo.size) => in photo.size[::-1]) => a_crop_is_a_square_anywhere_mirrored_or_not",
    3: '(batch["image"] / 255) => batch["image"].float() => pictures_reach_the_network_in_0_to_1',
    4: "Muon(net.parameters(), => Muon([*net.parameters()][:-2], => kernels_alone_decay",
    5: "rng).transpose(2, 0, 1) => rng).transpose(2, 0, 1)\n"
    "        target = degrade(np.dstack([target] * 3), rng)[..., 0] => "
    "a_composite_by_hand_exercise05",
    6: ".clamp(min=1) =>  => loss_is_finite_and_in_fp32_exercise09",
    7: "= degrade(image, => = degrade(image[..., ::-1], => a_composite_by_hand_exercise05",
    8: "run(x)\n    wait() => run(x) => the_clock_waits_for_cuda",
    9: "(matte_logits, target) => (matte, target) => mlb_loss_by_hand_exercise09",
    10: "alpha_t * M_t + (1 - alpha_t) * S => alpha_t * S + (1 - alpha_t) * M_t => "
    "blend_exercise03",
    11: "= degrade(image, => = degrade(image[:, :: rng.choice([-1, 1])], => "
    "a_composite_by_hand_exercise05",
}
PREDICTED = {  # what the lab run gives then: MSE, boundary MAD, e-3
    11: """
        matte and boundary near ln 2 = 0.693 (0.73, 0.69: random weights do not say exactly 1/2),
        detail near 1/4 (0.26), laplacian 0.30 (which nobody can guess). Why 1/4? An untrained
        teacher says M' = 1/2 and α' = 1/2 everywhere, so that B is 1/4 or 3/4: all of a photo is
        boundary, and the untrained student, who says 1/2, is 1/4 off. (At the boundary of a
        composite, the matte is from 0.05 to 0.95, and 1/2 is about as far off.)
    """,
    12: """
        teacher 161, 326; MLB 46, 268 (without: 92, 289; 41, 261). The teacher suffers; the student
        has its masks.
    """,
    13: """
        MLB 90, 283 (without: 41, 261): without masks a student is no better than its teacher.
    """,
    14: """
        MLB 47, 265 (without: 41, 261): fewer scenes to learn people in, which MSE shows more than
        the boundary. (Labels are now measured on those 8 photos, whose masks are coarser: no news.)
    """,
    15: """
        teacher 111, 290; MLB 40, 257 (without: 92, 289; 41, 261). The teacher suffers, by more than
        seeds differ (83 to 93); its student does not (MLB 40 to 41): masks know the scenes.
    """,
    18: """
        labels B 10.2, 163 (without: 11.2, 163): outlines of things are gone, but so are strands
        beyond the band; MLB 40, 258 (without: 41, 261) hardly tells. (4 pixels are much of the
        64 that training sees, and little of the photos on which labels are measured.)
    """,
    19: """
        MLB 43, 262 (without: 41, 261): in so short a run, whose teacher knows little hair, nearly
        all of the way from 92 to 41 is the masks'. In a full training it is not: naive mix 12.6,
        175; MLB 10.7, 144 (compare, seed 0).
    """,
}
NOTES = """Instructor's notes: a lab of two hours, or the first of them alone.
Goals: to say what a mask knows and what a teacher knows; to write the formulas of α, B and a
composite, and a sample; to find a bug by its pictures.

A week before: compare the formulas with the paper, of which we know summaries. Students run
README's first command and send the table that it ends with. They bring runs/mlb to class. Students
without a laptop (nobody has tried Windows) work in pairs. Mail them the command: README has the
formula that hole 3 asks for. Homework, to get to know hole and grade:
    python test_mlb.py hole 1 --to my_home.py

The day before, with the python of .venv (some 15 minutes):
    python test_mlb.py bug 10 --to bug10.py
    python bug10.py train --out runs/bug10
    python test_mlb.py hole 3 --to my_naive.py   where you write   return S
    python my_naive.py train --out runs/naive
    python mlb.py train --size 64 --teacher-steps 150 --steps 150 --out runs/lab

In class: a file is never overwritten, so each hole or bug gets a new name. A run of corrected code
gets a new --out; --resume would show the old figures. Fill all holes of a file before it is run: an
empty blend stops it in stage 2 only, and its --out is then taken. A run of one step is mostly
evaluation: half a minute, but minutes if other programs use the cores (OMP_NUM_THREADS=1 helps).

The first hour
10  README's points 1, 2, 3 and 5, with data_sample/labels_hair.png and _shirt.png on the wall.
    Not the diagram and point 4: point 3 says whom to believe, hole 3 asks to write that down (who
    has seen the formula tells why it must be so).
10  Holes 2 and 3, README closed:   python test_mlb.py hole 2 3 5 --to my_lab.py
    after each:   python test_mlb.py grade my_lab.py
    A threshold, torch.where(α' > 1/2, M', S), is a fair first answer to hole 3 (grade rejects it):
    what comes of 0.8 where α' = 0.25? Ask: where have you just written the same formula twice? (B
    is a composite of M' over S, with α' as its matte: labels are composited as pictures are.)
20  Hole 5, in the same file: what is a sample, and why must the matte not be degraded with the
    photo? (Light and noise change colours, not how much of a pixel is person. Blur is a choice: of
    an unfocused person we ask the sharp matte.) Give away the mask, which is of our extension:
    mask = annotate(target, rng) if self.guided and not natural else target
    Usual mistakes: alpha without an axis for colours, not checking that there are backgrounds,
    degrade before the composite. Then one step with it:
    python my_lab.py train --size 64 --teacher-steps 1 --steps 1 --out runs/mine
    Look at the composite in its batch.png; the photo's label is grey and all boundary, since its
    teacher knows nothing. At minute 35:   python test_mlb.py answer 5
    Students who are not done make runs/mine with mlb.py.
 5  data_sample/mattes_hair.png, README's large table and their own. What do masks alone give?
    (People without hair: boundary MAD 183.) What do composites add? (Naive mix: 172.) What does
    blending? (142.) Where does it gain nothing? (SAD 1.36, naive mix 1.32, ± 0.03: faint outlines.)
10  runs/bug10 beside runs/mlb, pictures and tables, the code later. Where is B wrong, and whose
    mistake is it? (Hair is cut off as by the mask, shirts on the wall are people: labels B have an
    MSE of 33 instead of 7.1, the student of 25 instead of 10.3.)
 5  README's questions about mattes.png, and why. (The student's outer strands are paler, by a
    third over all test pictures. As much is lost in B already: on strands outside the mask α' is
    0.6 on average, and S says 0. Ghosts remain of what the teacher takes for people: α' is high on
    a shirt's outline, so B has the outline. Why the student shows all stripes we don't know; our
    guess: to it a stripe looks like an outline.)

The second hour
25  Exercises 13, 14 and 19, one a group: guesses on the board before the run, which takes a minute
    or two; three minutes each to tell the others afterwards. The others are homework. 19 is the
    point: without it nobody has seen what is blending's and what is the masks'.
    python mlb.py train --size 64 --teacher-steps 150 --steps 150 --mix 1 --out runs/mix
    python mlb.py train --size 64 --teacher-steps 150 --steps 150 --masks 8 --out runs/masks
    python my_naive.py train --size 64 --teacher-steps 150 --steps 150 --out runs/few_naive
    Then show the table of runs/naive: blending's gain takes a full training.
15  Hole 9, in a new file: what does each term see that the others do not? (matte: all pixels alike,
    so body and background, of which a strand is little; laplacian: edges of all sizes, and no
    constant; detail: α alone, each picture alike, so that hair is not outvoted; boundary: the only
    one that trains the second output, without which there is no α'.)
10  Bug 5, from batch.png alone:   python test_mlb.py bug 5 --to bug5.py
    python bug5.py train --size 64 --teacher-steps 1 --steps 1 --out runs/bug5
    Compare with runs/mine. (The composite's boundary is speckled all over the body.) Bug 7 takes a
    minute.
10  In reserve, and a last question: M' = 1, α' = 0.5, S = 0. What is B, and who is wrong, if this
    is a shirt on the wall? If it is a strand? (0.5. The teacher; the mask. MLB can't know which, so
    it says half.) If late in the first hour, leave out README's questions; in the second, make
    hole 9 homework.

The answers stand at the end of test_mlb.py, which the students have; diff finds any bug, grade
most of them: say so. Bug 8 is seen on CUDA alone, bugs 1 and 2 hardly in batch.png; bugs 5 and 11
draw random numbers of their own, so that batch.png may show another photo. The most-hair picture of
labels.png and of mattes.png is the same for all runs; the other is the run's own.

Predict, then measure (the lab run's MSE, boundary MAD, e-3; python test_mlb.py answer N has them)
{predicted}

Bugs
 1  composite multiplies by alpha twice: dark edges (premultiplied colours taken for plain ones)
 2  height and width swapped: pictures that are not square are cut off, or the crop is no square
 3  bytes are not divided by 255 in training, but are wherever the network is used
 4  the head is not given to the optimizer and stays as random as it began: the layers before it
    learn around that, slowly
 5  the target is degraded as well: labels with other light, blur and noise
 6  a picture without boundary divides 0 by 0: nan. The lab run has no such picture: find this one
    by reading
 7  red and blue swapped in training (OpenCV's BGR): skin is blue in batch.png
 8  no wait for the GPU after the call: launches are timed, not work; impossibly many FPS
 9  the sigmoid is taken twice in the matte's loss: it learns slowly and stays grey
10  M' and S swapped in the blend: hair from the mask, semantics from the teacher (in the lab run
    MLB 76, 280; labels B 69, 260)
11  the image is mirrored without its label, half of the time

Holes: python test_mlb.py answer N. WRONG in test_mlb.py has wrong answers, and what is said then.
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", HOLES)
def test_a_hole_is_red_until_it_is_filled(number):
    empty = exercise(number, with_holes({number: None}))
    assert f"not written yet, exercise {number}, about" in empty


@pytest.mark.slow
@pytest.mark.parametrize("number", ANSWERS)
def test_right_answers_are_green_and_wrong_ones_red(number):
    answer = ANSWERS[number]
    assert exercise(number, with_holes({number: answer})) == ""
    for line in WRONG[number].strip().splitlines():
        *changes, words = (part.strip() for part in line.split("=>"))
        wrong = answer
        for old, new in zip(changes[::2], changes[1::2], strict=True):
            assert old in wrong, f"expected {old!r} in the right answer, got none"
            wrong = wrong.replace(old, new, 1)
        said = exercise(number, with_holes({number: wrong}))
        assert words in said, f"expected {words!r} of {line!r}, got {said!r}"


@pytest.mark.slow
@pytest.mark.parametrize("number", BUGS)
def test_a_bug_is_noticed(number):
    end = BUGS[number].split(" => ")[2]
    tests = [test for name, test in globals().items() if name.endswith(end)]
    assert failure(tests[0], with_bug(number)), f"expected {end} to notice the bug, got it green"


def test_every_bug_can_be_trained_with(monkeypatch):
    for number in BUGS:
        monkeypatch.setitem(globals(), "mlb", module_of(with_bug(number)))
        samples = [person_mixer(mix)[k] for mix in (0, 1) for k in range(4)]
        take_step(mlb.MattingNet(8), torch.utils.data.default_collate(samples), "S", None)


def test_a_loop_without_end_is_ended():
    alarm(1)
    with pytest.raises(pytest.fail.Exception, match="does your loop end"):
        time.sleep(5)


def test_exercises_are_written_once_and_graded(capsys):
    words = ["hole", "1", "2", "3", "5", "--to", "my_mlb.py"]
    assert [main(words), main(words)] == [0, 2], "expected no file written over"
    text = Path("my_mlb.py").read_text(encoding="utf-8")
    assert text.count("NotImplementedError") == 4
    for told in itertools.chain(*TOLD.values()):
        assert told in with_holes({}), f"expected in mlb.py what is left out, got no {told}"
        assert told not in text, f"expected the answer left out, got {told}"
    for command in re.findall(r"\w+\.py train .*", NOTES):
        assert "--out runs/" in command, f"expected a folder of its own, got {command}"
    assert main(["grade", "my_mlb.py"]) == 1
    assert main(["instructor"]) == 0
    assert main(["answer", "3"]) == main(["answer", "13"]) == 0
    assert main(["answer", "20"]) == 2
    assert main(["bug", "12", "--to", "b.py"]) == 2
    said = capsys.readouterr().out
    assert "alpha_t * M_t + (1 - alpha_t) * S" in said and ANSWERS[3] in said
    assert PREDICTED[13].strip() in said and "0 of 4 passed" in said


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")
    sys.exit(main(sys.argv[1:]))
