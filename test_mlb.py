# SPDX-License-Identifier: MIT
"""What mlb.py promises, in its own order; slow checks last: python -m pytest [-m "not slow"]

MLB=my_mlb python -m pytest tests your own copy, my_mlb.py. Exercises: mlb.py with a function left
for you to write (HOLES), or with a bug to find (BUGS):
    python test_mlb.py hole 3 > my_mlb.py && MLB=my_mlb python -m pytest -k exercise03
    python test_mlb.py bug 4 > my_mlb.py && MLB=my_mlb python -m pytest -m "not slow"
"""
import ast, contextlib, csv, functools, importlib, inspect, io, itertools, json, math, operator, os, pathlib
import pickle, re, resource, shlex, shutil, signal, subprocess, sys, time, types

HERE, NAME = pathlib.Path(__file__).parent, os.environ.get("MLB", "mlb")
sys.path.insert(0, os.getcwd())
os.environ.setdefault("OMP_NUM_THREADS", "1")  # pictures of 32 pixels are not worth a second thread
try:
    import numpy as np, pytest, torch
    from PIL import Image
    mlb = importlib.import_module("mlb" if __name__ == "__main__" else NAME)
except ImportError as problem:
    if __name__ != "__main__":
        raise
    print(f"test_mlb.py: {problem}; install what requirements.txt lists", file=sys.stderr)
    sys.exit(2)
SAMPLE, README = HERE / "data_sample", (HERE / "README.md").read_text(encoding="utf-8")
PRECISION = torch.backends.cudnn.conv.fp32_precision
slow, cases, rng_of = pytest.mark.slow, pytest.mark.parametrize, np.random.default_rng

def same(got, expected, tolerance=1e-6):
    """Fails with what was expected and what came."""
    got, expected = np.asarray(got, float), np.asarray(expected, float)
    assert got.shape == expected.shape, f"expected shape {expected.shape}, got {got.shape}"
    off = np.abs(got - expected).max()
    assert off <= tolerance, f"expected {expected}, got {got}, off by {off:.3g}"

def main(*arguments):
    """Runs the program in this process -> exit status."""
    try:
        return mlb.main([str(a) for a in arguments])
    except SystemExit as stop:  # argparse's way
        return stop.code
    finally:  # bench sets it, in a process of its own
        torch.backends.cudnn.conv.fp32_precision = PRECISION

def fails(capsys, *arguments):
    """Runs a command that must end in one line of error and status 2; returns the line."""
    assert main(*arguments) == 2
    lines = [x for x in capsys.readouterr().err.strip().splitlines() if x[:10] != "mlb: note:"]
    assert len(lines) == 1 and lines[0].startswith("mlb: error: "), lines
    return lines[0]

def script(text, *arguments, **more):
    """Starts a script in a process of its own, where mlb is the tested module."""
    command = [sys.executable, "-c", f"import sys, time, torch, {NAME} as mlb\n{text}"]
    more = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": HERE} | more
    return subprocess.Popen([*command, *map(str, arguments)], **more)

def saved(path, array, mode=None, **extra):
    """Writes an array of bytes as a picture; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(array, np.uint8))
    (image.convert(mode) if mode else image).save(path, **extra)
    return path

def picture(path, size=(40, 40), seed=0, **extra):
    """Writes a random picture in colours; returns its path."""
    return saved(path, rng_of(seed).integers(0, 256, (*size[::-1], 3)), **extra)

def disc(path, size=(40, 40), mode="L", soft=1, share=1 / 3):
    """Writes a label: a white disc on black; its edge is soft pixels wide, 0 for a hard one."""
    y, x = np.mgrid[:size[1], :size[0]]
    inside = min(size) * share - np.hypot(x - size[0] / 2, y - size[1] / 2)
    return saved(path, 255 * (inside / max(soft, 1e-9) + 0.5).clip(0, 1), mode)

def make_toy(root):
    """A toy data set in the layout of data_sample: 3 cut-outs, 2 backgrounds, 4 photos, 2 tests."""
    for folder, count in {"matte/foreground": 3, "matte/background": 2, "segmentation/image": 4,
                          "test/image": 2}.items():
        for k in range(count):
            picture(root / folder / f"{k}.jpg", seed=k)
    for folder, (count, soft) in {"matte/alpha": (3, 6), "segmentation/mask": (4, 0),
                                  "segmentation/alpha": (4, 4), "test/alpha": (2, 5)}.items():
        for k in range(count):
            disc(root / folder / f"{k}.png", soft=soft, share=0.3 + 0.02 * k)
    return root

@pytest.fixture
def toy(tmp_path):
    return make_toy(tmp_path / "toy")

def tiny(command, toy, out, *more):
    """The arguments of a small run of train or compare."""
    text = "--size 32 --width 8 --batch 4 --teacher-steps 5 --steps 6 --device cpu"
    return [command, "--data", str(toy), "--out", str(out), *text.split(), *map(str, more)]

def mixer(data, mix, size=32, seed=0, guided=False):
    """A mixer over a data set in the layout of data_sample."""
    m, s = data / "matte", data / "segmentation"
    return mlb.Mixer(mlb.pairs(m / "foreground", m / "alpha"), [*mlb.pictures(m / "background").values()],
                     mlb.pairs(s / "image", s / "mask"), mix, size, seed, guided)

def state(path):
    return torch.load(path, weights_only=True)

def weights(out, row="MLB.0"):
    """A row's network as one vector."""
    return torch.cat([v.flatten().double() for v in state(out / f"{row}.pt")["net"].values()])

def log(path):
    """A row's CSV: {column: [a number a step]}."""
    names, *rows = csv.reader(io.StringIO(path.read_text()))
    return dict(zip(names, np.array(rows, float).T.tolist()))

def files_of(folder):
    """What must not change: {name: (bytes, time of writing)}."""
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}

