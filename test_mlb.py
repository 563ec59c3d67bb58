# SPDX-License-Identifier: MIT
"""What mlb.py promises, in its own order; slow checks last: python -m pytest [-m "not slow"]
MLB=my_mlb python -m pytest tests your own copy, my_mlb.py. Exercises: mlb.py with a function left
for you to write (HOLES), or with a bug to find (BUGS):
    python test_mlb.py hole 3 > my_mlb.py && MLB=my_mlb python -m pytest -k exercise03
"""
import ast, contextlib, csv, importlib, inspect, io, itertools, json, math, operator, os, pathlib
import pickle, re, resource, shlex, shutil, signal, subprocess, sys, time, types

HERE, NAME = pathlib.Path(__file__).parent, os.environ.get("MLB", "mlb")
sys.path.insert(0, os.getcwd())
os.environ.setdefault("OMP_NUM_THREADS", "1")  # pictures of 32 pixels are not worth a second thread
try:
    import numpy as np, pytest, torch
    from PIL import Image
    mlb = importlib.import_module("mlb" if __name__ == "__main__" else NAME)
except ImportError as problem:
    if __name__ != "__main__": raise
    print(f"test_mlb.py: {problem}; install what requirements.txt lists", file=sys.stderr)
    sys.exit(2)
SAMPLE, README = HERE / "data_sample", (HERE / "README.md").read_text(encoding="utf-8")
slow, cases, raises = pytest.mark.slow, pytest.mark.parametrize, pytest.raises
tensor, zeros, product, rng_of = torch.tensor, torch.zeros, itertools.product, np.random.default_rng

def same(got, expected, tolerance=1e-6):
    got, expected = np.asarray(got, float), np.asarray(expected, float)
    assert got.shape == expected.shape, f"expected shape {expected.shape}, got {got.shape}"
    off = np.abs(got - expected).max()
    assert off <= tolerance, f"expected {expected}, got {got}, off by {off:.3g}"
def main(*arguments):
    try: return mlb.main([str(a) for a in arguments])
    except SystemExit as stop: return stop.code  # argparse's way
def fails(capsys, *arguments):
    assert main(*arguments) == 2
    lines = [x for x in capsys.readouterr().err.strip().splitlines() if x[:10] != "mlb: note:"]
    assert len(lines) == 1 and lines[0].startswith("mlb: error: "), lines
    return lines[0]
def script(text, *arguments, **more):
    command = [sys.executable, "-c", f"import sys, time, torch, {NAME} as mlb\n{text}"]
    more = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": HERE} | more
    return subprocess.Popen([*command, *map(str, arguments)], **more)
def saved(path, array, mode=None, **extra):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).convert(mode).save(path, **extra)
    return path
def picture(path, size=(40, 40), seed=0, **extra):
    return saved(path, rng_of(seed).integers(0, 256, (*size[::-1], 3)), "RGB", **extra)
def disc(path, size=(40, 40), mode="L", soft=1, share=1 / 3):
    y, x = np.mgrid[:size[1], :size[0]]
    inside = min(size) * share - np.hypot(x - size[0] / 2, y - size[1] / 2)
    return saved(path, 255 * (inside / max(soft, 1e-9) + 0.5).clip(0, 1), mode)
def make_toy(root):
    for folder, count in {"matte/foreground": 3, "matte/background": 2, "segmentation/image": 4,
                          "test/image": 2}.items():
        for k in range(count): picture(root / folder / f"{k}.jpg", seed=k)
    for folder, count, soft in (("matte/alpha", 3, 6), ("segmentation/mask", 4, 0),
                                ("segmentation/alpha", 4, 4), ("test/alpha", 2, 5)):
        for k in range(count): disc(root / folder / f"{k}.png", soft=soft, share=0.3 + 0.02 * k)
    return root

@pytest.fixture
def toy(tmp_path): return make_toy(tmp_path / "toy")

def tiny(command, toy, out, *more):
    text = "--size 32 --width 8 --batch 4 --teacher-steps 5 --steps 6 --device cpu"
    return [command, "--data", str(toy), "--out", str(out), *text.split(), *map(str, more)]
def mixer(data, mix, size=32, seed=0, guided=False):
    m, s = data / "matte", data / "segmentation"
    backgrounds = list(mlb.pictures(m / "background").values())
    return mlb.Mixer(mlb.pairs(m / "foreground", m / "alpha"), backgrounds,
                     mlb.pairs(s / "image", s / "mask"), mix, size, seed, guided)
def state(path): return torch.load(path, weights_only=True)
def weights(out, row="MLB.0"):
    return torch.cat([v.flatten().double() for v in state(out / f"{row}.pt")["net"].values()])
def log(path):
    names, *rows = csv.reader(io.StringIO(path.read_text()))
    return dict(zip(names, np.array(rows, float).T.tolist()))
def files_of(folder):
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}

@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root, said = tmp_path_factory.mktemp("trained"), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        assert main(*tiny("train", make_toy(root / "toy"), root / "out", "--amp", "fp16")) == 0
    return root / "toy", root / "out", said.getvalue()

FEW_STEPS = "--seeds 2 --mix 0.5 --steps 2 --teacher-steps 2".split()
@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    root, taken, take, fit = tmp_path_factory.mktemp("compared"), {}, mlb.Mixer.__getitem__, mlb.fit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlb.Mixer, "__getitem__", lambda self, i: taken[[*taken][-1]].append(
            take(self, i)) or taken[[*taken][-1]][-1])
        patch.setattr(mlb, "fit", lambda *given: taken.update({given[:2]: []}) or fit(*given))
        assert main(*tiny("compare", make_toy(root / "toy"), root / "out", *FEW_STEPS)) == 0
    return root / "toy", root / "out", {key: samples[-8:] for key, samples in taken.items()}

# ---------------------------------------------------------------- 1 Data
def test_pictures_pair_by_stem_nested_and_linked_and_strays_do_not(tmp_path, capsys):
    root, i, m = (tmp_path / name for name in "rim")
    for name in ("r/b.JPG r/a/c.png r/._b.jpg r/notes.txt e/d.webp e.tif i/1.png i/2.png i/4.png "
                 "i/7.png m/1.jpg m/3.jpg").split():
        saved(tmp_path / name, np.zeros((40, 40)), format="PNG")
    (root / "folder").symlink_to(tmp_path / "e")
    (root / "f.tif").symlink_to(tmp_path / "e.tif")
    found = {stem: str(path.relative_to(root)) for stem, path in mlb.pictures(root).items()}
    assert found == {"b": "b.JPG", "c": "a/c.png", "d": "folder/d.webp", "f": "f.tif"}
    picture(root / "deep/b.png")
    assert mlb.pairs(i, m) == [(i / "1.png", m / "1.jpg")] and len(mlb.pairs(i, i)) == 4
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "4 pictures" in said and "mlb: note: " in said
    assert [f"{k}." in said for k in (2, 3, 4, 7)] == [True] * 3 + [False], "three are named"
    with raises(mlb.UserError, match=r"b\.(png|JPG).*same name.*b\.(png|JPG)"): mlb.pictures(root)
    with raises(mlb.UserError, match="none"): mlb.pictures(root / "none")
    with raises(mlb.UserError, match="m: no name"): mlb.pairs(m, tmp_path / "e")

TURNS = {5: lambda x: x.swapaxes(0, 1), 6: lambda x: np.rot90(x, -1), 8: np.rot90}
@cases("suffix, turn", [("jpg", 6), *product(("png", "tif"), TURNS)])
def test_photos_and_labels_are_read_upright(suffix, turn, tmp_path):
    array, exif = np.zeros((32, 48, 3), np.uint8), Image.Exif()
    array[:16], array[:, :16], exif[0x0112] = 255, 128, turn
    photo = saved(tmp_path / f"p.{suffix}", array, exif=exif)
    pair = mlb.read_pair(photo, saved(tmp_path / f"l.{suffix}", array[..., 0], exif=exif))
    same(pair, TURNS[turn](np.dstack([array, array[..., 0]])), 4 if suffix == "jpg" else 0)