@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(data, out, what it said) of a small run of train."""
    root, said = tmp_path_factory.mktemp("trained"), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        assert main(*tiny("train", make_toy(root / "toy"), root / "out")) == 0
    return root / "toy", root / "out", said.getvalue()

@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """(data, out, {(row, seed): the samples that its training took}) of a small comparison."""
    root, taken, take, fit = tmp_path_factory.mktemp("compared"), {}, mlb.Mixer.__getitem__, mlb.fit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlb.Mixer, "__getitem__", lambda self, i: taken[[*taken][-1]].append(
            take(self, i)) or taken[[*taken][-1]][-1])
        patch.setattr(mlb, "fit", lambda *given: taken.update({given[:2]: []}) or fit(*given))
        assert main(*tiny("compare", make_toy(root / "toy"), root / "out", "--seeds", 2, "--steps", 2,
                          "--teacher-steps", 2, "--mix", 0.5)) == 0
    return root / "toy", root / "out", {key: samples[-8:] for key, samples in taken.items()}

# ---------------------------------------------------------------- 1 Data

def test_pictures_pair_by_stem_nested_and_linked_and_strays_do_not(tmp_path, capsys):
    root, i, m = (tmp_path / name for name in "rim")
    for name in ("r/b.JPG", "r/a/c.png", "r/._b.jpg", "r/notes.txt", "e/d.webp", "e.tif", "i/1.png",
                 "i/2.png", "i/4.png", "i/7.png", "m/1.jpg", "m/3.jpg", "x/9.png"):
        saved(tmp_path / name, np.zeros((40, 40)), format="PNG")
    (root / "folder").symlink_to(tmp_path / "e")
    (root / "f.tif").symlink_to(tmp_path / "e.tif")
    found = {stem: str(path.relative_to(root)) for stem, path in mlb.pictures(root).items()}
    assert found == {"b": "b.JPG", "c": "a/c.png", "d": "folder/d.webp", "f": "f.tif"}
    picture(root / "deep/b.png")
    (root / "empty").mkdir()
    for folder, said in ((root, r"b\.(png|JPG).*same name.*b\.(png|JPG)"), (root / "none", "none"),
                         (root / "empty", "empty")):
        with pytest.raises(mlb.UserError, match=said):
            mlb.pictures(folder)
    assert mlb.pairs(i, m) == [(i / "1.png", m / "1.jpg")] and len(mlb.pairs(i, i)) == 4
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "4 pictures" in said and "mlb: note: " in said
    assert [name in said for name in ("2.png", "3.jpg", "4.png", "7.png")] == [True] * 3 + [False]
    with pytest.raises(mlb.UserError, match="i: no "):
        mlb.pairs(i, tmp_path / "x")

TURNS = {5: lambda x: x.swapaxes(0, 1), 6: lambda x: np.rot90(x, -1),
         7: lambda x: np.rot90(x, 2).swapaxes(0, 1), 8: lambda x: np.rot90(x)}

@cases("suffix, turn", [("jpg", 6), *itertools.product(("png", "tif"), TURNS)])
def test_photos_and_labels_are_read_upright(suffix, turn, tmp_path):
    array, exif = np.zeros((32, 48, 3), np.uint8), Image.Exif()
    array[:16], array[:, :16], exif[0x0112] = 255, 128, turn
    photo = saved(tmp_path / f"p.{suffix}", array, exif=exif)
    pair = mlb.read_pair(photo, saved(tmp_path / f"l.{suffix}", array[..., 0], exif=exif))
    same(pair, TURNS[turn](np.dstack([array, array[..., 0]])), 4 if suffix == "jpg" else 0)

def test_labels_of_every_kind_mean_the_same(tmp_path):
    truth = np.asarray(Image.open(disc(tmp_path / "L.png", soft=0)))
    for mode in ("1", "RGB", "RGBA"):
        disc(tmp_path / f"{mode}.png", mode=mode, soft=0)
    saved(tmp_path / "zero_one.png", truth // 255)
    saved(tmp_path / "aisegment.png", np.dstack([truth | 200, *[truth & 10] * 2, truth]))
    saved(tmp_path / "grey.png", np.dstack([*[90 + 0 * truth] * 3, truth]))
    for path in sorted(tmp_path.iterdir()):
        label = mlb.read(path, label=True)
        assert label.mode == "L" and np.array_equal(np.asarray(label), truth), path
    for level in (0, 128, 200):
        path = saved(tmp_path / "level.png", np.full((40, 40), level))
        assert mlb.read(path, label=True).getextrema() == (level, level)

@cases("kind", ["palette", "colour", "opaque", "deep", "float", "two", "classes", "cmyk"])
def test_a_label_that_could_mean_several_things_is_refused(kind, tmp_path):
    truth, name = np.asarray(Image.open(disc(tmp_path / "L.png", soft=0))), f"{kind}.png"
    red = Image.fromarray(np.dstack([truth, truth // 2, truth]))
    path = tmp_path / name.replace("float.png", "float.tif").replace("cmyk.png", "cmyk.jpg")
    {"palette": Image.fromarray(truth).convert("P"), "colour": red, "opaque": red.convert("RGBA"),
     "deep": Image.fromarray(truth.astype(np.uint16) * 257), "cmyk": red.convert("CMYK"),
     "float": Image.fromarray(truth.astype(np.float32)), "two": Image.fromarray(truth // 255 * 2),
     "classes": Image.fromarray(truth // 255 * 127)}[kind].save(path)
    with pytest.raises(mlb.UserError, match="save it") as caught:
        mlb.read(path, label=True)
    assert str(path) in str(caught.value)
    if kind in ("deep", "float"):
        with pytest.raises(mlb.UserError, match="save it"):
            mlb.read(path)

def test_photos_of_every_kind_become_rgb_and_shrink_to_what_is_asked(tmp_path):
    for name, mode in {"c.jpg": "CMYK", "g.jpg": "L", "a.png": "RGBA", "la.png": "LA", "w.webp": "RGB",
                       "p.png": "P", "p.bmp": "RGB", "p.tif": "RGB"}.items():
        saved(tmp_path / name, np.dstack([np.full((40, 40), 255), *[np.zeros((40, 40))] * 2]), mode)
    frames = [Image.new("RGB", (40, 40), c) for c in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    for path in sorted(tmp_path.iterdir()):
        image = mlb.read(path)
        assert image.mode == "RGB" and image.size == (40, 40) and image.getpixel((5, 5))[0] > 70, path
    jpg, png = picture(tmp_path / "p.jpg", (800, 640)), picture(tmp_path / "q.png", (400, 300))
    for path, short, expected in ((jpg, 0, 640), (jpg, 150, 160), (jpg, 161, 320), (png, 60, 60),
                                  (png, 0, 300), (png, 151, 300), (png, 150, 150), (png, 999, 300)):
        assert min(mlb.read(path, short=short).size) == expected, (path, short)

def hostile(folder):
    """{kind: path} of files that no program likes to meet."""
    jpg, png = (picture(folder / f"whole.{x}", (300, 300)).read_bytes() for x in ("jpg", "png"))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n%%EOF\n"
    for name, content in {"zero.jpg": b"", "cut.jpg": jpg[:9999], "cut.png": png[:9999],
                          "eps.png": eps, "text.jpg": b"text\n" * 9, "new\nline.jpg": b"x",
                          "ünï çødé.jpg": b"x", "-dash.jpg": b"x"}.items():
        (folder / name).write_bytes(content)
    for name, size in {"small.png": (15, 40), "thin.png": (16, 257), "flat.png": (257, 16)}.items():
        picture(folder / name, size)
    Image.new("1", (20000, 20000)).save(folder / "bomb.png")
    (folder / "circle.jpg").symlink_to("circle.jpg")
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    found = {p.name: p for p in folder.iterdir() if "whole" not in p.name}
    return found | {"gone.jpg": folder / "gone.jpg"}

def test_hostile_files_are_named_in_one_error(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)  # no interpreter is started
    for name, path in hostile(tmp_path / "h").items():
        with pytest.raises(mlb.UserError) as caught:
            mlb.read(path)
        assert str(path) in str(caught.value), name
    for size in ((16, 16), (16, 256), (256, 16)):
        assert mlb.read(picture(tmp_path / "p.png", size)).size == size

def test_a_pair_is_one_picture_and_of_one_aspect(tmp_path):
    """A JPEG decodes at an eighth, a PNG does not: what is left of both lies pixel upon pixel."""
    photo, mask = (disc(tmp_path / name, (1010, 900), "RGB") for name in ("p.jpg", "p.png"))
    for short in (0, 50, 100, 130, 899):
        pair = mlb.read_pair(photo, mask, short)
        assert pair.shape[2] == 4 and pair.dtype == np.uint8
        assert short <= min(pair.shape[:2]) < (2 * short or 9999)
        assert abs(pair[..., 0].astype(float) - pair[..., 3]).mean() < 5
    assert np.array_equal(mlb.read_pair(photo), np.asarray(mlb.read(photo)))
    photo = picture(tmp_path / "q.png", (100, 100))
    for size in ((100, 101), (101, 100), (50, 50)):
        assert mlb.read_pair(photo, disc(tmp_path / "l.png", size)).shape == (100, 100, 4)
    for size in ((100, 103), (103, 100), (50, 48)):
        with pytest.raises(mlb.UserError, match="l.png.*q.png"):
            mlb.read_pair(photo, disc(tmp_path / "l.png", size))

def test_composite_exercise02():
    same(mlb.composite(np.array([1.0, 0.5, 0.0]), 0.25, np.array([0.0, 0.5, 1.0])), [0.25, 0.5, 0.75])
    F, B, a = rng_of(0).random((3, 4, 5)), rng_of(1).random((3, 4, 5)), rng_of(2).random((1, 4, 5))
    same(mlb.composite(F, np.ones_like(a), B), F)
    same(mlb.composite(F, np.zeros_like(a), B), B)
    same((mlb.composite(F, a, B) - B) / (F - B), np.broadcast_to(a, F.shape))  # solved for alpha

def test_degrade_changes_light_focus_and_noise_in_bounds():
    grey, edge = np.full((32, 32, 3), 128, np.uint8), np.zeros((32, 32, 3), np.uint8)
    edge[:, 16:] = 255
    x, y = (np.stack([mlb.degrade(photo, rng_of(k)) for k in range(300)]) for photo in (grey, edge))
    means, noise = x.mean((1, 2, 3)), x.std((1, 2)).mean(1)
    assert x.shape == (300, 32, 32, 3) and x.dtype == np.uint8 and (grey == 128).all()
    assert 85 < means.min() < 105 and 152 < means.max() < 180 and 120 < means.mean() < 136, "light"
    assert 0.22 < (noise > 1).mean() < 0.37 and 8 < noise.max() < 11.5, "some have noise"
    tints = x.mean((1, 2)).max(1) / x.mean((1, 2)).min(1)
    assert 1.08 < tints.max() < 1.11 and y[:, :, 20:].mean() > 205 and y[:, :, :12].mean() < 2
    quiet = y[y[:, :, :8].std((1, 2, 3)) == 0]
    soft = quiet[quiet[:, 16, 15, 0] > 5]
    assert 0.17 < len(soft) / len(quiet) < 0.35, "some are out of focus"
    assert soft[:, 16, 15].max() < 130 and soft[:, 16, 11].max() < 20, "by a pixel or two"
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, 2).repeat(8, 1)
    curves = [mlb.degrade(ramp, rng_of(k))[..., 0].mean(1) for k in range(60)]
    bent = [c[100] / c[200] for c in curves if c[200] < 250]
    assert 0.36 < min(bent) < 0.46 and 0.54 < max(bent) < 0.62, "a curve, not a factor"

def test_clutter_draws_on_a_copy_of_a_background():
    grey = np.full((64, 64, 3), 128, np.uint8)
    x = np.stack([mlb.clutter(grey, rng_of(k)) for k in range(300)])
    drawn, colours = (x != 128).any(3), [len(set(map(tuple, y.reshape(-1, 3)))) - 1 for y in x]
    share, where = drawn.mean((1, 2)), drawn.mean(0)
    assert x.shape == (300, 64, 64, 3) and x.dtype == np.uint8 and (grey == 128).all()
    assert 0.25 < (share == 0).mean() < 0.38, "3 of 10 backgrounds are left as they are"
    assert 0.1 < share.mean() < 0.25 and 0.45 < share.max() < 0.95
    assert max(colours) in (6, 7) and 1.9 < np.mean(colours) < 3.5, "one to seven shapes"
    assert where.min() > 0.02 and where.max() < 0.4, "everywhere, and nowhere always"

def test_hurried_mask_exercise08():
    y, x = np.mgrid[:128, :128] - 64
    matte = np.where(np.hypot(x, y) < 32, 255, 0).astype(np.uint8)
    body, matte[8:32, 32:96:6] = matte > 0, 200  # hairs
    masks = np.stack([mlb.hurried_mask(matte, rng_of(k)) for k in range(60)])
    assert masks.shape == (60, 128, 128) and masks.dtype == np.uint8
    assert set(np.unique(masks)) == {0, 255}, f"expected 0 and 255, got {np.unique(masks)}"
    assert np.array_equal(masks[7], mlb.hurried_mask(matte, rng_of(7))), "a function of its seed"
    found = masks > 0
    overlap = (found & body).sum((1, 2)) / (found | body).sum((1, 2))
    assert overlap.min() > 0.55 and 0.8 < overlap.mean() < 0.985 and overlap.std() > 0.005, overlap
    assert found[:, 8:20].mean() < 0.02, "hairs are cut off"
    assert found[:, 56:72, 56:72].all() and not found[:, 104:].any(), "the person is there, not more"

def test_hurried_masks_are_uneven_and_of_low_resolution():
    """A straight edge between black and white, as annotators click it."""
    matte = np.repeat(np.uint8([0, 255]), 64)[None].repeat(128, 0)
    width = np.stack([64 - (mlb.hurried_mask(matte, rng_of(k)) > 0).sum(1) for k in range(200)])
    uneven = np.ptp(width, 1)  # width: how far each row's edge is to the right
    assert -1.5 < width.mean(1).min() < 0.5 and 0.8 < width.mean(1).max() < 5, width.mean(1)
    assert 0 < width.mean() < 1.5 and 0.8 < uneven.mean() < 4 and uneven.max() < 12, uneven.mean()
    wide = np.kron(matte, np.ones((4, 4), np.uint8))  # the same, four times as large
    far = [np.ptp((mlb.hurried_mask(wide, rng_of(k)) > 0).sum(1)) for k in range(20)]
    assert 2 < np.mean(far) / uneven[:20].mean() < 6, "its errors grow with the picture"

def equal(x, y):
    """Whether two samples are the same bits."""
    return all(np.array_equal(x[key], y[key]) for key in ("image", "target", "mask", "natural"))

def test_samples_are_bytes_made_of_seed_and_index_alone_exercise05(toy):
    a, b, c = (mixer(toy, 0.5, guided=True, seed=seed) for seed in (0, 0, 1))
    assert all(equal(a[i], b[i]) for i in (3, 0, 7, 2, 0))
    plain = mlb.Mixer(a.composites, [p for p, in a.backgrounds], a.naturals, 0.5, 32)
    assert all(equal(plain[i], mixer(toy, 0.5)[i]) for i in range(6)), "seed 0 where none is given"
    assert not any(map(equal, [a[0], a[0], a[1]], [a[1], c[0], c[0]]))
    for mix, guided in itertools.product((0, 1), (False, True)):
        samples = [mixer(toy, mix, guided=guided)[i] for i in range(8)]
        shapes = {key: (x.shape, x.dtype.name) for key, x in samples[0].items() if key != "natural"}
        assert shapes == {"image": ((3, 32, 32), "uint8"), "target": ((1, 32, 32), "uint8"),
                          "mask": ((1, 32, 32), "uint8")}
        assert isinstance(samples[0]["natural"], bool) and samples[0]["target"].max() > 240
        hurried = any(not np.array_equal(s["mask"], s["target"]) for s in samples)
        assert hurried == (mix == 1 and guided), "masks are hurried for guided teachers' composites"
    for mix in (0, 0.25, 1):
        share = np.mean([not mixer(toy, mix)[i]["natural"] for i in range(300)])
        assert abs(share - mix) < 0.08 and (share == mix or 0 < mix < 1), f"expected {mix}, got {share}"

def test_a_person_stands_before_a_background_exercise05(tmp_path):
    """Red people before blue: where alpha is 1 the picture is red, where it is 0 it is blue."""
    f, b = (saved(tmp_path / f"{c}.png", np.full((48, 48, 3), c)) for c in ((255, 0, 0), (0, 0, 255)))
    people, blue = [(f, disc(tmp_path / "a.png", (48, 48), soft=8))], []
    m = mlb.Mixer(people, [b], [], 1.0, 32)
    for s in (m[i] for i in range(150)):
        image, target = s["image"] / 255, s["target"][0] / 255
        red, behind = image[:, target == 1].mean(1), image[:, target == 0]
        assert red[0] > 0.7 and max(red[1:]) < 0.1, f"expected the person's red, got {red}"
        blue.append(behind[2].mean())
        if (behind[2] > 0.6).all() and (behind[:2] < 0.2).all():  # nothing is drawn on it
            half = image[0, (target > 0.45) & (target < 0.55)].mean() / red[0]
            assert 0.3 < half < 0.7, f"where alpha is half expected half the red, got {half:.2f}"
    assert np.mean(blue) > 0.5, "the background shows where alpha is 0"
    assert (mlb.Mixer(people, [], [], 1.0, 32)[0]["image"][0] > 180).all(), "no backgrounds, as it is"

def test_what_is_left_and_right_in_a_sample_exercise05(tmp_path):
    path = saved(tmp_path / "p.png", np.dstack([np.indices((40, 40))[1] < 20] * 3) * 255)
    m, sides = mlb.Mixer([], [], [(path, path)], 0, 32), []
    for s in (m[i] for i in range(60)):
        target, image = s["target"][0].mean(0), s["image"].mean((0, 1))
        sides.append(target[:4].mean() > target[-4:].mean())
        assert sides[-1] == (image[:4].mean() > image[-4:].mean()), (
            "the person's label is on the other side than the person")
        assert image[target > 242].mean() > 150 > 40 > image[target < 13].mean(), "one window"
    assert 15 < sum(sides) < 45, "half are mirrored"

def test_labels_keep_their_values_exercise05(tmp_path):
    found = [(picture(tmp_path / "i.png"), saved(tmp_path / "m.png", np.full((40, 40), 255)))]
    for m in (mlb.Mixer([], [], found, 0, 32), mlb.Mixer(found, [], [], 1, 32)):
        values = np.unique([m[i]["target"] for i in range(20)])
        assert values.tolist() == [255], f"expected 255 all over, as the file has it, got {values}"

def test_a_window_is_a_square_anywhere_in_its_picture(tmp_path):
    """The picture tells where it was cut: red is x, green is y, of each pixel."""
    for width, height in ((60, 40), (40, 60)):
        y, x = np.mgrid[:height, :width]
        path, corners = saved(tmp_path / f"{width}.png", np.stack([x, y, 0 * x], 2)), []
        for k in range(200):
            shown = mlb.Mixer([], [], [], 0, 32).window([(path,)], rng_of(k)).astype(float)
            assert shown.shape == (32, 32, 3), f"expected a square of 32, got {shown.shape}"
            red, green = shown[..., 0], shown[..., 1]
            assert np.ptp(red, 0).max() == np.ptp(green, 1).max() == 0, "expected upright squares"
            corners.append([red[0, 0], red[0, -1], green[0, 0], green[-1, 0]])
        left, right, top, bottom = np.array(corners).T
        assert 70 < (left > right).sum() < 130 and (top < bottom).all(), "half are mirrored"
        left, right = np.minimum(left, right), np.maximum(left, right)
        assert np.abs(right - left - bottom + top).max() <= 2, "expected squares, got other shapes"
        assert bottom.max() >= height - 2 and right.max() >= width - 2 and max(top.min(), left.min()) <= 1
        sides = bottom - top + 1
        assert 26 < sides.min() < 31 and 38 < sides.max() <= 40, "0.7 to 1 of the short side"

def test_photos_are_shrunk_by_averaging_and_decoded_once_where_few(tmp_path, monkeypatch):
    path = saved(tmp_path / "b.png", np.dstack([np.indices((300, 300)).sum(0) % 2 * 255] * 3))
    asked, reads, decode, read, most = [], [], mlb.read_pair, mlb.read, mlb.REMEMBERED
    monkeypatch.setattr(mlb, "read_pair", lambda *a, **k: asked.append(k["short"]) or decode(*a))
    m = mlb.Mixer([], [], [(path,)] * 1000, 0, 32)
    shown = [m.window(m.naturals, rng_of(k)).astype(float) for k in range(5)]
    assert (abs(np.stack(shown) - 127.5) < 9).all() and len(asked) == 5, "many: at every use"
    assert 32 <= 0.7 * asked[0] < 34, "the smallest window is not enlarged"
    for a, b, c in ((most, 0, 0), (1, most - 2, 1), (most, 1, 0), (most, 0, 1), (0, most, 1)):
        few = mlb.Mixer([path] * a, [path] * b, [path] * c, 0.5, 32).few
        assert few == (a + b + c <= most), (a, b, c)
    monkeypatch.setattr(mlb, "read", lambda *a, **k: reads.append(a) or read(*a, **k))
    for _ in range(9):
        mlb.Mixer([], [], [], 0, 32).window([(path,)], rng_of(0))
    assert len(reads) == 1, f"decoded {len(reads)} times"

def test_a_damaged_file_is_named_and_another_takes_its_place(toy, capsys):
    path = toy / "segmentation/image/1.jpg"
    path.write_bytes(path.read_bytes()[:400])
    samples = [mixer(toy, 0)[i] for i in range(40)]
    assert not equal(samples[0], samples[1]) and capsys.readouterr().err.count("1.jpg") == 1
    for k in range(4):
        path.with_name(f"{k}.jpg").write_bytes(b"")
    mlb.read_once.cache_clear()
    m, draws = mixer(toy, 0), []
    m.draw = lambda rng: draws.append(str(rng.bit_generator.state)) or mlb.Mixer.draw(m, rng)
    with pytest.raises(mlb.UserError, match="ten .*jpg"):
        m[0]
    assert len(set(draws)) == 10, "ten draws, not one ten times"
    assert "ten" in fails(capsys, *tiny("train", toy, toy / "out"))

# ---------------------------------------------------------------- 2 Model

@cases("guided", [False, True])
def test_net_gives_two_full_size_maps_and_takes_multiples_of_32(guided):
    net, x, masks = mlb.MattingNet(8, guided).eval(), torch.rand(1, 3, 64, 96), torch.rand(2, 1, 64, 96)
    (matte, boundary), (other, _) = net(x, masks[:1]), net(x, masks[1:])
    assert matte.shape == boundary.shape == (1, 1, 64, 96) and not torch.equal(matte, boundary)
    assert torch.equal(matte, other) != guided, "only a guided net looks at the mask"
    with pytest.raises((ValueError, RuntimeError)):
        net(x[..., :70], masks[:1, ..., :70])
    assert not mlb.MattingNet().guided and mlb.MattingNet().head.in_channels == 32

def test_net_sees_single_pixels_and_the_whole_picture_and_adds_what_it_keeps():
    torch.manual_seed(0)
    net, x, took, gave = mlb.MattingNet(8).eval(), torch.rand(1, 3, 128, 128, requires_grad=True), {}, {}
    for name, stage in net.named_children():
        stage.register_forward_hook(lambda _, x, y, name=name: took.update({name: x[0].detach()}) or
                                    gave.update({name: y.detach()}))
    net(x)[0][0, 0, 64, 64].backward()
    reach, y = x.grad.abs().sum(1)[0], net(x)[0][0, 0]
    assert reach[64, 64] > 0 and reach[0, 0] > 0, "a pixel depends on its own and on far ones"
    assert (y[::4, ::4] != y[1::4, 1::4]).any(), "the pixels of a 4×4 cell differ"
    same(took["up32"], gave["down32"] + gave["deep32"], 1e-5)
    for kept, lower, stage in (("down16", "up32", "up16"), ("down8", "up16", "up8"),
                               ("down4", "up8", "up4")):
        same(took[stage], gave[kept] + torch.nn.Upsample(scale_factor=2)(gave[lower]), 1e-5)
    shapes = [tuple(gave[f"down{k}"].shape[1:]) for k in (4, 8, 16, 32)]
    assert shapes == [(8, 32, 32), (16, 16, 16), (24, 8, 8), (32, 4, 4)], "narrowed down to 1/32"
    assert net.up4[0].bias is None and mlb.conv(3, 8)(x).shape == (1, 8, 128, 128)
    net.head.weight.data[:] = 0
    net.head.bias.data[:] = torch.tensor([0.0] * 20 + [1, 10, 100])
    matte, boundary = (y.detach()[0, 0] for y in net(x))
    same(matte, (x.detach()[0] * torch.tensor([1, 10, 100]).view(3, 1, 1)).sum(0), 1e-4)
    assert not boundary.any(), "the gate lets each pixel's own colour through, to the matte alone"

# ---------------------------------------------------------------- 3 MLB

def test_boundary_label_exercise01():
    M = torch.tensor([0, 0.04, 0.05, 0.06, 0.5, 0.94, 0.95, 0.96, 1])
    same(mlb.boundary_label(M), [0, 0, 0, 1, 1, 1, 0, 0, 0])
    same(mlb.boundary_label(M, 0.5, 0.99), [0, 0, 0, 0, 0, 1, 1, 1, 0])
    assert mlb.boundary_label(torch.rand(2, 1, 3, 4)).shape == (2, 1, 3, 4)
    for kind in (torch.float64, torch.float32, torch.bfloat16):
        got = mlb.boundary_label(M.to(kind)).dtype
        assert got == kind, f"expected the type of M, {kind}; got {got}".replace("torch.", "")

def test_blend_exercise03():
    torch.manual_seed(0)
    same(mlb.blend(torch.tensor([0.8]), torch.tensor([0.25]), torch.tensor([0.0])), [0.2])
    M, a, S = torch.rand(2, 1, 9, 9), torch.rand(2, 1, 9, 9), (torch.rand(2, 1, 9, 9) > 0.5).float()
    same(mlb.blend(M, torch.zeros_like(a), S), S)
    same(mlb.blend(M, torch.ones_like(a), S), M)
    same((mlb.blend(M, a, S) - S) / (M - S), a, 1e-4)

def test_laplacian_loss_exercise04():
    flat, loss = torch.full((1, 1, 32, 32), 0.3), mlb.laplacian_loss
    same(loss(flat, flat + 0.5), 0)  # a constant lies in no band of the pyramid
    checks = ((torch.arange(32)[:, None] + torch.arange(32)) % 2 * 1.0)[None, None]
    same(loss(checks, 0 * checks, levels=1), 0.5)  # in the finest band it is ±1/2 everywhere
    same(loss(0 * checks, checks), 0.5 / 4)
    for level in range(5):  # coarser by halves: in a coarser band alone, which counts twice as much
        blocks = checks.repeat_interleave(2 ** level, 2).repeat_interleave(2 ** level, 3)
        expected = 2 ** level * 0.5 / 4 if level < 4 else 0  # the last is too coarse for 4 levels
        same(loss(blocks[..., :32, :32], 0 * flat), expected)

def test_mlb_loss_by_hand_exercise09():
    """White and black pixels that the net holds for even chances; a fourth is boundary."""
    target, boundary = torch.zeros(2, 2, 1, 16, 16)
    target[..., :8], boundary[..., :4], zero = 1, 1, torch.zeros(2, 1, 16, 16)
    terms = mlb.mlb_loss(zero, zero, target, boundary)
    for name, value in {"matte": math.log(2), "boundary": math.log(2), "detail": 0.5,
                        "laplacian": mlb.laplacian_loss(zero + 0.5, target)}.items():
        same(terms[name], value)
    assert set(terms) == {*mlb.WEIGHTS, "total"} and all(t.shape == () for t in terms.values())
    sure = mlb.mlb_loss(50 * (2 * target - 1), 50 * (2 * boundary - 1), target, boundary)
    same(sure["total"], 0, 1e-5)
    x = torch.tensor([1.0, -2.0]).view(2, 1, 1, 1).expand(2, 1, 16, 16)
    terms = mlb.mlb_loss(x, -x, zero, zero)
    same(terms["matte"], (math.log1p(math.e) + math.log1p(math.exp(-2))) / 2)
    same(terms["boundary"], (math.log1p(math.exp(-1)) + math.log1p(math.exp(2))) / 2)
    weigh = {"matte": 2.0, "laplacian": 3.0, "detail": 5.0, "boundary": 7.0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlb, "WEIGHTS", weigh)
        terms = mlb.mlb_loss(x, -x, target, boundary)
    same(terms["total"], sum(weigh[k] * terms[k] for k in weigh), 1e-5)

def test_detail_by_hand_exercise09():
    """It is the error at the boundary of each picture: many hairs count no more than few."""
    target, boundary = torch.zeros(2, 3, 1, 16, 16)
    boundary[0, 0, 0, :2] = boundary[1, 0, :8] = 1  # two pixels, one of them wrong; half of all
    logits = torch.full((3, 1, 16, 16), -50.0)
    logits[0, 0, 0, 0] = logits[0, 0, 7, 7] = 50  # the second is wrong too, but no boundary
    same(mlb.mlb_loss(logits, logits, target, boundary)["detail"], (1 / 2 + 0 + 0) / 3)
    target[1, 0, :8] = 1  # now all of the half is wrong
    same(mlb.mlb_loss(logits, logits, target, boundary)["detail"], (1 / 2 + 1 + 0) / 3)

def test_loss_of_a_plain_picture_and_under_autocast_exercise09():
    logits, zero = torch.zeros(1, 1, 16, 16, requires_grad=True), torch.zeros(1, 1, 16, 16)
    terms = mlb.mlb_loss(logits, logits, zero, zero)
    terms["total"].backward()
    assert terms["detail"] == 0 and torch.isfinite(logits.grad).all() and logits.grad.any(), (
        f"expected gradients that are numbers, got {logits.grad.flatten()[:4]}")
    a, b = torch.linspace(-2, 2, 512).view(2, 1, 16, 16), torch.linspace(0, 1, 512).view(2, 1, 16, 16)
    plain = mlb.mlb_loss(a, a, b, mlb.boundary_label(b))
    with torch.autocast("cpu", torch.bfloat16):
        cast = mlb.mlb_loss(a, a, b, mlb.boundary_label(b))
    assert all(cast[k].dtype == torch.float32 and cast[k] == plain[k] for k in plain)
    half = mlb.mlb_loss(a.half(), a.half(), b.half(), mlb.boundary_label(b))["total"]
    assert half.dtype == torch.float32 and abs(half - plain["total"]) < 1e-2

# ---------------------------------------------------------------- 4 Training

class Line(torch.nn.Module):
    """A network of two weights: a multiple of the red channel is both of its maps."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([0.5, -0.5]))

    def forward(self, x, masks):
        return 20 * self.w[0] * x[:, :1], 20 * self.w[1] * x[:, :1]

def step(lr, net=None, batch=None, optimizer=None, scaled=False, times=1, label=None, teacher=None,
         half=None):
    """The weights, gradients, scaler and batch after steps on one batch, by plain descent or so."""
    torch.manual_seed(0)
    net, scaler = net or Line(), torch.amp.GradScaler("cpu", enabled=scaled)
    batch = batch or {"natural": torch.tensor([True, False])} | {
        key: torch.randint(256, (2, channels, 32, 32), dtype=torch.uint8)
        for key, channels in (("image", 3), ("target", 1), ("mask", 1))}
    optimizer = (optimizer or torch.optim.SGD)(net.parameters(), lr)
    given = dict(net=net, batch=batch, label=label, teacher=teacher, optimizer=optimizer, lr=lr,
                 scaler=scaler, half=half)
    for _ in range(times):
        mlb.train_step(**{key: given[key] for key in inspect.signature(mlb.train_step).parameters})
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

@cases("label", ["S", "M′", "B", "true matte"])
def test_what_the_loss_is_given(label, losses):
    def teacher(image, mask):
        return 4 * mask - 2 + 0 * image[:, :1], image[:, :1] - 1

    *_, batch = step(0.0, label=label, teacher=teacher if label in ("M′", "B") else None)
    for name, x in zip(("target", "boundary"), losses[0][2:]):
        assert 0 <= x.min() and x.max() <= 1, f"{name}: expected 0 to 1, got up to {x.max():.0f}"
    image, target, S = (batch[key] / 255 for key in ("image", "target", "mask"))
    M, a = (4 * S - 2).sigmoid(), (image[:, :1] - 1).sigmoid()
    same(losses[0][2][0], {"M′": M, "B": a * M + (1 - a) * S}.get(label, target)[0])
    same(losses[0][2][1], target[1])  # composites keep their matte
    assert torch.equal(losses[0][3], mlb.boundary_label(losses[0][2]))
    same(losses[0][0].detach(), 10 * image[:, :1], 1e-5)
    for half in (None, torch.bfloat16, torch.float16):
        step(0.1, net := mlb.MattingNet(8), half=half)
        assert losses[-1][1].dtype == (half or torch.float32), "expected autocast as asked"
        assert all(p.dtype == torch.float32 for p in net.parameters()), "weights stay in fp32"