def test_labels_of_every_kind_mean_the_same_or_are_refused(tmp_path):
    truth = np.asarray(Image.open(disc(tmp_path / "L.png", soft=0)))
    for mode in ("1", "RGB", "RGBA"): disc(tmp_path / f"{mode}.png", mode=mode, soft=0)
    saved(tmp_path / "zero_one.png", truth // 255)
    saved(tmp_path / "aisegment.png", np.dstack([truth | 200, truth & 10, truth & 10, truth]))
    saved(tmp_path / "grey.png", np.dstack([*[90 + 0 * truth] * 3, truth]))
    for path in sorted(tmp_path.iterdir()):
        label = mlb.read(path, label=True)
        assert label.mode == "L" and np.array_equal(np.asarray(label), truth), path
    red = Image.fromarray(np.dstack([truth, truth // 2, truth]))
    for name, image in {"deep.png": Image.fromarray(truth.astype(np.uint16) * 257),
                        "float.tif": Image.fromarray(truth.astype(np.float32)),
                        "palette.png": Image.fromarray(truth).convert("P"), "colour.png": red,
                        "opaque.png": red.convert("RGBA"), "cmyk.jpg": red.convert("CMYK"),
                        "classes.png": Image.fromarray(truth // 255 * 2)}.items():
        image.save(tmp_path / name)
        for label in (True, False) if name in ("deep.png", "float.tif") else (True,):
            with raises(mlb.UserError, match=f"{name}.*save it"): mlb.read(tmp_path / name, label)

def hostile(folder):
    jpg, png = (picture(folder / f"whole.{x}", (300, 300)).read_bytes() for x in ("jpg", "png"))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n%%EOF\n"
    for name, content in {"zero.jpg": b"", "cut.jpg": jpg[:9999], "cut.png": png[:9999],
                          "eps.png": eps, "ünï\nçødé.jpg": b"x", "-dash.jpg": b"x"}.items():
        (folder / name).write_bytes(content)
    for k, size in enumerate([(15, 40), (16, 257), (257, 16)]): picture(folder / f"{k}.png", size)
    Image.new("1", (20000, 20000)).save(folder / "bomb.png")
    (folder / "circle.jpg").symlink_to("circle.jpg")
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    return {p.name: p for p in folder.iterdir() if "whole" not in p.name} | {
        "gone.jpg": folder / "gone.jpg"}

def test_a_pair_is_one_picture_and_of_one_aspect(tmp_path):
    photo, mask = (disc(tmp_path / name, (1010, 900), "RGB") for name in ("p.jpg", "p.png"))
    for short in (0, 50, 130, 899):
        pair = mlb.read_pair(photo, mask, short)
        assert pair.shape[2] == 4 and (short or 900) <= min(pair.shape[:2]) < (2 * short or 9999)
        assert abs(pair[..., 0].astype(float) - pair[..., 3]).mean() < 5
    assert np.array_equal(mlb.read_pair(photo), np.asarray(mlb.read(photo)))
    photo, label = picture(tmp_path / "q.png", (100, 100)), tmp_path / "l.png"
    for size in ((100, 101), (101, 100), (50, 50)):
        assert mlb.read_pair(photo, disc(label, size)).shape == (100, 100, 4)
    with raises(mlb.UserError, match="l.png.*q.png"): mlb.read_pair(photo, disc(label, (100, 103)))

def test_composite_exercise02():
    same(mlb.composite(np.array([1.0, 0.5, 0]), 0.25, np.array([0, 0.5, 1])), [0.25, 0.5, 0.75])
    F, B, a = rng_of(0).random((3, 4, 5)), rng_of(1).random((3, 4, 5)), rng_of(2).random((1, 4, 5))
    same(mlb.composite(F, np.ones_like(a), B), F)
    same((mlb.composite(F, a, B) - B) / (F - B), np.broadcast_to(a, F.shape))  # solved for alpha

def test_degrade_changes_light_focus_and_noise_in_bounds():
    grey, edge = np.full((32, 32, 3), 128, np.uint8), np.zeros((32, 32, 3), np.uint8)
    edge[:, 16:] = 255
    x, y = (np.stack([mlb.degrade(photo, rng_of(k)) for k in range(300)]) for photo in (grey, edge))
    means, noise, tint = x.mean((1, 2, 3)), x.std((2, 3)).mean(1), x.mean((2, 3))
    assert 85 < means.min() < 105 and 152 < means.max() < 180 and 120 < means.mean() < 136, "light"
    assert 0.22 < (noise > 1).mean() < 0.37 and 8 < noise.max() < 11.5, "some have noise"
    assert 1.08 < (tint.max(1) / tint.min(1)).max() < 1.11, "light has a colour"
    quiet = y[y[..., :8].std((1, 2, 3)) == 0][:, 0, 16, 13:16].astype(int)
    assert 0.17 < (quiet[:, 2] > 5).mean() < 0.35, "some are blurred"
    assert 80 < quiet[:, 2].max() < 130 and quiet[:, 0].max() < 5, "by two pixels at most"

def test_clutter_draws_on_a_copy_of_a_background():
    grey = np.full((64, 64, 3), 128, np.uint8)
    x = np.stack([mlb.clutter(grey, rng_of(k)) for k in range(300)])
    share, where = (x != 128).any(3).mean((1, 2)), (x != 128).any(3).mean(0)
    colours = [len(set(y[..., 0].flat)) - 1 for y in x]
    assert 0.25 < (share == 0).mean() < 0.38, "3 of 10 backgrounds are left as they are"
    assert 0.1 < share.mean() < 0.25 and 0.45 < share.max() < 0.95 and (grey == 128).all()
    assert max(colours) in (6, 7) and 1.9 < np.mean(colours) < 3.5, "one to seven shapes"
    assert where.min() > 0.02 and where.max() < 0.4, "everywhere, and nowhere always"

def test_hurried_mask_exercise08():
    y, x = np.mgrid[:128, :128] - 64
    matte = np.where(np.hypot(x, y) < 32, 255, 0).astype(np.uint8)
    body, matte[8:32, 32:96:6] = matte > 0, 200  # hairs
    masks = np.stack([mlb.hurried_mask(matte, rng_of(k)) for k in range(60)])
    assert masks.shape == (60, 128, 128) and masks.dtype == np.uint8
    assert set(np.unique(masks)) == {0, 255}, f"expected 0 and 255, got {np.unique(masks)}"
    found = masks > 0
    overlap = (found & body).sum((1, 2)) / (found | body).sum((1, 2))
    assert overlap.min() > 0.55 and 0.8 < overlap.mean() < 0.985, overlap
    assert found[:, 8:20].mean() < 0.005, "hairs are cut off"
    assert found[:, 56:72, 56:72].all(), "the person is kept"

def equal(x, y):
    return all(np.array_equal(x[key], y[key]) for key in ("image", "target", "mask", "natural"))

def test_samples_are_bytes_made_of_seed_and_index_alone_exercise05(toy):
    a, b, c = (mixer(toy, 0.5, guided=True, seed=seed) for seed in (0, 0, 1))
    assert all(equal(a[i], b[i]) for i in (3, 0, 7, 2, 0))
    assert not any(map(equal, [a[0], a[0], a[1]], [a[1], c[0], c[0]]))
    for mix, guided in product((0, 1), (False, True)):
        samples = [mixer(toy, mix, guided=guided)[i] for i in range(8)]
        shapes = [(x.shape, x.dtype) for x in [*samples[0].values()][:3]]
        assert shapes == [((n, 32, 32), np.uint8) for n in (3, 1, 1)], f"not {shapes}"
        assert isinstance(samples[0]["natural"], bool) and samples[0]["target"].max() > 240
        hurried = any(not np.array_equal(s["mask"], s["target"]) for s in samples)
        assert hurried == (mix == 1 and guided), "masks are hurried for guided teachers' composites"
    share = np.mean([not mixer(toy, 0.25)[i]["natural"] for i in range(300)])
    assert abs(share - 0.25) < 0.06, f"expected a quarter of composites, got {share}"

def test_a_person_stands_before_a_background_exercise05(tmp_path):
    f, b = (saved(tmp_path / f"{k}.png", np.full((48, 48, 3), np.eye(3)[k] * 255)) for k in (0, 2))
    people, blue = [(f, disc(tmp_path / "a.png", (48, 48), soft=8))], []
    m = mlb.Mixer(people, [b], [], 1.0, 32)
    for s in (m[i] for i in range(150)):
        image, target = s["image"] / 255, s["target"][0] / 255
        red, behind = image[:, target == 1].mean(1), image[:, target == 0]
        assert red[0] > 0.7 and max(red[1:]) < 0.1, f"expected the person's red, got {red}"
        blue.append(behind[2].mean())
        if (behind[2] > 0.6).all() and (behind[:2] < 0.2).all():  # nothing is drawn on it
            half = image[0, (target > 0.45) & (target < 0.55)].mean() / red[0]
            assert 0.3 < half < 0.7, f"expected half the red at an alpha of half, got {half:.2f}"
    assert np.mean(blue) > 0.5, "the background shows where alpha is 0"
    assert (mlb.Mixer(people, [], [], 1.0, 32)[0]["image"][0] > 180).all(), "none: as the photo is"

def test_labels_of_samples_exercise05(tmp_path):
    path = saved(tmp_path / "p.png", np.dstack([np.indices((40, 40))[1] < 20] * 3) * 255)
    m, sides = mlb.Mixer([], [], [(path, path)], 0, 32), []
    for s in (m[i] for i in range(60)):
        target, image = s["target"][0].mean(0), s["image"].mean((0, 1))
        sides.append(target[:4].mean() > target[-4:].mean())
        assert sides[-1] == (image[:4].mean() > image[-4:].mean()), "label left, person right"
        assert image[target > 242].mean() > 150 > 40 > image[target < 13].mean(), "one window"
    same_seed = mlb.Mixer([], [], [(path, path)], 0, 32, 0)[0]
    assert 15 < sum(sides) < 45 and equal(m[0], same_seed), "half are mirrored, seed 0"
    pair = picture(tmp_path / "i.png"), saved(tmp_path / "m.png", np.full((40, 40), 255))
    for m in (mlb.Mixer([], [], [pair], 0, 32), mlb.Mixer([pair], [], [], 1, 32)):
        values = np.unique([m[i]["target"] for i in range(20)])
        assert values.tolist() == [255], f"expected 255 all over, as the file has it, got {values}"

def test_a_window_is_a_square_anywhere_in_its_picture(tmp_path):
    for width, height in ((60, 40), (40, 60)):
        y, x = np.mgrid[:height, :width]  # red tells x, green y
        path, corners = saved(tmp_path / f"{width}.png", np.stack([x, y, 0 * x], 2)), []
        for k in range(200):
            shown = mlb.Mixer([], [], [], 0, 32).window([(path,)], rng_of(k)).astype(float)
            assert shown.shape == (32, 32, 3), f"expected a square of 32, got {shown.shape}"
            red, green = shown[..., 0], shown[..., 1]
            assert np.ptp(red, 0).max() == np.ptp(green, 1).max() == 0, "expected upright squares"
            corners.append([red[0, 0], red[0, -1], green[0, 0], green[-1, 0]])
        left, right, top, bottom = np.array(corners).T
        assert 70 < (left > right).sum() < 130, "half are mirrored"
        left, right, sides = np.minimum(left, right), np.maximum(left, right), bottom - top + 1
        same([left.min(), right.max(), top.min(), bottom.max()], [0, width - 1, 0, height - 1], 1)
        assert 26 < sides.min() < 31 and 38 < sides.max() <= 40, "0.7 to 1 of the short side"
        assert abs(right - left + 1 - sides).max() <= 1, "squares"
    path = saved(tmp_path / "c.png", np.dstack([np.indices((90, 90)).sum(0) % 2 * 255] * 3))
    shown = mlb.Mixer([], [], [], 0, 32).window([(path,)], rng_of(0))
    assert (abs(shown.astype(float) - 127.5) < 9).all(), "averaged"

def test_a_damaged_file_is_named_and_another_takes_its_place(toy, capsys):
    path = toy / "segmentation/image/1.jpg"
    path.write_bytes(path.read_bytes()[:400])
    samples = [mixer(toy, 0)[i] for i in range(40)]
    assert not equal(*samples[:2]) and capsys.readouterr().err.count("1.jpg") == 1
    for k in range(4): path.with_name(f"{k}.jpg").write_bytes(b"")
    mlb.read_once.cache_clear()
    m, draws = mixer(toy, 0), []
    m.draw = lambda rng: draws.append(str(rng.bit_generator.state)) or mlb.Mixer.draw(m, rng)
    with raises(mlb.UserError, match="ten .*jpg"): m[0]
    assert len(set(draws)) == 10, "ten draws, not one ten times"
    assert "ten" in fails(capsys, *tiny("train", toy, toy / "out"))

# ---------------------------------------------------------------- 2 Model
@cases("guided", [False, True])
def test_net_gives_two_full_size_maps(guided):
    net, x = mlb.MattingNet(8, guided).eval(), torch.rand(1, 3, 64, 96)
    (matte, boundary), (other, _) = (net(x, torch.rand(1, 1, 64, 96)) for _ in range(2))
    assert matte.shape == boundary.shape == (1, 1, 64, 96) and not torch.equal(matte, boundary)
    assert torch.equal(matte, other) != guided, "only a guided net looks at the mask"
    assert round(sum(p.numel() for p in mlb.MattingNet().parameters()), -4) == 530_000, "README"

# ---------------------------------------------------------------- 3 MLB
def test_boundary_label_exercise01():
    M = tensor([0, 0.04, 0.05, 0.06, 0.5, 0.94, 0.95, 0.96, 1])
    same(mlb.boundary_label(M), [0, 0, 0, 1, 1, 1, 0, 0, 0])
    same(mlb.boundary_label(M.view(3, 3), 0.5, 0.99), [[0, 0, 0], [0, 0, 1], [1, 1, 0]])
    for kind in (torch.float64, torch.float32, torch.bfloat16):
        got = mlb.boundary_label(M.to(kind)).dtype
        assert got == kind, f"expected the type of M, {kind}; got {got}".replace("torch.", "")

def test_blend_exercise03():
    torch.manual_seed(0)
    same(mlb.blend(tensor([0.8]), tensor([0.25]), tensor([0.0])), [0.2])
    M, a, S = torch.rand(2, 1, 9, 9), torch.rand(2, 1, 9, 9), (torch.rand(2, 1, 9, 9) > 0.5).float()
    same(mlb.blend(M, torch.zeros_like(a), S), S)
    same((mlb.blend(M, a, S) - S) / (M - S), a, 1e-4)

def test_laplacian_loss_exercise04():
    flat, loss = torch.full((1, 1, 32, 32), 0.3), mlb.laplacian_loss
    same(loss(flat, flat + 0.5), 0)  # a constant lies in no band of the pyramid
    checks = ((torch.arange(32)[:, None] + torch.arange(32)) % 2 * 1.0)[None, None]
    same(loss(checks, 0 * checks, levels=1), 0.5)  # in the finest band it is ±1/2 everywhere
    for level in range(5):  # coarser by halves: in a coarser band alone, which counts twice as much
        blocks = checks.repeat_interleave(2 ** level, 2).repeat_interleave(2 ** level, 3)
        expected = 2 ** level * 0.5 / 4 if level < 4 else 0  # the last is too coarse for 4 levels
        same(loss(0 * flat, blocks[..., :32, :32]), expected)

TERMS = ["matte", "laplacian", "detail", "boundary", "total"]
def test_mlb_loss_by_hand_exercise09():
    """White and black pixels that the net holds for even chances; a fourth is boundary."""
    (target, boundary), zero = zeros(2, 2, 1, 16, 16), zeros(2, 1, 16, 16)
    target[..., :8], boundary[..., :4] = 1, 1
    terms = mlb.mlb_loss(zero, zero, target, boundary)
    assert {*terms} == {*TERMS} and all(t.shape == () for t in terms.values())
    same([terms["matte"], terms["boundary"], terms["detail"]], [math.log(2), math.log(2), 0.5])
    same(terms["laplacian"], mlb.laplacian_loss(zero + 0.5, target))
    sure = mlb.mlb_loss(50 * (2 * target - 1), 50 * (2 * boundary - 1), target, boundary)
    same(sure["total"], 0, 1e-5)
    x = tensor([1.0, -2.0]).view(2, 1, 1, 1).expand(2, 1, 16, 16)
    terms = mlb.mlb_loss(x, -x, target, boundary)
    same(terms["matte"], np.log1p(np.exp([-1, 1, 2, -2])).mean())
    same(terms["total"], sum(terms[k] for k in TERMS[:4]), 1e-5)

def test_detail_by_hand_exercise09():
    target, boundary = zeros(2, 3, 1, 16, 16)
    boundary[0, 0, 0, :2] = boundary[1, 0, :8] = 1  # two pixels, one of them wrong; half of all
    logits = torch.full((3, 1, 16, 16), -50.0)
    logits[0, 0, 0, 0] = logits[0, 0, 7, 7] = 50  # the second is wrong too, but no boundary
    same(mlb.mlb_loss(logits, logits, target, boundary)["detail"], (1 / 2 + 0 + 0) / 3)
    target[1, 0, :8] = 1  # now all of the half is wrong
    same(mlb.mlb_loss(logits, logits, target, boundary)["detail"], (1 / 2 + 1 + 0) / 3)

def test_loss_of_a_plain_picture_and_under_autocast_exercise09():
    logits, zero = zeros(1, 1, 16, 16, requires_grad=True), zeros(1, 1, 16, 16)
    terms = mlb.mlb_loss(logits, logits, zero, zero)
    terms["total"].backward()
    assert terms["detail"] == 0 and torch.isfinite(logits.grad).all() and logits.grad.any()
    a, b = (torch.linspace(low, high, 512).view(2, 1, 16, 16) for low, high in ((-2, 2), (0, 1)))
    plain = mlb.mlb_loss(a, a, b, mlb.boundary_label(b))
    with torch.autocast("cpu", torch.bfloat16): cast = mlb.mlb_loss(a, a, b, mlb.boundary_label(b))
    assert all(cast[k].dtype == torch.float32 and cast[k] == plain[k] for k in plain)

# ---------------------------------------------------------------- 4 Training
class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(tensor([0.5, -0.5]))
    def forward(self, x, masks):
        return 20 * self.w[0] * x[:, :1], 20 * self.w[1] * x[:, :1]

def step(lr, net=None, batch=None, optimizer=torch.optim.SGD, scaled=False, times=1, **more):
    torch.manual_seed(0)
    net, scaler = net or Line(), torch.amp.GradScaler("cpu", enabled=scaled)
    batch = batch or {"natural": tensor([True, False])} | {
        key: torch.randint(256, (2, channels, 32, 32), dtype=torch.uint8)
        for key, channels in (("image", 3), ("target", 1), ("mask", 1))}
    given = {"label": None, "teacher": None, "half": None, "lr": lr, "net": net, "batch": batch,
             "optimizer": optimizer(net.parameters(), lr), "scaler": scaler, **more}
    for _ in range(times):
        mlb.train_step(**{key: given[key] for key in inspect.signature(mlb.train_step).parameters})
    return next(net.parameters()).detach(), next(net.parameters()).grad, scaler, batch

@pytest.fixture
def losses(monkeypatch):
    seen, loss = [], mlb.mlb_loss
    monkeypatch.setattr(mlb, "mlb_loss", lambda *given: seen.append(given) or loss(*given))
    return seen

def test_train_step_clips_the_true_gradients_and_forgets_the_last_ones():
    moved, gradient, *_ = step(1.0)
    same((moved - tensor([0.5, -0.5])).norm(), 1, 1e-4)
    assert gradient.norm() > 0.5 and moved[0] < 0.5, "downhill"
    same(step(1.0, scaled=True)[0], moved, 1e-4)
    same(step(0.0, times=3)[1], gradient)
    assert step(0.0, scaled=True, times=3)[2].state_dict()["_growth_tracker"] == 3

@cases("label", ["S", "M′", "B"])
def test_what_the_loss_is_given(label, losses):
    def teacher(image, mask): return 4 * mask - 2 + 0 * image[:, :1], image[:, :1] - 1
    *_, batch = step(0.0, label=label, teacher=teacher if label != "S" else None)
    assert losses[0][2].max() <= 1, f"target: expected 0 to 1, got {losses[0][2].max():.0f}"
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
    o = mlb.parse(tiny("train", toy, toy, "--steps", steps, "--teacher-steps", steps, *more))
    mlb.check(o)
    (toy / "out").mkdir(exist_ok=True)
    return [*mlb.fit(name, seed, o, mlb.open_data(o), toy / f"out/{name}.{seed}.pt", teacher)][-1]

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
    # Adam moves a weight by the learning rate, 0.02 here; those of batch norm begin at 1 and decay
    moved = torch.cat([stage[1].weight - (1 - 0.02 * 0.2) for stage in [*student.children()][:-1]])
    same(moved.abs().median() / 0.02, 1, 0.02)
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert student.down4[1].num_batches_tracked == 1, "it trains in training mode"

def test_checkpoints_and_progress_come_every_ten_seconds_and_at_the_end(toy, capsys, monkeypatch):
    done, now, rename, sample = [], [100.0], os.replace, mixer(toy, 1)[0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])  # a clock that the steps move
    monkeypatch.setattr(mlb.Mixer, "__getitem__", lambda self, i: sample)
    monkeypatch.setattr(os, "replace", lambda a, b: rename(a, b) or done.append(b))
    def train_step(*_):
        now[0] += 4 if now[0] < 340 else 2  # 60 steps of 4 s, then faster ones
        return dict.fromkeys(TERMS, 0.5)
    monkeypatch.setattr(mlb, "train_step", train_step)
    fit(toy, "teacher", 121)
    lines = capsys.readouterr().out.splitlines()
    steps = [int(re.search(r"(\d+)/121", line)[1]) for line in lines]
    assert steps == [*range(3, 61, 3), *range(66, 121, 6), 121] and len(done) == len(steps)
    assert "loss 0.5000  7:52 left" in lines[0] and "0:02 left" in lines[-2] and "0:00" in lines[-1]

@cases("rank", [0, 1])
def test_ranks_share_a_batch_and_the_first_one_writes(rank, toy, monkeypatch):
    taken, take, calls = [], mlb.Mixer.__getitem__, []
    monkeypatch.setattr(mlb.Mixer, "__getitem__", lambda self, i: taken.append(i) or take(self, i))
    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", lambda net: net)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda x: calls.append(x.mul_(2)))
    for name, value in (("RANK", rank), ("RANKS", 2)): monkeypatch.setattr(mlb, name, value)
    fit(toy, "teacher", 3)
    assert taken[-6:] == [*range(rank, 12, 2)] and len(calls) == 3
    path = toy / "out/teacher.0.csv"
    assert path.exists() == (rank == 0) and (rank or 0.5 < log(path)["matte"][0] < 0.9), "a mean"

def test_a_loss_that_is_not_finite_stops_the_run(toy, capsys, monkeypatch):
    loss, count = mlb.mlb_loss, itertools.count(1)
    monkeypatch.setattr(mlb, "mlb_loss", lambda *given: {
        key: term + (math.inf if key in ("detail", "total") and turn == 8 else 0)
        for turn in [next(count)] for key, term in loss(*given).items()})
    said = fails(capsys, *tiny("train", toy, toy / "out"))
    assert "MLB" in said and "step 3" in said and "'detail': inf" in said
    assert not (toy / "out/MLB.0.pt").exists() and (toy / "out/teacher.0.pt").exists()

METRICS = ["SAD", "MSE", "MAD", "Grad", "Boundary MAD"]
def test_train_writes_what_it_promises(trained):
    _, out, said = trained
    files = "teacher.0.pt teacher.0.csv MLB.0.pt MLB.0.csv metrics.json table.md batch.png"
    assert {p.name for p in out.iterdir()} == {*files.split(), "labels.png", "mattes.png"}
    page = np.asarray(Image.open(out / "mattes.png"))
    assert page.shape == (34 + 2 * (112 + 2 * 224 + 3 * 4), 4 * 228 + 4, 3), "cells and gutters"
    assert (page[34:, [0, 3, 228, 231]] == 255).all() and (page[40, [4, 300]] < 255).any(1).all()
    batch = np.asarray(Image.open(out / "batch.png"))[34:]  # eight samples, as they are shown
    assert len(batch) == 8 * 36 and batch[:32, 4:36].mean() < 200
    scores = json.loads((out / "metrics.json").read_text())
    assert list(scores) == ["teacher", "MLB", "labels S", "labels M′", "labels B"]
    assert all(len(seeds) == 1 and list(seeds[0]) == METRICS for seeds in scores.values())
    assert (out / "table.md").read_text().strip() in said and "MSE e-3" in said and "cpu" in said
    for row, steps in (("teacher", 5), ("MLB", 6)):
        columns, kept = log(out / f"{row}.0.csv"), state(out / f"{row}.0.pt")
        assert list(columns) == [*TERMS, "lr", "seconds"]
        same([entry["total"] for entry in kept["log"]], columns["total"])
        same(columns["lr"], [4e-3 * min(k / 20, (1 + math.cos(math.pi * (k - 1) / steps)) / 2)
                             for k in range(1, steps + 1)])  # an entry a step
        same([columns["matte"][0], columns["boundary"][0]], [math.log(2)] * 2, 0.3)  # a coin's
    assert kept["scaler"]["_growth_tracker"] == 6 and not kept["guided"], "fp16 with a scaler"

def test_rows_differ_in_mix_and_label_alone(compared):
    _, out, taken = compared
    pictures = {key: [s["image"].tobytes() for s in samples] for key, samples in taken.items()}
    for seed in (0, 1):
        kinds = {row: sum(s["natural"] for s in taken[row, seed]) for row in mlb.ROWS}
        assert kinds["teacher"] == 0 < kinds["MLB"] < 8 == kinds["segmentation only"]
        for row in ("naive mix", "pseudo-labels", "MLB guided", "upper bound"):
            assert pictures[row, seed] == pictures["MLB", seed], "students share their samples"
    of = {yes: {x for key in pictures for x in pictures[key] if ("teacher" in key[0]) == yes}
          for yes in (True, False)}
    assert not of[True] & of[False], "a student must not see its teacher's composites"
    for one, two in zip(taken["upper bound", 0], taken["MLB", 0]):
        assert np.array_equal(one["target"], two["target"]) != one["natural"], "true mattes"

def test_results_are_those_of_the_rows_files(compared, capsys, monkeypatch):
    toy, out, again, asked = *compared[:2], compared[0] / "again", []
    scores, kinds = json.loads((out / "metrics.json").read_text()), ("S", "M′", "B", "B guided")
    assert [*scores] == [*filter("guided teacher".__ne__, mlb.ROWS), *map("labels ".__add__, kinds)]
    mse, said = [1000 * x["MSE"] for x in scores["MLB"]], (out / "table.md").read_text("utf-8")
    assert re.search(rf"\| MLB +\|.* {np.mean(mse):.2f} ± {np.std(mse, ddof=1):.2f} ", said)
    net, found = mlb.load(out / "teacher.1.pt")[1], []
    for k in range(4):
        photo = mlb.read(toy / f"segmentation/image/{k}.jpg")
        S, truth = (np.asarray(Image.open(toy / f"segmentation/{x}/{k}.png")) / 255
                    for x in ("mask", "alpha"))
        M, a = mlb.predict(net, photo, 32).numpy()
        found.append(mlb.metrics(a * M + (1 - a) * S, truth)["MSE"])
    assert scores["labels B"][1]["MSE"] == pytest.approx(np.mean(found), rel=1e-4)
    assert main("eval", "--weights", out / "MLB.1.pt", "--data", toy, "--device", "cpu") == 0
    expected = f"| {1000 * scores['MLB'][1]['MSE']:.2f} | {1000 * scores['MLB'][1]['MAD']:.2f} |"
    assert expected in re.sub(" +", " ", capsys.readouterr().out)
    assert "masks" in fails(capsys, "matte", "p.jpg", "--weights", out / "guided teacher.0.pt")
    monkeypatch.setattr(torch, "get_num_threads", lambda: asked.append(0) or 3)  # side by side
    assert main(*tiny("compare", toy, again, *FEW_STEPS)) == 0 and asked
    for row in [path.stem for path in out.glob("*.pt")]:
        assert torch.equal(weights(again, row), weights(out, row)), f"{row}: others side by side"

def test_data_are_taken_as_asked_and_as_far_as_they_are_there(toy, capsys, monkeypatch):
    titles = []
    monkeypatch.setattr(mlb, "sheet", lambda names, *_: titles.append(names))
    given = tiny("compare", toy, toy / "out", "--seeds", 1, "--mattes", 2, "--masks", 3)
    shutil.rmtree(toy / "matte/background")
    shutil.rmtree(toy / "segmentation/alpha")
    assert main(*given) == 0 and "2 mattes, 0 backgrounds, 3 masks" in capsys.readouterr().out
    scores = json.loads((toy / "out/metrics.json").read_text())
    assert "MLB" in scores and not {"upper bound", "labels S"} & set(scores), "nobody knows"
    assert titles[-1] == "photo,S,M′,α′,B,M′ guided,α′ guided,B guided,S".split(","), titles
    disc(toy / "test/alpha/1.png", (37, 40))
    assert "test/alpha/1.png" in fails(capsys, *tiny("train", toy, toy / "none"))

def test_a_run_is_never_overwritten_and_never_goes_on_as_another(trained, capsys):
    toy, out, _ = trained
    before, again = files_of(out), ["--amp", "fp16", "--resume"]
    options = state(out / "MLB.0.pt")["options"]
    for command in ("train", "compare"):
        assert "holds a run" in fails(capsys, *tiny(command, toy, out))
    for flag, *value in (("--lr", 0.5), ("--mix", 0.5), ("--steps", 9), ("--teacher-steps", 9),
                         ("--batch", 8), ("--width", 9), ("--size", 64), ("--amp", "bf16"),
                         ("--masks", 2), ("--mattes", 2), ("--data", SAMPLE), ("--compile",)):
        said = fails(capsys, *tiny("train", toy, out, *again, flag, *value))
        assert ".pt: made with" in said and f"{flag} {options[flag[2:].replace('-', '_')]}" in said
    assert files_of(out) == before, "nothing changed"
    assert main(*tiny("train", toy, out, *again)) == 0

def test_interrupted_by_ctrl_c_it_tells_how_to_go_on(trained, tmp_path, capsys, monkeypatch):
    toy, plain, _ = trained
    out, train_step, count = tmp_path / "out", mlb.train_step, itertools.count(1)
    monkeypatch.setattr(mlb, "train_step", lambda *given: next(count) in (4, 11) and
                        signal.default_int_handler(2, None) or train_step(*given))
    monkeypatch.setattr(mlb, "SAVE_SECONDS", -1)
    for expected in (130, 130, 0):
        assert main(*tiny("train", toy, out, "--amp", "fp16", "--resume")) == expected
        assert ("--resume" in capsys.readouterr().err) == (expected == 130)
    assert next(count) == 14, "two steps were done again"
    assert torch.equal(weights(out), weights(plain))

class Evil:
    def __reduce__(self): return (open, ("executed", "w"))
def test_bad_checkpoints_are_named_and_never_executed(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    good, whole = state(trained[1] / "MLB.0.pt"), (trained[1] / "MLB.0.pt").read_bytes()
    net, options = good["net"], good["options"]
    changes = [{"log": Evil()}, {"log": []}, {"net": {1: 2}}, {"net": net | {"x": torch.ones(1)}},
               {"net": net | {"head.bias": torch.full((23,), math.nan)}}]
    changes += [{"options": options | {"size": x}} for x in ("x", 0, 10 ** 9, math.nan)]
    changes += [{"options": options | {"width": x}} for x in (1000, 0.5)]
    for k, content in enumerate([[1], 3, {}, {"net": {}}, *(good | change for change in changes)]):
        torch.save(content, f"{k}.pt")
    pathlib.Path("cut.pt").write_bytes(whole[:len(whole) // 2])
    pathlib.Path("evil.pt").write_bytes(pickle.dumps(Evil(), 2))
    os.mkfifo("pipe.pt")
    begun, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in [*sorted(p.name for p in tmp_path.glob("*.pt")), "gone.pt"]:
        said = fails(capsys, "matte", "p.jpg", "--weights", path, "--device", "cpu")
        expected = "no such file" if path in ("pipe.pt", "gone.pt") else "delete it or"
        assert path in said and expected in said, said
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < memory + 3e5, "in KB: not gigabytes"
    assert time.monotonic() - begun < 10 and not pathlib.Path("executed").exists()
    pathlib.Path("MLB.0.pt").write_bytes(whole[:999])
    assert "take another --out" in fails(capsys, *tiny("train", trained[0], tmp_path, "--resume"))

# ---------------------------------------------------------------- 5 Evaluation
def test_metrics_by_hand_exercise06():
    truth = np.zeros((40, 50))
    m = mlb.metrics(truth + 0.5 * (np.arange(40) < 20)[:, None], truth)
    same([m["SAD"], m["MSE"], m["MAD"]], [0.5, 0.125, 0.25])
    assert math.isnan(m["Boundary MAD"]) and sorted(m) == sorted(METRICS), "no boundary, no figure"
    for one, two in ((truth[None], truth[None]), (truth, truth.T)):
        with raises(ValueError): mlb.metrics(one, two)
    for level, counts in ((0.5, True), (0.05, False), (0.95, False), (0.06, True), (0.94, True)):
        truth = np.tile([0.0] * 10 + [level] + [1.0] * 9, (9, 1))
        near = np.array([0.0] * 7 + [0.25, 0.5] + [0.0] * 11)  # 0.5 is two pixels away: it counts
        got = mlb.metrics(truth + near, truth)["Boundary MAD"]
        assert got == pytest.approx(0.1) if counts else math.isnan(got), (level, got)

def grad_reference(x):
    d = np.arange(-6, 7)
    g = np.exp(-d ** 2 / (2 * 1.4 ** 2))
    g, dg = g / g.sum(), -d / 1.4 ** 2 * g / g.sum()
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, 6, mode="symmetric"), (13, 13))
    return np.hypot(*(np.einsum("ijkl,k,l->ij", windows, *pair) for pair in ((dg, g), (g, dg))))

def random_pairs(count):
    for rng in map(rng_of, range(count)):
        t = (rng.random(rng.integers(3, 22, 2)) ** rng.uniform(0.2, 3)).round(rng.integers(1, 4))
        yield (t + rng.normal(0, rng.choice([0.2, 2]), t.shape)).clip(0, 1), t

def test_metrics_against_independent_computations_exercise06():
    for k, (p, t) in enumerate(random_pairs(200)):
        m, errors = mlb.metrics(p, t), [abs(a - b) for a, b in zip(p.flat, t.flat)]
        near = [abs(p[i, j] - t[i, j]) for i, j in np.ndindex(t.shape)
                if any(0.05 < x < 0.95 for x in t[max(0, i - 2):i + 3, max(0, j - 2):j + 3].flat)]
        expected = [sum(errors) / 1000, sum(e * e for e in errors) / p.size, sum(errors) / p.size,
                    ((grad_reference(p) - grad_reference(t)) ** 2).sum() / 10, np.mean(near)]
        for name, value in zip(METRICS, expected):
            assert m[name] == pytest.approx(value, rel=1e-5, abs=1e-9), f"pair {k}: {name}"

class Probe(torch.nn.Module):
    def __init__(self, maps):
        super().__init__()
        self.maps, self.seen, self.unused = maps, [], torch.nn.Parameter(zeros(1))
    def forward(self, x, masks):
        self.seen.append(tuple(x.shape))
        return [torch.logit(map, 1e-6) for map in self.maps(x, masks)]

def test_predict_keeps_size_and_aspect_and_averages():
    y, x = np.mgrid[:160, :192]
    image, mask = (Image.fromarray(a.astype(np.uint8)) for a in (np.dstack([x, y, 0 * x]), y))
    probe, guided = Probe(lambda x, _: x[:, :2].split(1, 1)), Probe(lambda _, masks: (masks, masks))
    same(255 * mlb.predict(probe, image, 136), np.stack([x, y]), 0.01)
    maps = mlb.predict(probe, image.resize((384, 330), Image.NEAREST), 136)
    assert probe.seen == [(1, 3, 160, 192)] * 2, "people as large as in training, sides of 32"
    same(255 * maps[0, 9:-9, 9:-9], (np.mgrid[:330, :384][1] / 2)[9:-9, 9:-9], 1)
    same(255 * mlb.predict(guided, image, 136, mask)[1], y, 0.01)
    board = Probe(lambda x, _: [tensor(np.indices(x.shape[2:]).sum(0) % 2.0)[None, None]] * 2)
    matte = mlb.predict(board, Image.new("RGB", (40, 40)), 136)[0, 5:-5, 5:-5]
    same(matte, np.full((30, 30), 0.5), 0.05)

# ---------------------------------------------------------------- 6 Benchmark, 7 Matting
def test_fold_keeps_the_function_without_batch_norm_exercise10():
    torch.manual_seed(0)
    net, x = mlb.MattingNet(8), torch.rand(1, 3, 64, 64)
    for name, p in net.named_parameters():  # batch norm as after a training
        if ".1." in name: torch.nn.init.uniform_(p, 0.5, 2)
    for _ in range(5): net(torch.rand(4, 3, 32, 32))
    folded = mlb.fold(net.eval())
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    same(folded(x)[0].detach(), net(x)[0].detach(), 1e-4)

def test_seconds_of_a_call(monkeypatch):
    launched, worked = [5.0], [0.0]  # 5 s from before the call, which must not count
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: worked.append(
        worked[-1] + sum(launched)) or launched.clear())
    monkeypatch.setattr(time, "perf_counter", lambda: worked[-1])
    assert mlb.seconds_of(lambda: launched.append(2.0), "cuda:0") == 2, "expected 2 s of work"

def test_bench_prints_a_row_for_each_step(trained, capsys, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda net, **_: net)
    monkeypatch.setattr(mlb, "seconds_of", lambda run, device: run() is None or 0.002)
    given = ["--weights", trained[1] / "MLB.0.pt", "--compile", "--device", "cpu"]
    assert main("bench", "--size", 64, "--width", 8, *given) == 0
    said = capsys.readouterr().out
    rows = re.findall(r"^(\S.*?)  +2.00 ms +500.0 FPS +difference (.*)$", said, re.M)
    assert [row[0][:5] for row in rows] == ["fp32", "+ cha", "+ bat", "+ 16-", "+ com", "end t"]
    off = [float(row[1]) for row in rows]
    assert off[0] == 0 and max(off[1:3]) < 1e-4 < off[3] and "64x64" in said
    assert max(off[3:5]) < 0.05 and off[5] < 0.0021, "bytes are rounded, not cut"

def test_estimate_foreground_exercise07():
    ratios, colours = [], tensor([[0.1, 0.8, 0.2], [0.9, 0.1, 0.7], [0, 0.2, 0.9], [1, 1, 0.2]])
    for path, colour in zip(sorted((SAMPLE / "matte/foreground").iterdir())[1:], colours):
        pair = mlb.read_pair(path, SAMPLE / "matte/alpha" / f"{path.stem}.png")
        truth, alpha = torch.from_numpy(pair).permute(2, 0, 1).div(255).split((3, 1))
        image, edge = alpha * truth + (1 - alpha) * colour.view(3, 1, 1), abs(alpha[0] - 0.5) < 0.45
        found = mlb.estimate_foreground(image, alpha)
        assert found.shape == image.shape and 0 <= found.min() and found.max() <= 1
        off, before = (abs(x - truth)[:, edge].mean().item() for x in (found, image))
        ratios.append(off / before)
    assert np.mean(ratios) <= 0.42, f"expected at most 0.42 of the photo's error, got {ratios}"
    same(mlb.estimate_foreground(image, torch.ones_like(alpha)), image, 1e-3)  # opaque: as it is
    same(mlb.blur(torch.full((1, 40, 90), 0.5), 6), np.full((1, 40, 90), 0.5))  # at the edges too

def test_matte_cuts_out_upright_at_the_photos_own_size(trained, tmp_path):
    exif, out = Image.Exif(), tmp_path / "new/out"
    given, exif[0x0112] = ["--weights", trained[1] / "MLB.0.pt", "--out", out, "--device", "cpu"], 6
    photo = picture(tmp_path / "a b/-1.jpg", (130, 90), exif=exif, icc_profile=b"a profile")
    picture(tmp_path / "folder/deep/2.png", (70, 60))
    Image.open(photo).convert("CMYK").save(tmp_path / "folder/3.jpg")
    assert main("matte", *given[:2], photo, tmp_path / "folder", *given[2:]) == 0
    cut = {p.stem: Image.open(p) for p in out.iterdir()}
    assert {stem: (x.size, x.mode) for stem, x in cut.items()} == {
        "-1": ((90, 130), "RGBA"), "2": ((70, 60), "RGBA"), "3": ((130, 90), "RGBA")}
    same(np.asarray(cut["-1"])[..., 3] / 255,
         mlb.predict(mlb.load(given[1])[1], mlb.read(photo), 32)[0], 0.003)

def test_bad_photos_are_named_and_the_rest_goes_on(trained, tmp_path, capsys):
    good, before = picture(tmp_path / "g/good.png"), files_of(tmp_path / "g")
    bad, twin = hostile(tmp_path / "h"), picture(tmp_path / "twin/good.jpg")
    given = ["matte", "--weights", trained[1] / "MLB.0.pt", "--device", "cpu", "--out"]
    assert main(*given, tmp_path / "o", "--", *bad.values(), good, twin) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == len(bad) + 2 and str(twin) in said[-2] and f"{len(bad) + 1} f" in said[-1]
    assert all(name.replace("\n", " ") in " ".join(said) for name in bad)
    assert os.listdir(tmp_path / "o") == ["good.png"]
    for photo in ("g", "g/good.png"):
        assert main(*given, tmp_path / "h/../g", tmp_path / photo) == 2
        assert "another" in capsys.readouterr().err and files_of(tmp_path / "g") == before

# ---------------------------------------------------------------- 8 Command line
@cases("line", [
    "train --size 50", "train --size 0", "bench --size 100", "train --mix 1.5", "train --lr nan",
    "train --batch 0", "train --seed -1", "train --device gpu", "train --size 32 --batch 1",
    "train --amp half", "train --seed 2147483648", "compare --seed 3", "compare --seeds 0", "fly"])
def test_bad_options_are_named_in_one_line(line, capsys, monkeypatch):
    monkeypatch.setattr(mlb, "open_data", None)  # it must not come to that
    assert (re.findall(r"--\S+", line) or ["fly"])[-1] in fails(capsys, *line.split())

def test_a_device_is_probed_by_a_kernel_and_ranks_share_batch_norm(toy, capsys, monkeypatch):
    class Allocated:
        def __add__(self, _): raise RuntimeError("CUDA error: no kernel image is available")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "zeros", lambda *_, device: Allocated())
        assert "no kernel image" in fails(capsys, "bench", "--device", "cpu")
    o = mlb.parse(["train"])
    o.device, o.amp = "cuda:0", "off"
    monkeypatch.setattr(torch.nn.Module, "to", lambda net, *_, **__: net)
    monkeypatch.setattr(mlb, "RANKS", 2)
    parts, _ = mlb.begin("MLB", 0, o, toy / "none.pt")
    assert any(isinstance(m, torch.nn.SyncBatchNorm) for m in parts["net"].modules())
    calls, done = ["init_process_group", "barrier", "destroy_process_group"], []
    for call in calls:
        monkeypatch.setattr(torch.distributed, call, lambda *_, c=call, **__: done.append(c))
    monkeypatch.setitem(mlb.COMMANDS, "bench", (lambda o: None, ""))
    assert main("bench", "--device", "cpu") == 0 and done == calls, "ranks part after success"

@cases("problem, sign", [
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "lower --batch"),
    (type("A", (RuntimeError,), {"__module__": "torch._dynamo.exc"})("no\ng++"), "README"),
    *((RuntimeError(x), "README") for x in ("PytorchStreamWriter", "No CUDA GPUs", "worker (pid")),
    (OSError(28, "No space left on device"), "No space left")])
def test_what_a_user_can_put_right_is_one_line(problem, sign, toy, capsys, monkeypatch):
    run = tiny("train", toy, toy / "out", "--teacher-steps", 10 ** 9)  # their batches are no list
    monkeypatch.setattr(mlb, "train_step", lambda *_: (_ for _ in ()).throw(problem))
    assert sign in fails(capsys, *run) and not list((toy / "out").glob("*.pt"))
    monkeypatch.setattr(mlb, "train_step", lambda *_: 1 / 0)
    with raises(ZeroDivisionError): main(*run)  # our own mistakes are not hidden

FEW = {"train": "--steps 2 --teacher-steps 2 --size 32 --width 8 --batch 4 --workers 0 --out new",
       "compare": "--steps 1 --teacher-steps 1 --size 32 --width 8 --batch 4 --seeds 1 --out new",
       "eval": "", "bench": "--size 32 --width 8", "matte": "--out new"}
COMMANDS = sorted(set(re.findall(r"mlb\.py ((?:train|compare|eval|bench|matte)\b[^`\n&|>;#]*)",
                                 README.replace("\\\n", " "))))

@cases("command", COMMANDS)
def test_every_command_of_the_readme_runs(command, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name, *more = shlex.split(command)
    more = [picture(tmp_path / "p.jpg") if word == "PHOTO" else word for word in more]
    more += FEW[name].split() + ["--device", "cpu"]
    more += ["--data", trained[0]] if name in ("train", "compare", "eval") else []
    more += ["--weights", trained[1] / "MLB.0.pt"] if name in ("eval", "bench", "matte") else []
    assert main(name, *more) == 0 and capsys.readouterr().out

def test_what_the_readme_names_exists():
    assert {command.split()[0] for command in COMMANDS} == set(FEW), "it tells of every command"
    rows = README.split("| in the paper |")[1].split("\n\n")[0].splitlines()[2:]
    for name in re.findall(r"`([\w.]+)`", " ".join(row.split("|")[2] for row in rows)):
        assert operator.attrgetter(name)(mlb), name
    for link in re.findall(r"\]\((?!http|#)([^)]+)\)|(data_sample/[\w.]+\w)", README):
        assert (HERE / max(link)).exists(), link

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
        total, rest = 0, prediction - target
        for level in range(levels):
            mean = rest.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
            band = rest - mean.repeat_interleave(2, 2).repeat_interleave(2, 3)
            total, rest = total + 2 ** level * band.abs().mean() / levels, mean
        return total""",
    5: """
        natural = not rng.random() < self.mix
        both = self.window(self.naturals if natural else self.composites, rng)
        image, target = both[:, :, :3], both[:, :, 3]
        if not natural and len(self.backgrounds) > 0:
            share, behind = np.stack([target / 255] * 3, 2), self.window(self.backgrounds, rng)
            image = np.uint8(np.round(share * image + (1 - share) * clutter(behind, rng)))
        mask = hurried_mask(target, rng) if self.guided and not natural else target
        image = degrade(image, rng)
        return dict(image=image, target=target[None], mask=mask[None], natural=natural)""",
    6: """
        p, t = np.array(prediction, float), np.array(truth, float)
        if p.shape != t.shape or p.ndim != 2: raise ValueError("two pictures of one shape")
        near, wide, e = np.zeros(t.shape, bool), np.pad((t > 0.05) * (t < 0.95), 2), abs(p - t)
        for i, j in np.ndindex(5, 5): near |= wide[i:i + t.shape[0], j:j + t.shape[1]]
        return {"SAD": e.sum() / 1e3, "MSE": np.mean(e * e), "MAD": e.sum() / e.size,
                "Grad": np.sum((gradient(p) - gradient(t)) ** 2) / 10,
                "Boundary MAD": np.mean(e[near]) if near.sum() else float("nan")}""",
    7: """
        f, b, a = image, image, alpha
        for radius in [90, 6]:
            f, b = (blur(x * w, radius) / (blur(w, radius) + 1e-5) for x, w in ((f, a), (b, 1 - a)))
            f = torch.clamp(f + a * (image - a * f - (1 - a) * b), 0, 1)
        return f""",
    8: """
        soft = Image.fromarray(matte).filter(ImageFilter.BoxBlur(rng.uniform(1, 4)))
        return np.where(np.asarray(soft) > rng.integers(130, 220), 255, 0).astype(np.uint8)""",
    9: """
        x, y, t, a = (z.float() for z in (matte_logits, boundary_logits, target, boundary))
        details = [(e * b).sum() / max(1, b.sum()) for e, b in zip((x.sigmoid() - t).abs(), a)]
        terms = {"matte": (F.softplus(x) - x * t).mean(), "detail": sum(details) / len(details),
                 "laplacian": laplacian_loss(x.sigmoid(), t),
                 "boundary": (F.softplus(y) - y * a).mean()}
        return dict(terms, total=sum(terms.values()))""",
    10: """
        net = copy.deepcopy(net)
        for stage in [s for s in net.children() if isinstance(s, nn.Sequential)]:
            c, b = stage[:2]
            scale = b.weight / torch.sqrt(b.running_var + b.eps)
            c.weight = nn.Parameter(c.weight * scale.view(-1, 1, 1, 1))
            c.bias, stage[1] = nn.Parameter(b.bias - b.running_mean * scale), nn.Identity()
        return net"""}
LIGHT = "image = degrade(image, rng)"
BUGS = {  # number: (text that mlb.py holds once, the bug, a test that notices it)
    1: ("return alpha * foreground +", "return alpha * (alpha * foreground) +",
        "test_a_person_stands_before_a_background_exercise05"),
    2: ("height, width, _ = whole.shape", "width, height, _ = whole.shape",
        "test_a_window_is_a_square_anywhere_in_its_picture"),
    3: ("batch[key].to(device, non_blocking=True) / 255",
        "batch[key].to(device, non_blocking=True).float()", "test_what_the_loss_is_given"),
    4: ("AdamW(net.parameters(),", "AdamW(list(net.parameters())[:-2],",  # without the head
        "test_what_learns_and_what_does_not"),
    5: (LIGHT, LIGHT + "\n        target = degrade(np.stack([target] * 3, 2), rng)[0]",
        "test_labels_of_samples_exercise05"),
    6: ("boundary.sum((1, 2, 3)).clamp(min=1)", "boundary.sum((1, 2, 3))",
        "test_loss_of_a_plain_picture_and_under_autocast_exercise09"),
    7: (LIGHT, "image = degrade(image[..., [2, 1, 0]], rng)",  # BGR
        "test_a_person_stands_before_a_background_exercise05"),
    8: ("    run()\n    wait()\n", "    run()\n", "test_seconds_of_a_call"),
    9: ("entropy_with_logits(matte_logits, target)", "entropy_with_logits(matte, target)",
        "test_mlb_loss_by_hand_exercise09"),
    10: ("return alpha_t * M_t + (1 - alpha_t) * S", "return alpha_t * S + (1 - alpha_t) * M_t",
         "test_blend_exercise03"),
    11: (LIGHT, "image = image[:, ::-1] if rng.random() < 0.5 else image\n        " + LIGHT,
         "test_labels_of_samples_exercise05")}

def source(): return (HERE / "mlb.py").read_bytes().decode()  # line ends as they are

def with_hole(number, answer=None):
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
    text = "\n".join(lines)
    for told in TOLD.get(number, ()): text = text.replace(told, "...")
    return text

def with_bug(number):
    (old, new, _), text = BUGS[number], source()
    assert text.count(old) == 1, f"bug {number}: mlb.py holds {old!r} {text.count(old)} times"
    return text.replace(old, new)

def write(arguments):
    tables = {"hole": (HOLES, with_hole), "bug": (BUGS, with_bug)}
    match arguments:
        case [("hole" | "bug") as kind, number] if number in map(str, tables[kind][0]):
            sys.stdout.buffer.write(tables[kind][1](int(number)).encode())  # UTF-8 in any locale
            return 0
    print("usage: python test_mlb.py hole 1..10 | bug 1..11 > my_mlb.py", file=sys.stderr)
    return 2

def call(name, text, folder):
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

@slow
@cases("number", HOLES)
def test_a_hole_is_red_until_it_is_filled_rightly(number, tmp_path):
    whole, holed = source(), with_hole(number)
    for told in TOLD.get(number, ()):
        assert told in whole and told not in holed, f"the answer is told: {told}"
    for name in [name for name in globals() if name.endswith(f"_exercise{number:02}")]:
        with raises(NotImplementedError, match=f"Exercise {number}: "):
            call(name, holed, tmp_path / "red" / name)
        call(name, whole, tmp_path / "book" / name)
        call(name, with_hole(number, PLAIN[number]), tmp_path / "plain" / name)

@slow
@cases("number", BUGS)
def test_a_bug_is_noticed(number, tmp_path, capsysbinary):
    assert write(["bug", str(number)]) == 0 and write(["bug", "12"]) == 2
    assert capsysbinary.readouterr().out == with_bug(number).encode()
    assert max(map(len, with_bug(number).split("\n"))) <= 100, "it looks like its neighbours"
    call(BUGS[number][2], source(), tmp_path / "without")
    with raises(AssertionError): call(BUGS[number][2], with_bug(number), tmp_path / "with")

# ---------------------------------------------------------------- slow ones: over 5 seconds each
@slow
@cases("size", [128, 160])
def test_samples_are_the_same_bits_whatever_threads_and_workers(size):
    text = """import hashlib
data, digest = mlb.open_data(o := mlb.parse(["train", "--size", sys.argv[1]])), hashlib.sha256()
m = mlb.Mixer(data["mattes"], data["backgrounds"], data["masks"], 0.5, o.size, 1, True)
for s in torch.utils.data.DataLoader(m, batch_sampler=[[k] for k in range(200)],
                                     num_workers=int(sys.argv[2])):
    digest.update(b"".join(s[key].numpy().tobytes() for key in ("image", "target", "mask")))
print(digest.hexdigest())"""
    found = [script(text, size, workers, env=os.environ | {"OMP_NUM_THREADS": threads})
             .communicate() for threads, workers in (("1", 0), ("2", 0), ("2", 2))]
    assert len(found[0][0]) == 65 and len({out for out, _ in found}) == 1, found

@slow
def test_killed_at_any_moment_it_goes_on_to_the_same_weights(toy, tmp_path):
    plain, out, more = tmp_path / "plain", tmp_path / "out", ["--steps", 40, "--teacher-steps", 30]
    given = ("mlb.SAVE_SECONDS = -1\nsys.exit(mlb.main(sys.argv[1:]))",
             *tiny("train", toy, out, *more, "--resume"))
    assert main(*tiny("train", toy, plain, *more, "--workers", 2)) == 0, "workers change nothing"
    for lines in (3, 21, 17, 14):  # of progress, then some milliseconds more
        child = script(*given)
        for _ in range(lines): child.stdout.readline()
        time.sleep(0.003 * lines)
        child.kill()
        child.communicate()
    child = script(*given)
    assert "| MLB " in child.communicate()[0] and child.returncode == 0
    assert all(torch.equal(weights(out, x), weights(plain, x)) for x in ("teacher.0", "MLB.0"))

@slow
def test_the_student_beats_the_teacher(tmp_path):
    assert main("train", "--out", tmp_path, "--size", 64, "--teacher-steps", 120, "--steps", 200,
                "--device", "cpu") == 0
    scores = json.loads((tmp_path / "metrics.json").read_text())
    mse = {row: seeds[0]["MSE"] for row, seeds in scores.items()}
    assert mse["MLB"] < 0.7 * mse["teacher"] and mse["labels B"] < mse["labels S"], mse

RANKS = f"""import sys, torch, {NAME} as mlb
conv = mlb.conv  # batch norm in eval mode, since each rank has statistics of its own
mlb.conv = lambda *given, **more: conv(*given, **more).eval()
sys.exit(mlb.main(sys.argv[1:]))"""

@slow
def test_two_ranks_learn_what_one_learns(toy, tmp_path):
    (tmp_path / "ranks.py").write_text(RANKS)
    env, curves = os.environ | {"PYTHONPATH": f"{os.getcwd()}:{HERE}", "OMP_NUM_THREADS": "1"}, []
    for ranks in (1, 2):
        run = tiny("train", toy, out := tmp_path / f"{ranks}", "--steps", 20, "--teacher-steps", 20)
        torchrun = f"-m torch.distributed.run --standalone --nproc_per_node {ranks}".split()
        done = subprocess.run([sys.executable, *torchrun, str(tmp_path / "ranks.py"), *run],
                              text=True, capture_output=True, timeout=120, env=env)
        assert done.returncode == 0 and len(list(out.iterdir())) == 9, done.stderr
        curves.append(log(out / "teacher.0.csv")["total"] + log(out / "MLB.0.csv")["total"])
    same(curves[1], curves[0], 1e-4)

@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_trains_benches_and_mattes(toy, tmp_path):
    run = tiny("train", toy, tmp_path / "out", "--workers", 2, "--device", "cuda")
    assert main(*run) == 0 and state(tmp_path / "out/MLB.0.pt")["scaler"], "fp16 is the default"
    given = ["--weights", tmp_path / "out/MLB.0.pt", "--device", "cuda"]
    assert main("bench", "--size", 64, *given) == 0
    assert main("matte", toy / "test/image/0.jpg", "--out", tmp_path / "cut", *given) == 0

if __name__ == "__main__": sys.exit(write(sys.argv[1:]))