def fit(toy, name="teacher", steps=6, *more, teacher=None, seed=0):
    """Trains a row in toy/out -> its network."""
    o = mlb.parse(tiny("train", toy, toy, "--steps", steps, "--teacher-steps", steps, *more))
    mlb.check(o)
    (toy / "out").mkdir(exist_ok=True)
    return mlb.fit(name, seed, o, mlb.open_data(o), toy / f"out/{name}.{seed}.pt", teacher)

def test_what_learns_and_what_does_not(toy):
    teacher = fit(toy, "teacher", 1)
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    for seed in (1, 0):
        net = fit(toy, "MLB", 1, "--lr", 0, teacher=teacher, seed=seed)
        torch.manual_seed(seed)
        start = dict(mlb.MattingNet(8).named_parameters())
        assert all(map(torch.equal, net.parameters(), start.values())), "weights depend on the seed"
    student = fit(toy, "naive mix", 1, "--lr", 0.4)
    still = [key for key, p in student.named_parameters() if torch.equal(p, start[key])]
    assert not still, f"expected all to learn, unchanged after a step: {still}"
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert student.down4[1].num_batches_tracked == 1, "it trains in training mode"
    # Adam moves a weight by the learning rate; those of batch norm begin at 1, and a little decays
    moved = torch.cat([stage[1].weight - 1 for stage in student.children() if stage != student.head])
    same(moved.abs().median() / 0.02, 1, 0.02)

def test_checkpoints_and_progress_come_every_ten_seconds_and_at_the_end(toy, capsys, monkeypatch):
    done, now, replace, sample = [], [100.0], os.replace, mixer(toy, 1)[0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])  # a clock that the steps move
    monkeypatch.setattr(mlb.Mixer, "__getitem__", lambda self, i: sample)
    monkeypatch.setattr(os, "replace", lambda a, b: replace(a, b) or done.append(len(state(b)["log"])))

    def train_step(*_, **__):
        now[0] += 4 if now[0] < 340 else 2  # 60 steps of 4 s, then faster ones
        return {name: 0.5 for name in (*mlb.WEIGHTS, "total")}

    monkeypatch.setattr(mlb, "train_step", train_step)
    fit(toy, "teacher", 121)
    lines = capsys.readouterr().out.splitlines()
    assert done == [*range(3, 61, 3), *range(66, 121, 6), 121] and len(lines) == len(done)
    assert all(f"step{count:6}/121" in line for count, line in zip(done, lines))
    assert "loss 0.5000  7:52 left" in lines[0] and "0:02 left" in lines[-2] and "0:00" in lines[-1]
    assert sum(log(toy / "out/teacher.0.csv")["seconds"]) == 60 * 4 + 61 * 2
    assert not list((toy / "out").glob("*.part"))

@cases("rank", [0, 1])
def test_ranks_share_a_batch_and_the_first_one_writes(rank, toy, monkeypatch):
    taken, take = [], mlb.Mixer.__getitem__
    monkeypatch.setattr(mlb.Mixer, "__getitem__", lambda self, i: taken.append(i) or take(self, i))
    monkeypatch.setattr(mlb, "RANK", rank)
    monkeypatch.setattr(mlb, "RANKS", 2)
    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", lambda net: net)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda x: x.mul_(2))  # one like this one
    net = fit(toy, "teacher", 3)
    assert taken[-6:] == list(range(rank, 12, 2)) and net.down4[1].num_batches_tracked == 3
    assert (toy / "out/teacher.0.pt").exists() == (rank == 0)
    if rank == 0:
        assert 0.5 < log(toy / "out/teacher.0.csv")["matte"][0] < 0.9, "averaged, not summed"

def test_fp16_takes_the_scaler_path_on_the_cpu_and_resumes_it(toy, monkeypatch):
    for stop in (5, 99):
        train_step, count = mlb.train_step, itertools.count(1)
        with monkeypatch.context() as patch, contextlib.suppress(ZeroDivisionError):
            patch.setattr(mlb, "SAVE_SECONDS", -1)
            patch.setattr(mlb, "train_step", lambda *given: 1 / (next(count) != stop) and
                          train_step(*given))
            fit(toy, "MLB", 8, "--amp", "fp16")
        kept = state(toy / "out/MLB.0.pt")
        assert kept["scaler"]["_growth_tracker"] == len(kept["log"]) == min(stop - 1, 8)

def test_a_loss_that_is_not_finite_stops_the_run(toy, capsys, monkeypatch):
    loss, calls = mlb.mlb_loss, []
    monkeypatch.setattr(mlb, "mlb_loss", lambda *given: calls.append(1) or {
        key: term * (math.inf if key in ("detail", "total") and len(calls) == 8 else 1)
        for key, term in loss(*given).items()})
    said = fails(capsys, *tiny("train", toy, toy / "out"))
    assert "MLB" in said and "step 3" in said and "'detail': inf" in said and "'matte': 0." in said
    assert not (toy / "out/MLB.0.pt").exists() and (toy / "out/teacher.0.pt").exists()

METRICS = {"SAD", "MSE", "MAD", "Grad", "Boundary MAD"}

def test_train_writes_what_it_promises(trained):
    _, out, said = trained
    assert sorted(p.name for p in out.iterdir()) == sorted(
        "teacher.0.pt teacher.0.csv MLB.0.pt MLB.0.csv metrics.json table.md batch.png labels.png "
        "mattes.png".split())
    scores = json.loads((out / "metrics.json").read_text())
    assert set(scores) == {"teacher", "MLB", "labels S", "labels M′", "labels B"}
    assert all(len(seeds) == 1 and set(seeds[0]) == METRICS for seeds in scores.values())
    assert (out / "table.md").read_text().strip() in said and "MSE e-3" in said and "cpu" in said
    assert "Warning" not in said and "mlb: " not in said, "nothing to warn of"
    for row, steps in (("teacher", 5), ("MLB", 6)):
        columns, kept = log(out / f"{row}.0.csv"), state(out / f"{row}.0.pt")
        assert len(columns["total"]) == len(kept["log"]) == steps, "an entry a step"
        assert set(columns) == {*mlb.WEIGHTS, "total", "lr", "seconds"}
        same([entry["total"] for entry in kept["log"]], columns["total"])
        same(columns["lr"], [4e-3 * min(k / 20, (1 + math.cos(math.pi * (k - 1) / steps)) / 2)
                             for k in range(1, steps + 1)])
        chance = [columns["matte"][0], columns["boundary"][0]]  # of an untrained net
        same(chance, [math.log(2)] * 2, 0.3)
    assert kept["options"]["size"] == 32 and kept["options"]["lr"] == 4e-3 and not kept["guided"]

def test_rows_differ_in_mix_and_label_alone(compared):
    _, out, taken = compared
    assert [row for row, seed in taken if seed == 0] == list(mlb.ROWS)
    pictures = {key: [s["image"].tobytes() for s in samples] for key, samples in taken.items()}
    for seed in (0, 1):
        kinds = {row: sum(s["natural"] for s in taken[row, seed]) for row in mlb.ROWS}
        assert kinds["teacher"] == 0 < kinds["MLB"] < 8 == kinds["segmentation only"]
        for row in ("naive mix", "pseudo-labels", "MLB guided", "upper bound"):
            assert pictures[row, seed] == pictures["MLB", seed], "students share their samples"
    teachers = {x for (row, _), found in pictures.items() if "teacher" in row for x in found}
    students = {x for (row, _), found in pictures.items() if "teacher" not in row for x in found}
    assert not teachers & students, "a student must not see its teacher's composites"
    assert not set(pictures["MLB", 0]) & set(pictures["MLB", 1])
    assert not any(np.array_equal(s["target"], s["mask"]) for s in taken["guided teacher", 0])
    both = zip(taken["upper bound", 0], taken["MLB", 0])
    assert all(np.array_equal(one["target"], two["target"]) != one["natural"] for one, two in both)
    learned = {str(weights(out, f"{row}.0").sum()) for row in mlb.ROWS if row != "guided teacher"}
    assert len(learned) == len(mlb.ROWS) - 1, "no two rows learn the same"

def test_results_are_those_of_the_rows_files(compared, capsys):
    """Of networks on the test pictures, and of the labels of D_s, over all pictures and seeds."""
    toy, out, _ = compared
    scores, kinds = json.loads((out / "metrics.json").read_text()), ("S", "M′", "B", "B guided")
    rows = [row for row in mlb.ROWS if row != "guided teacher"]
    assert list(scores) == rows + [f"labels {kind}" for kind in kinds]
    for seed in (0, 1):
        nets = {row: mlb.load(out / f"{row}.{seed}.pt")[1] for row in mlb.ROWS}
        found = {name: [] for name in scores}
        for photo, truth in mlb.pairs(toy / "test/image", toy / "test/alpha"):
            for row in rows:
                p = mlb.predict(nets[row], mlb.read(photo), 32)[0]
                found[row].append(mlb.metrics(p, np.asarray(Image.open(truth)) / 255))
        for photo, mask in mlb.pairs(toy / "segmentation/image", toy / "segmentation/mask"):
            photo, mask, S = mlb.read(photo), Image.open(mask), np.asarray(Image.open(mask)) / 255
            truth = np.asarray(Image.open(toy / f"segmentation/alpha/{photo.filename[-5]}.png"
                                          if hasattr(photo, "filename") else
                                          toy / f"segmentation/alpha/{mask.filename[-5]}.png")) / 255
            (M, a), (N, b) = (mlb.predict(nets[row], photo, 32, mask if net.guided else None).numpy()
                              for row, net in nets.items() if "teacher" in row)
            for kind, p in zip(kinds, (S, M, a * M + (1 - a) * S, b * N + (1 - b) * S)):
                found[f"labels {kind}"].append(mlb.metrics(p, truth))
        for row, several in found.items():
            expected = {name: np.mean([score[name] for score in several]) for name in METRICS}
            assert scores[row][seed] == pytest.approx(expected, rel=1e-4), row
    mse = [1000 * seed["MSE"] for seed in scores["MLB"]]
    assert f"{np.mean(mse):.2f} ± {np.std(mse, ddof=1):.2f}" in (out / "table.md").read_text()
    assert main("eval", "--weights", out / "MLB.1.pt", "--data", toy, "--device", "cpu") == 0
    assert f"| {scores['MLB'][1]['SAD']:.2f} |" in re.sub(" +", " ", capsys.readouterr().out)
    for command in (["eval", "--data", toy], ["bench", "--size", 32], ["matte", "p.jpg"]):
        said = fails(capsys, *command, "--device", "cpu", "--weights", out / "guided teacher.0.pt")
        assert "guided teacher" in said and "masks" in said

def test_pictures_show_what_they_say(compared):
    toy, out, _ = compared
    batch, labels, page = (np.asarray(Image.open(out / f"{x}.png")) for x in ("batch", "labels", "mattes"))
    assert labels.shape[:2] == (34 + 3 * 572, 9 * 228 + 4) and page.shape[:2] == (34 + 2 * 572, 2056)
    assert batch.shape[1] == 3 * 228 + 4 and batch.shape[0] % 36 == 34
    assert (page[:34] < 128).any() and (page[:, :4] == 255).all() and (page[-4:] == 255).all()
    truths = [Image.open(toy / f"test/alpha/{k}.png") for k in (0, 1)]
    for shown, side in ((page[34:146, 1828:1940, 0], 112), (page[150:374, 1828:2052, 0], 224)):
        off = [abs(np.asarray(t.resize((side, side))) - shown.astype(int)).mean() for t in truths]
        assert off[1] < 8 < off[0], "the truth, last; the one with most hair first"
    assert (page[378:602, 1828:] == 255).all() and (page[378:602, 228:452] < 255).any(), "errors"

def test_data_are_taken_as_asked_and_as_far_as_they_are_there(toy):
    def counts(*more):
        data = mlb.open_data(mlb.parse(tiny("train", toy, toy, *more)))
        return [len(data[key]) for key in ("mattes", "masks", "backgrounds", "tests")]

    assert counts("--mattes", 2, "--masks", 3) == [2, 3, 2, 2] and counts() == [3, 4, 2, 2]
    shutil.rmtree(toy / "matte/background")
    shutil.rmtree(toy / "segmentation/alpha")
    assert counts() == [3, 4, 0, 2]
    assert main(*tiny("compare", toy, toy / "out", "--seeds", 1, "--steps", 1)) == 0
    scores = json.loads((toy / "out/metrics.json").read_text())
    assert "MLB" in scores and not {"upper bound", "labels S"} & set(scores), "nobody knows"

@cases("change, named", [
    (lambda d: shutil.rmtree(d / "matte/alpha"), "matte/alpha"),
    (lambda d: disc(d / "test/alpha/1.png", (37, 40)), "test/alpha/1.png"),
    (lambda d: picture(d / "test/image/1.jpg", (1, 1)), "test/image/1.jpg"),
    (lambda d: [p.rename(p.with_name("x" + p.name)) for p in (d / "test/alpha").iterdir()], "test")])
def test_bad_data_are_named_before_the_first_step(change, named, toy, tmp_path, capsys):
    change(toy)
    assert named in fails(capsys, *tiny("train", toy, tmp_path / "out"))
    assert not (tmp_path / "out").exists()

def test_a_run_is_never_overwritten_and_never_goes_on_as_another(trained, capsys):
    toy, out, _ = trained
    before = files_of(out)
    for command in ("train", "compare"):
        assert "holds a run" in fails(capsys, *tiny(command, toy, out))
    for flag, *value in (("--lr", 0.5), ("--mix", 0.5), ("--steps", 9), ("--teacher-steps", 9),
                         ("--batch", 8), ("--width", 9), ("--size", 64), ("--amp", "bf16"),
                         ("--masks", 2), ("--mattes", 2), ("--data", SAMPLE), ("--compile",)):
        said = fails(capsys, *tiny("train", toy, out, "--resume", flag, *value))
        assert f"{flag} " in said and ".pt" in said and str((value or ["True"])[0]) in said, said
    assert files_of(out) == before, "nothing changed"
    assert main(*tiny("train", toy, out, "--resume")) == 0
    after = files_of(out)
    assert all(after[name] == before[name] for name in before if name.endswith((".pt", ".csv")))
    assert after["metrics.json"][0] == before["metrics.json"][0]

def test_interrupted_by_ctrl_c_it_goes_on_to_the_same_bits(trained, tmp_path, capsys, monkeypatch):
    toy, plain, _ = trained
    out, train_step, count = tmp_path / "out", mlb.train_step, itertools.count(1)
    monkeypatch.setattr(mlb, "train_step", lambda *given: next(count) in (4, 11) and
                        signal.default_int_handler(2, None) or train_step(*given))
    monkeypatch.setattr(mlb, "SAVE_SECONDS", -1)
    for expected in (130, 130, 0):
        assert main(*tiny("train", toy, out, "--resume")) == expected
        last = capsys.readouterr().err.strip().splitlines()[-1:]
        assert expected == 0 or "--resume" in last[0], last
    assert next(count) == 14, "two steps were done again"
    for row in ("teacher.0", "MLB.0"):
        one, two = (state(folder / f"{row}.pt") for folder in (out, plain))
        assert torch.equal(weights(out, row), weights(plain, row)), "expected the same bits"
        assert str(one["optimizer"]) == str(two["optimizer"])
        assert [e["total"] for e in one["log"]] == [e["total"] for e in two["log"]]
    assert (out / "metrics.json").read_bytes() == (plain / "metrics.json").read_bytes()

class Evil:
    """A pickle that would write a file if it were executed."""

    def __reduce__(self):
        return (open, ("executed", "w"))

def test_bad_checkpoints_are_named_and_never_executed(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    good, whole = state(trained[1] / "MLB.0.pt"), (trained[1] / "MLB.0.pt").read_bytes()
    options = [{"width": 1000}, {"width": 0.5}, *({"size": x} for x in ("x", None, 0, 10 ** 9, math.nan))]
    for k, content in enumerate([
            [1], 3, {}, {"net": {}}, {1: 2}, good | {"log": Evil()}, good | {"net": {1: 2}},
            good | {"net": good["net"] | {"head.bias": torch.full((23,), math.nan)}},
            good | {"net": good["net"] | {"x": torch.ones(1)}}, good | {"log": []},
            *(good | {"options": good["options"] | change} for change in options)]):
        torch.save(content, f"{k}.pt")
    pathlib.Path("cut.pt").write_bytes(whole[:len(whole) // 2])
    pathlib.Path("evil.pt").write_bytes(pickle.dumps(Evil(), 2))
    os.mkfifo("pipe.pt")
    begun, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in sorted(p.name for p in tmp_path.glob("*.pt")):
        said = fails(capsys, "matte", "p.jpg", "--weights", path, "--device", "cpu")
        assert path in said and ("delete it or" in said or path == "pipe.pt"), said
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < memory + 3e5, "in KB: not gigabytes"
    assert time.monotonic() - begun < 10 and not pathlib.Path("executed").exists()
    assert "no such file" in fails(capsys, "eval", "--device", "cpu", "--weights", "gone.pt")
    pathlib.Path("MLB.0.pt").write_bytes(whole[:999])
    assert "take another --out" in fails(capsys, *tiny("train", trained[0], tmp_path, "--resume"))

def test_train_with_guide_trains_the_guided_rows_and_compiles_where_asked(toy, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda net, **_: compiled.append(net) or net)
    assert main(*tiny("train", toy, toy / "out", "--guide", "--seed", 3, "--amp", "bf16")) == 0
    scores = json.loads((toy / "out/metrics.json").read_text())
    assert set(scores) == {"MLB guided", "labels S", "labels B guided"} and not compiled
    assert state(toy / "out/guided teacher.3.pt")["guided"]
    assert main(*tiny("train", toy, toy / "compiled", "--compile")) == 0 and len(compiled) == 2

# ---------------------------------------------------------------- 5 Evaluation

def test_metrics_by_hand_exercise06():
    truth = np.zeros((40, 50))
    m = mlb.metrics(truth + 0.5 * (np.arange(40) < 20)[:, None], truth)
    same([m["SAD"], m["MSE"], m["MAD"]], [0.5, 0.125, 0.25])
    assert math.isnan(m["Boundary MAD"]) and set(m) == METRICS, "no boundary, no figure"
    for one, two in ((truth[None], truth[None]), (truth, truth.T)):
        with pytest.raises(ValueError):
            mlb.metrics(one, two)
    for level, counts in ((0.5, True), (0.05, False), (0.95, False), (0.06, True), (0.94, True)):
        truth = np.tile([0.0] * 10 + [level] + [1.0] * 9, (9, 1))
        off = np.array([0.0] * 7 + [0.25, 0.5] + [0.0] * 11)  # the second is two pixels away: counts
        got = mlb.metrics(truth + off, truth)["Boundary MAD"]
        assert got == pytest.approx(0.1) if counts else math.isnan(got), (level, got)

def grad_reference(x):
    """|∇x| by direct 2-D convolution with a Gaussian's analytic derivative, mirrored border."""
    d = np.arange(-6, 7)
    g = np.exp(-d ** 2 / (2 * 1.4 ** 2))
    g, dg = g / g.sum(), -d / 1.4 ** 2 * g / g.sum()
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, 6, mode="symmetric"), (13, 13))
    return np.hypot(*(np.einsum("ijkl,k,l->ij", windows, *pair) for pair in ((dg, g), (g, dg))))

def random_pairs(count):
    """Predictions and truths of all sizes and densities."""
    for rng in map(rng_of, range(count)):
        t = (rng.random(rng.integers(3, 22, 2)) ** rng.uniform(0.2, 3)).round(int(rng.integers(1, 4)))
        yield (t + rng.normal(0, rng.choice([0.2, 2]), t.shape)).clip(0, 1), t

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
    """A network of given maps that remembers the shapes it saw."""

    def __init__(self, maps):
        super().__init__()
        self.maps, self.seen, self.unused = maps, [], torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, masks):
        self.seen.append(tuple(x.shape))
        return [torch.logit(map, 1e-6) for map in self.maps(x, masks)]

def test_predict_keeps_size_and_aspect_and_repeats_edges():
    def colours(x, masks):
        return x[:, :1], x[:, 1:2]

    def means(x, masks):
        mean = torch.nn.functional.avg_pool2d(x[:, :1], 3, 1, 1, count_include_pad=False)
        return mean, torch.from_numpy(np.indices(x.shape[2:]).sum(0) % 2).float().expand(mean.shape)

    y, x = np.mgrid[:100, :160]
    image, probe = Image.fromarray(np.stack([x, y, 0 * x], 2).astype(np.uint8)), Probe(colours)
    maps = mlb.predict(probe, image, 85)  # training pictures showed 0.85 of a photo's short side
    same(255 * maps, np.stack([x, y]), 0.01)
    maps = mlb.predict(probe, image.resize((320, 200), Image.NEAREST), 85)
    assert probe.seen == [(1, 3, 128, 160)] * 2, "padded; people are as large as in training"
    same(255 * maps[0, 9:-9, 9:-9], (np.mgrid[:200, :320][1] / 2)[9:-9, 9:-9], 1)
    mask, guided = Image.fromarray((y + x // 2).astype(np.uint8)), Probe(lambda x, masks: (masks, masks))
    same(255 * mlb.predict(guided, image, 85, mask)[1], y + x // 2, 0.01)
    white = Image.new("RGB", (40, 40), "white")
    same(mlb.predict(Probe(means), white, 34)[0], np.ones((40, 40)), 1e-3)
    same(mlb.predict(Probe(means), white, 136)[1, 5:-5, 5:-5], np.full((30, 30), 0.5), 0.05)

# ---------------------------------------------------------------- 6 Benchmark

def test_fold_keeps_the_function_without_batch_norm_exercise10():
    torch.manual_seed(0)
    net, x = mlb.MattingNet(8), torch.rand(1, 3, 64, 64)
    for layer in net.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.weight, 0.5, 2)
            torch.nn.init.uniform_(layer.bias)
    for _ in range(5):
        net(torch.rand(4, 3, 32, 32))  # running statistics other than 0 and 1
    before = {k: v.clone() for k, v in net.eval().state_dict().items()}
    folded = mlb.fold(net)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    same(folded(x)[0].detach(), net(x)[0].detach(), 1e-4)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()), "a copy is folded"

def test_seconds_of_a_call(monkeypatch):
    assert 0.02 < mlb.seconds_of(lambda: time.sleep(0.02), "cpu") < 0.2
    launched, worked = [5.0], [0.0]  # 5 s from before the call, which must not count
    # a device that works only while one waits for it, and a clock of its work alone
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: worked.append(
        worked[-1] + sum(launched)) or launched.clear())
    monkeypatch.setattr(time, "perf_counter", lambda: worked[-1])
    got = mlb.seconds_of(lambda: launched.append(2.0), "cuda:0")
    assert got == 2, f"expected the 2 s of the work, got {got} s"

def test_bench_prints_a_row_for_each_step(trained, capsys, monkeypatch):
    timed, real = [], mlb.seconds_of
    monkeypatch.setattr(mlb, "seconds_of", lambda run, device: timed.append(real(run, device)) or
                        (9.0 if len(timed) <= 16 else 0.002 if len(timed) % 4 else 0.001))
    monkeypatch.setattr(torch, "compile", lambda net, **_: net)
    for more, count in (([], 5), (["--weights", trained[1] / "MLB.0.pt", "--compile"], 6)):
        timed.clear()
        assert main("bench", "--size", 64, "--width", 8, "--device", "cpu", *more) == 0
        said = capsys.readouterr().out
        rows = re.findall(r"^[| ]*(fp32|\+ .*?|end to end.*?)[| ]{2,}([\d.]+)[| ms]+([\d.]+)[| FPS]+"
                          r"(?:difference +)?([\d.]+)", said, re.M)
        assert [row[0] for row in rows[:3]] == ["fp32", "+ channels-last", "+ batch norm folded"]
        assert "end to end" in rows[-1][0] and ("+ torch.compile" in said) == (count == 6)
        assert "cpu" in said and "64x64" in said and len(timed) == 40 * count == 40 * len(rows)
        differences = [float(row[3]) for row in rows]
        assert differences[0] == 0 and max(differences[1:3]) <= 1e-4 and max(differences) < 0.05
        if count == 5:
            assert [row[1:3] for row in rows[:4]] == [("2.00", "500.0")] * 3 + [("1.00", "1000.0")]
            assert differences[3] > 0 < differences[4], "16 bits, and 256 levels"

# ---------------------------------------------------------------- 7 Matting

def test_estimate_foreground_exercise07():
    """Composites of known foreground: at most half the colour error of the photo as it is."""
    ratios, colours = [], torch.tensor([[0.1, 0.8, 0.2], [0.9, 0.1, 0.7], [0, 0.2, 0.9], [1, 1, 0.2]])
    for k, path in enumerate(sorted((SAMPLE / "matte/foreground").iterdir())[1:5]):
        pair = mlb.read_pair(path, SAMPLE / "matte/alpha" / f"{path.stem}.png")
        truth, alpha = torch.from_numpy(pair).permute(2, 0, 1).div(255).split((3, 1))
        image = alpha * truth + (1 - alpha) * colours[k].view(3, 1, 1)
        found = mlb.estimate_foreground(image, alpha)
        assert found.shape == image.shape and 0 <= found.min() and found.max() <= 1
        edge = ((alpha > 0.05) & (alpha < 0.95)).expand_as(image)
        ratios.append(((found - truth)[edge].abs().mean() / (image - truth)[edge].abs().mean()).item())
    assert np.mean(ratios) <= 0.5, f"expected at most 0.5 of the photo's colour error, got {ratios}"
    same(mlb.estimate_foreground(image, torch.ones_like(alpha)), image, 1e-3)  # opaque: as it is
    alpha = torch.linspace(-1, 2, 400).clip(0, 1).expand(1, 400, 400)
    F, B = torch.tensor([[0.9, 0.4, 0.2], [0.1, 0.5, 0.8]]).view(2, 3, 1, 1)
    off = (mlb.estimate_foreground(alpha * F + (1 - alpha) * B, alpha) - F).abs().mean((0, 1))
    solid, thin = off[alpha[0, 0] > 0.5].max(), off[alpha[0, 0] > 0.1].mean()
    assert solid < 0.12 and thin < 0.06, f"expected flat F, off by {solid:.3f}, where thin {thin:.3f}"
    x = torch.zeros(1, 61, 61)
    x[0, 30, 30] = 1
    y = mlb.blur(x, 6)[0]
    assert y[30, 30] > 0 and y[30, 34] > 0 and y[34, 30] > 0 and y[30, 42] == 0, "a box"
    same(mlb.blur(torch.full((2, 40, 30), 0.3), 90), np.full((2, 40, 30), 0.3), 1e-5)

def test_matte_cuts_out_upright_at_the_photos_own_size(trained, tmp_path, capsys, monkeypatch):
    exif, weights, out = Image.Exif(), trained[1] / "MLB.0.pt", tmp_path / "new/out"
    exif[0x0112] = 6
    photo = picture(tmp_path / "a b/-1.jpg", (130, 90), exif=exif, icc_profile=b"a profile")
    Image.open(photo).convert("CMYK").save(tmp_path / "a b/cmyk.jpg", icc_profile=b"a profile")
    picture(tmp_path / "other/deep/3.png", (70, 60))
    assert main("matte", "--weights", weights, photo, tmp_path / "a b/cmyk.jpg", tmp_path / "other",
                "--out", out, "--device", "cpu") == 0
    said = capsys.readouterr().out
    assert {p.name for p in out.iterdir()} == {"-1.png", "cmyk.png", "3.png"}
    for name, size, profile in (("-1", (90, 130), b"a profile"), ("cmyk", (130, 90), None),
                                ("3", (70, 60), None)):
        found = Image.open(out / f"{name}.png")
        assert found.size == size and found.mode == "RGBA" and str(out / f"{name}.png") in said
        assert found.info.get("icc_profile") == profile, "kept where it is of these colours"
    photo, cut = mlb.read(photo), torch.from_numpy(np.asarray(Image.open(out / "-1.png")) / 255).float()
    same(cut[..., 3], mlb.predict(mlb.load(weights)[1], photo, 32)[0], 0.003)
    F = mlb.estimate_foreground(torch.from_numpy(np.array(photo)).permute(2, 0, 1) / 255, cut[None, ..., 3])
    same(cut[..., :3], F.permute(1, 2, 0), 0.01)
    y, x = np.mgrid[:1200, :1030]  # so large that colours come from a coarse grid
    array = np.stack([128 + 100 * np.sin(x / 90), y / 5, x % 2 * 90], 2).astype(np.uint8)
    photo, matte = saved(tmp_path / "p.png", array), ((x - 300) / 300).clip(0, 1).astype(np.float32)
    monkeypatch.setattr(mlb, "predict", lambda *_: torch.from_numpy(np.stack([matte, matte])))
    assert main("matte", photo, "--weights", weights, "--out", out, "--device", "cpu") == 0
    cut = np.asarray(Image.open(out / "p.png")).astype(int)
    same(cut[..., 3], np.round(255 * matte), 0.6)
    assert np.array_equal(cut[:, 605:, :3], array[:, 605:]), "what is opaque is kept to the last bit"
    F = mlb.estimate_foreground(torch.from_numpy(array).permute(2, 0, 1) / 255, torch.tensor(matte[None]))
    off = abs(cut[..., :2] / 255 - F[:2].permute(1, 2, 0).numpy())[:, 400:600].mean()
    assert off < 0.03, f"expected about the colours of the fine grid, off by {off:.3f}"

def test_bad_photos_are_named_and_the_rest_goes_on(trained, tmp_path, capsys):
    bad, good = hostile(tmp_path / "h"), picture(tmp_path / "g/good.png")
    given = ["matte", "--weights", trained[1] / "MLB.0.pt", "--device", "cpu", "--out"]
    assert main(*given, tmp_path / "o", "--", *bad.values(), good) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == len(bad) + 1 and f"{len(bad)} of {len(bad) + 1} failed" in said[-1]
    assert all(name.replace("\n", " ") in " ".join(said) for name in bad)
    assert [p.name for p in (tmp_path / "o").iterdir()] == ["good.png"]
    before = files_of(tmp_path / "g")
    for photo in ("g", "g/good.png"):
        assert main(*given, tmp_path / "h/../g", tmp_path / photo) == 2
        assert "another" in capsys.readouterr().err and files_of(tmp_path / "g") == before

# ---------------------------------------------------------------- 8 Command line

@cases("sign, line", [(line.split()[-2] if "--" in line else line, line) for line in (
    "train --size 50", "train --size 0", "bench --size 100", "train --mix 1.5", "train --mix -0.1",
    "train --lr -1", "train --lr nan", "train --batch 0", "train --seed -1", "train --device gpu",
    "train --size 32 --batch 1", "train --device cuda:x", "fly", "bench --width 0", "train --amp half",
    "train --seed 2147483648", "compare --seed 3", "compare --seeds 0", "train --steps many",
    "bench --fast 1", "train --steps 0", "train --workers -1")] + [
    ("--guide", "compare --guide"), ("COMMAND", ""), ("PHOTO", "matte")])
def test_bad_options_are_named_in_one_line(sign, line, capsys, monkeypatch):
    monkeypatch.setattr(mlb, "open_data", None)  # it must not come to that
    assert sign in fails(capsys, *line.split())

def test_good_options_are_taken(capsys, monkeypatch):
    for line in ("train --seed 1999999999", "train --mix 1", "train --mix 0", "bench --size 32",
                 "train --batch 1 --size 64", "train --batch 2 --size 32", "train --lr 0"):
        mlb.check(mlb.parse(line.split() + ["--device", "cpu"]))
    mlb.check(o := mlb.parse(["train"]))
    assert torch.cuda.is_available() or (o.device, o.amp) == ("cpu", "off"), "auto is settled"
    monkeypatch.setattr(mlb, "RANKS", 2)
    for batch, size in ((3, 64), (2, 32)):  # no multiple; one picture of 32 pixels for batch norm
        assert "--batch" in fails(capsys, "train", "--batch", batch, "--size", size, "--device", "cpu")
    mlb.check(mlb.parse("train --batch 2 --size 64 --device cpu".split()))

@cases("command", ["train", "compare", "eval", "bench", "matte"])
def test_help_states_every_default(command, capsys):
    assert main(command, "--help") == 0
    text, needed = " ".join(capsys.readouterr().out.split()), ["p"] * (command == "matte")
    for name, default in vars(mlb.parse([command, *needed, "--weights", "w"][
            :2 + len(needed) + 1 if command in ("eval", "matte", "bench") else 1])).items():
        if name not in ("command", "photos"):
            assert f"--{name.replace('_', '-')}" in text, name
            assert default in (False, "", "w") or f"(default: {default})" in text, name

@cases("problem, sign", [
    (torch.OutOfMemoryError("CUDA out of memory. Tried"), "lower --batch"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "lower --batch"),
    (type("A", (RuntimeError,), {"__module__": "torch._dynamo.exc"})("no\ng++"), "README"),
    (OSError(28, "No space left on device"), "No space left"), (None, "")])
def test_what_a_user_can_put_right_is_one_line(problem, sign, trained, tmp_path, capsys, monkeypatch):
    run, limit = tiny("train", trained[0], tmp_path / "out"), resource.getrlimit(resource.RLIMIT_FSIZE)
    if problem:
        monkeypatch.setattr(mlb, "train_step", lambda *_: (_ for _ in ()).throw(problem))
        assert sign in fails(capsys, *run)
        monkeypatch.setattr(mlb, "train_step", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):  # our own mistakes are not hidden
            main(*run)
    else:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60000, limit[1]))  # as a full disk does it
        try:
            fails(capsys, *run)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not list((tmp_path / "out").glob("*.pt")), "nothing half-written counts"

# ---------------------------------------------------------------- README

FEW = {"train": "--steps 2 --teacher-steps 2 --size 32 --width 8 --batch 4 --workers 0 --out new",
       "compare": "--steps 1 --teacher-steps 1 --size 32 --width 8 --batch 4 --seeds 1 --out new",
       "eval": "", "bench": "--size 32 --width 8", "matte": "--out new"}
COMMANDS = sorted(set(re.findall(r"mlb\.py ((?:train|compare|eval|bench|matte)\b[^`\n&|>;#]*)",
                                 README.replace("\\\n", " "))))

@cases("command", COMMANDS)
def test_every_command_of_the_readme_runs(command, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "compile", lambda net, **_: net)
    name, *more = shlex.split(command)
    if name == "matte":  # all its options take a value; the rest are photos
        more = [word if "--" in word or "--" in (["", *more])[k] else picture(tmp_path / "p.jpg")
                for k, word in enumerate(more)]
    more += FEW[name].split() + ["--device", "cpu"]
    more += ["--data", trained[0]] if name in ("train", "compare", "eval") else []
    more += ["--weights", trained[1] / "MLB.0.pt"] if name in ("eval", "bench", "matte") else []
    assert main(name, *more) == 0 and capsys.readouterr().out

def test_what_the_readme_names_exists():
    assert {command.split()[0] for command in COMMANDS} == set(FEW), "it tells of every command"
    rows = README.split("| in the paper |")[1].split("\n\n")[0].splitlines()[2:]
    for name in re.findall(r"`([\w.]+)`", " ".join(row.split("|")[2] for row in rows)):
        assert operator.attrgetter(name)(mlb), name
    links = re.findall(r"\]\((?!http|#)([^)]+)\)", README)
    for link in links + re.findall(r"data_sample/[\w.]+\w", README):
        assert (HERE / link).exists(), link
    assert set(re.findall(r"`(test_[a-z]\w+)`", README)) - {"test_mlb"} <= set(globals())

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
            share, behind = np.stack([target / 255] * 3, 2), self.window(self.backgrounds, rng)
            shown = np.uint8(np.round(share * shown + (1 - share) * clutter(behind, rng)))
        mask = hurried_mask(target, rng) if self.guided and not natural else target
        shown = np.moveaxis(degrade(shown, rng), 2, 0)
        return dict(image=shown, target=target[None], mask=mask[None], natural=natural)""",
    6: """
        p, t = np.array(prediction, float), np.array(truth, float)
        if p.shape != t.shape or p.ndim != 2:
            raise ValueError("two pictures of one shape")
        near, wide, e = np.zeros(t.shape, bool), np.pad((t > 0.05) * (t < 0.95), 2), abs(p - t)
        for i, j in np.ndindex(5, 5):
            near |= wide[i:i + t.shape[0], j:j + t.shape[1]]
        return {"SAD": e.sum() / 1e3, "MSE": np.mean(e * e), "MAD": e.sum() / e.size,
                "Grad": np.sum((gradient(p) - gradient(t)) ** 2) / 10,
                "Boundary MAD": np.mean(e[near]) if near.sum() else float("nan")}""",
    7: """
        F_, B_, a = image, image, alpha
        for radius in [90, 6]:
            F_, B_ = (blur(F_ * a, radius) / (blur(a, radius) + 1e-5),
                      blur(B_ * (1 - a), radius) / (blur(1 - a, radius) + 1e-5))
            F_ = torch.clamp(F_ + a * (image - a * F_ - (1 - a) * B_), 0, 1)
        return F_""",
    8: """
        h, w = matte.shape
        soft = Image.fromarray(matte).filter(ImageFilter.BoxBlur(rng.uniform(0.5, 2) * w / 128))
        level = np.kron(rng.uniform(100, 240, (8, 8)), np.ones((-(-h // 8), -(-w // 8))))[:h, :w]
        k = int(rng.integers(1, 4))
        small = (np.asarray(soft) > level)[::k, ::k]
        return np.where(small.repeat(k, 0).repeat(k, 1)[:h, :w], 255, 0).astype(np.uint8)""",
    9: """
        x, y, t, a = (z.float() for z in (matte_logits, boundary_logits, target, boundary))
        details = [(e * b).sum() / max(1, b.sum()) for e, b in zip((x.sigmoid() - t).abs(), a)]
        terms = {"matte": (F.softplus(x) - x * t).mean(), "detail": sum(details) / len(details),
                 "laplacian": laplacian_loss(x.sigmoid(), t), "boundary": (F.softplus(y) - y * a).mean()}
        return terms | {"total": sum(WEIGHTS[k] * v for k, v in terms.items())}""",
    10: """
        net = copy.deepcopy(net)
        for c, b, *_ in [s for s in net.children() if isinstance(s, nn.Sequential)]:
            scale = b.weight / torch.sqrt(b.running_var + b.eps)
            c.weight = nn.Parameter(c.weight * scale.view(-1, 1, 1, 1))
            c.bias = nn.Parameter(b.bias - b.running_mean * scale)
        for stage in [s for s in net.children() if isinstance(s, nn.Sequential)]:
            stage[1] = nn.Identity()
        return net"""}
LIGHT = "image = degrade(image, rng).transpose(2, 0, 1)"
BUGS = {  # number: (what it is, text that mlb.py holds once, the bug, a test that notices it)
    1: ("the foreground is multiplied by alpha twice", "return alpha * foreground +",
        "return alpha * (alpha * foreground) +", "test_a_person_stands_before_a_background_exercise05"),
    2: ("height and width mixed up", "height, width, _ = whole.shape",
        "width, height, _ = whole.shape", "test_a_window_is_a_square_anywhere_in_its_picture"),
    3: ("labels in 0..255", "batch[key].to(device, non_blocking=True) / 255",
        "batch[key].to(device, non_blocking=True).float()", "test_what_the_loss_is_given"),
    4: ("the optimizer does not know the head", "AdamW(net.parameters(),",
        "AdamW(list(net.parameters())[:-2],", "test_what_learns_and_what_does_not"),
    5: ("the label goes through the photo's light and noise", LIGHT,
        LIGHT + "\n        target = degrade(np.stack([target] * 3, 2), rng)[..., 0]",
        "test_labels_keep_their_values_exercise05"),
    6: ("division by an empty boundary", "boundary.sum((1, 2, 3)).clamp(min=1)",
        "boundary.sum((1, 2, 3))", "test_loss_of_a_plain_picture_and_under_autocast_exercise09"),
    7: ("BGR for RGB", LIGHT, LIGHT.replace(".tr", "[..., [2, 1, 0]].tr"),
        "test_a_person_stands_before_a_background_exercise05"),
    8: ("the clock is read while the device works", "    run()\n    wait()\n", "    run()\n",
        "test_seconds_of_a_call"),
    9: ("sigmoid taken twice", "entropy_with_logits(matte_logits, target)",
        "entropy_with_logits(matte, target)", "test_mlb_loss_by_hand_exercise09"),
    10: ("the blend turned round", "return alpha_t * M_t + (1 - alpha_t) * S",
         "return alpha_t * S + (1 - alpha_t) * M_t", "test_blend_exercise03"),
    11: ("the photo is mirrored without its label", LIGHT, "image = image[:, ::-1] if rng.random() < "
         "0.5 else image\n        " + LIGHT, "test_what_is_left_and_right_in_a_sample_exercise05")}

def source():
    """The text of mlb.py, line ends as they are."""
    return (HERE / "mlb.py").read_bytes().decode()

def with_hole(number, answer=None):
    """mlb.py with one function left to write, or with an answer: its docstring stays."""
    text = source()
    node = ast.parse(text)
    for part in HOLES[number].split("."):
        node = next(child for child in node.body if getattr(child, "name", "") == part)
    docstring, first, *_ = node.body
    count = node.end_lineno - docstring.end_lineno
    answer = answer or f'raise NotImplementedError("Exercise {number}: about {count} lines")'
    lines = text.split("\n")  # not splitlines, which also splits where Python does not
    lines[docstring.end_lineno:node.end_lineno] = [
        " " * first.col_offset + line for line in inspect.cleandoc(answer).split("\n")]
    return functools.reduce(lambda text, told: text.replace(told, "..."), TOLD.get(number, ()),
                            "\n".join(lines))

def with_bug(number):
    """mlb.py with a bug planted."""
    (_, old, new, _), text = BUGS[number], source()
    assert text.count(old) == 1, f"bug {number}: mlb.py holds {old!r} {text.count(old)} times"
    return text.replace(old, new)

def write(arguments):
    """Writes mlb.py with a hole or a bug -> exit status."""
    tables = {"hole": (HOLES, with_hole), "bug": (BUGS, with_bug)}
    match arguments:
        case [("hole" | "bug") as kind, number] if number in map(str, tables[kind][0]):
            sys.stdout.buffer.write(tables[kind][1](int(number)).encode())  # UTF-8 in any locale
            return 0
    print("usage: python test_mlb.py hole 1..10 | bug 1..11 > my_mlb.py", file=sys.stderr)
    return 2

def call(name, text, folder):
    """Calls a test as pytest does, on a text as mlb and an empty folder for tmp_path."""
    folder.mkdir(parents=True)
    module, test = types.ModuleType("changed_mlb"), globals()[name]
    module.__file__ = str(HERE / "mlb.py")
    exec(compile(text, module.__file__, "exec"), vars(module))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "mlb", module)
        fixtures = {"tmp_path": lambda: folder, "toy": lambda: make_toy(folder / "toy"),
                    "monkeypatch": lambda: patch, "label": lambda: "S",
                    "losses": lambda: losses.__wrapped__(patch)}
        test(**{key: fixtures[key]() for key in inspect.signature(test).parameters})

# These read the text of mlb.py: slow, so that mutate.py's changes are not noticed by spelling alone.

@slow
@cases("number", HOLES)
def test_a_hole_is_red_until_it_is_filled_rightly(number, tmp_path):
    whole, holed, plain = source(), with_hole(number), with_hole(number, PLAIN[number])
    for told in TOLD.get(number, ()):
        assert told in whole and told not in holed, f"the answer is told: {told}"
    tests = [name for name in globals() if name.endswith(f"_exercise{number:02}")]
    assert tests and plain != whole
    for name in tests:
        with pytest.raises(NotImplementedError, match=f"Exercise {number}: "):
            call(name, holed, tmp_path / "red" / name)
        call(name, whole, tmp_path / "book" / name)
        call(name, plain, tmp_path / "plain" / name)

@slow
@cases("number", BUGS)
def test_a_bug_is_noticed(number, tmp_path):
    assert max(map(len, with_bug(number).split("\n"))) <= 100, "it looks like its neighbours"
    call(BUGS[number][3], source(), tmp_path / "without")
    with pytest.raises(AssertionError):
        call(BUGS[number][3], with_bug(number), tmp_path / "with")

@slow
def test_the_file_of_an_exercise_is_printed(capsysbinary, tmp_path):
    assert write(["bug", "1"]) == 0 and capsysbinary.readouterr().out == with_bug(1).encode()
    for arguments in ("", "hole", "hole 0", "bug 99", "hole three", "fly 3", "bug 1 2"):
        assert write(arguments.split()) == 2, arguments
        said = capsysbinary.readouterr()
        assert not said.out and said.err.count(b"\n") == 1 and b"hole 1..10 | bug 1..11" in said.err
    saved(tmp_path / "no/x.png", np.zeros((1, 1)))
    (tmp_path / "no/torch.py").write_text("raise ModuleNotFoundError('No module named torch')")
    env, command = os.environ | {"PYTHONIOENCODING": "ascii"}, [sys.executable, __file__, "hole", "3"]
    done = subprocess.run(command, env=env | {"PYTHONPATH": f"{tmp_path}/no"}, capture_output=True)
    assert done.returncode == 2 and not done.stdout and done.stderr.count(b"\n") == 1, done.stderr
    done = subprocess.run(command, check=True, capture_output=True, env=env, cwd=tmp_path)
    (tmp_path / "my_mlb.py").write_bytes(done.stdout)
    command = [sys.executable, "-m", "pytest", "-k", "exercise03", __file__, "-p", "no:cacheprovider"]
    red = subprocess.run(command, capture_output=True, cwd=tmp_path, env=env | {"MLB": "my_mlb"})
    assert red.returncode == 1 and b"Exercise 3: about" in red.stdout, red.stdout + red.stderr

# Exercises to extend mlb.py: collected where your file has the function.

if hasattr(mlb, "edge_band"):
    def test_edge_band_against_distances():
        S = (rng_of(0).random((24, 31)) > 0.85).astype(np.float32)
        for r in (1, 2, 4):
            windows = [[S[max(0, i - r):i + r + 1, max(0, j - r):j + r + 1] for j in range(31)]
                       for i in range(24)]
            expected = [[near.min() != near.max() for near in row] for row in windows]
            same(mlb.edge_band(torch.from_numpy(S)[None, None], r)[0, 0], expected)

if hasattr(mlb, "connectivity"):
    def largest_component(mask):
        """The largest 4-connected component as a set of pixels; the first one of equals."""
        left, found = set(zip(*np.nonzero(mask))), [set()]
        while left:
            stack, pixels = [min(left)], set()
            while stack:
                i, j = stack.pop()
                if (i, j) in left:
                    left.remove((i, j))
                    pixels.add((i, j))
                    stack += [(i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)]
            found.append(pixels)
        return max(found, key=len)

    def test_connectivity_against_its_definition():
        for p, t in random_pairs(60):
            last = np.full(t.shape, np.nan)
            for k in range(1, 11):
                largest = largest_component((p >= k / 10) & (t >= k / 10))
                for ij in np.ndindex(t.shape) if largest else ():
                    if ij not in largest and np.isnan(last[ij]):
                        last[ij] = (k - 1) / 10
            last[np.isnan(last)] = 1
            phi = [np.where(x - last >= 0.15, 1 - (x - last), 1) for x in (p, t)]
            same(mlb.connectivity(p, t), np.abs(phi[0] - phi[1]).sum() / 1000, 1e-9)

# ---------------------------------------------------------------- slow ones: over 5 seconds each

HASH = """
import hashlib
o = mlb.parse(["train", "--size", sys.argv[1], "--device", "cpu"])
data, digest = mlb.open_data(o), hashlib.sha256()
m = mlb.Mixer(data["mattes"], data["backgrounds"], data["masks"], 0.5, o.size, 1, True)
for s in torch.utils.data.DataLoader(m, batch_sampler=[[k] for k in range(200)], num_workers=int(sys.argv[2])):
    for key in ("image", "target", "mask"):
        digest.update(bytes(torch.as_tensor(s[key]).numpy()))
print(digest.hexdigest())
"""

@slow
@cases("size", [128, 160])
def test_samples_are_the_same_bits_whatever_threads_and_workers(size):
    found = [script(HASH, size, workers, env={**os.environ, "OMP_NUM_THREADS": threads}).communicate()
             for threads, workers in (("1", 0), ("2", 0), ("2", 2))]
    assert len(found[0][0]) == 65 and len({out for out, _ in found}) == 1, found

@slow
def test_killed_at_any_moment_it_goes_on_to_the_same_weights(toy, tmp_path):
    plain, out, more = tmp_path / "plain", tmp_path / "out", ["--steps", 40, "--teacher-steps", 30]
    given = ("mlb.SAVE_SECONDS = -1\nsys.exit(mlb.main(sys.argv[1:]))",
             *tiny("train", toy, out, *more, "--resume"))
    assert main(*tiny("train", toy, plain, *more, "--workers", 2)) == 0, "workers change nothing"
    for lines in (3, 21, 17, 14):  # of progress, then some milliseconds more
        child = script(*given)
        for _ in range(lines):
            child.stdout.readline()
        time.sleep(0.003 * lines)
        child.kill()
        child.communicate()
        assert child.returncode == -signal.SIGKILL
    child = script(*given)
    assert "| MLB " in child.communicate()[0] and child.returncode == 0
    for row, steps in (("teacher.0", 30), ("MLB.0", 40)):
        assert torch.equal(weights(out, row), weights(plain, row))
        assert len(log(out / f"{row}.csv")["total"]) == steps
    assert (out / "metrics.json").read_bytes() == (plain / "metrics.json").read_bytes()

@slow
def test_overfits_one_batch(monkeypatch):
    batch = torch.utils.data.default_collate([mixer(SAMPLE, 0.5, 64)[i] for i in range(4)])
    terms, loss = [], mlb.mlb_loss
    monkeypatch.setattr(mlb, "mlb_loss", lambda *given: terms.append(loss(*given)) or terms[-1])
    step(5e-3, mlb.MattingNet(), batch, torch.optim.AdamW, times=150, label="S")
    first, last = terms[0]["matte"].item(), terms[-1]["matte"].item()
    assert last < 0.15 * first, f"from {first} to {last}"

@slow
def test_the_student_beats_the_teacher(tmp_path):
    """The method's promise, in a tenth of the default steps, at half the size."""
    assert main("train", "--out", tmp_path, "--size", 64, "--teacher-steps", 120, "--steps", 200,
                "--device", "cpu") == 0
    scores = json.loads((tmp_path / "metrics.json").read_text())
    mse = {row: seeds[0]["MSE"] for row, seeds in scores.items()}
    assert mse["MLB"] < 0.7 * mse["teacher"] and mse["labels B"] < mse["labels S"], mse

RANKS = f"""
import sys, torch, {NAME} as mlb
train_step, train, steps = mlb.train_step, torch.nn.Module.train, []
if sys.argv[1] == "plain":
    mlb.MattingNet.train = lambda self, mode=True: train(self, False)
def counted(*given):
    steps.append(1)
    if sys.argv[1] == "fails" and mlb.RANK == 1 and len(steps) == 3:
        raise mlb.UserError("rank 1 of 2 has no more memory")
    return train_step(*given)
mlb.train_step = counted
sys.exit(mlb.main(sys.argv[2:]))
"""

@slow
def test_two_ranks_learn_what_one_learns_and_a_failing_one_ends_the_job(toy, tmp_path):
    """The same global batch; batch norm in eval mode, since each rank has statistics of its own."""
    (tmp_path / "ranks.py").write_text(RANKS)
    env, curves = os.environ | {"PYTHONPATH": f"{os.getcwd()}:{HERE}", "OMP_NUM_THREADS": "1"}, []
    for ranks, kind in ((1, "plain"), (2, "plain"), (2, "fails")):
        out, begun = tmp_path / f"{ranks} {kind}", time.monotonic()
        done = subprocess.run([
            sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}",
            str(tmp_path / "ranks.py"), kind, *tiny("train", toy, out, "--steps", 20,
                                                    "--teacher-steps", 20)],
            text=True, capture_output=True, timeout=120, env=env)
        if kind == "plain":
            assert done.returncode == 0 and len(list(out.iterdir())) == 9, done.stderr
            assert done.stdout.count("| MLB ") == 1, "one rank tells"
            curves.append(log(out / "teacher.0.csv")["total"] + log(out / "MLB.0.csv")["total"])
    assert done.returncode != 0 and "rank 1 of 2 has no more memory" in done.stderr
    assert time.monotonic() - begun < 15 and len(curves[0]) == 40
    same(curves[1], curves[0], 1e-4)

@slow
def test_a_12_megapixel_photo_takes_seconds_and_little_memory(trained, tmp_path):
    coarse, exif = Image.open(picture(tmp_path / "c.png", (40, 30))), Image.Exif()
    exif[0x0112] = 6
    coarse.resize((4000, 3000), Image.BICUBIC).save(tmp_path / "p.jpg", exif=exif)
    peak = """import resource\nbegun, code = time.perf_counter(), mlb.main(sys.argv[1:])
print(code, time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"""
    said, errors = script(peak, "matte", tmp_path / "p.jpg", "--weights", trained[1] / "MLB.0.pt",
                          "--size", 512, "--out", tmp_path / "o", "--device", "cpu").communicate()
    code, seconds, memory = map(float, said.split()[-3:])
    assert code == 0 and Image.open(tmp_path / "o/p.png").size == (3000, 4000), errors
    assert memory < 1200 and seconds < 10, f"{memory:.0f} MiB, {seconds:.1f} s"

@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_trains_benches_and_mattes(toy, tmp_path):
    out = tmp_path / "out"
    assert main(*tiny("train", toy, out)[:-1], "cuda", "--workers", 2) == 0
    assert state(out / "MLB.0.pt")["scaler"], "fp16 with a scaler is CUDA's default"
    assert main("bench", "--size", 64, "--device", "cuda") == 0
    assert main("matte", picture(tmp_path / "p.png"), "--weights", out / "MLB.0.pt", "--out", out) == 0

if __name__ == "__main__":
    sys.exit(write(sys.argv[1:]))
