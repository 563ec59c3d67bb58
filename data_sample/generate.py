# SPDX-License-Identifier: MIT
"""Draw the sample data: people with exact mattes, in the two kinds that Matte Label Blending mixes.

    matte/          D_m: a few cut-outs with exact mattes, and unrelated smooth backgrounds
    segmentation/   D_s: many natural pictures with coarse masks (mattes: to measure, upper bound)
    test/           natural pictures with exact mattes

Everything is drawn, so every matte is exact: a person is painted at SCALE times the final size,
strand by strand, and averaged down to a colour F and a coverage alpha; a picture is then
alpha * F + (1 - alpha) * scene, before the camera adds its noise. D_m stands people in even studio
light; natural pictures give person and scene one light, and fill the scene with what is easily
taken for a person or for hair (posters, busts, coats, mops, reed, trees): D_m cannot teach those.
"""
import argparse
import copy
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SCALE = 4  # people are painted this much larger: a strand one stroke wide covers 1/4 pixel
COUNTS = {"foreground": 30, "background": 24, "segmentation": 120, "test": 128}
SHAPES = [(192, 240), (192, 192), (240, 192)]  # (width, height) of natural pictures
PALETTES = np.array(list(bytes.fromhex(  # wall, light, 4 accents
    "f0dfc8 faf3e6 c96f4a 2f6f73 e0a83e 2b3a55  b4c7aa f2efe6 3f5f4a b3553a d9c2a0 6b4257"
    "b9cfdd f6f4f1 4c6a8d e5826a f0d27a 3d4656  cdc4dd f5efe8 6f5b8f d98a9e 9a9a66 34304a"
    "c3ded0 f6d3bc 2f7d67 a8483a e3b05f 5d4237  d4d6d6 f7f3ee 43474d d95f4b 8fb8d4 f2dca0"
))).reshape(6, 6, 3)
SKINS = np.array(list(bytes.fromhex("f6d0b4 ebbc9b d6a07a b27a56 84563c 603e2e"))).reshape(6, 3)
HAIRS = np.array(list(bytes.fromhex("221b1c3e2a20623e268c4e2acea462b0aca8e2c48c"))).reshape(7, 3)
GREENS = np.array([(88, 132, 84), (122, 150, 82), (178, 128, 70), (74, 112, 92)])
CURLS = {"short": 0.1, "long": 0.1, "bun": 0.1, "tail": 0.1, "wavy": 0.9, "curly": 1.5, "afro": 1.9}


def blur(field, sigma):
    """Gaussian blur of an (H, W) or (H, W, C) float array, edges repeated."""
    reach = int(np.ceil(3 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).tolist()
    for _ in range(2):  # down the columns, then, turned over, along the rows
        padded = np.pad(field, [(reach, reach)] + [(0, 0)] * (field.ndim - 1), mode="edge")
        field = sum(k * padded[i:i + len(field)] for i, k in enumerate(kernel)).swapaxes(0, 1)
    return field


def rounded(outline):
    """Cut an outline's corners three times (Chaikin). Outlines are (N, 2), clockwise, y down."""
    for _ in range(3):
        after = np.roll(outline, -1, 0)
        cut = [0.75 * outline + 0.25 * after, 0.25 * outline + 0.75 * after]
        outline = np.stack(cut, 1).reshape(-1, 2)
    return outline


def mirrored(*half):
    """The smooth outline whose right half runs down through these points."""
    half = np.array(half)
    return rounded(np.concatenate([half, half[::-1] * (-1, 1)]))


def limb(*joints, widths):
    """A smooth tube through the joints, `widths` thick at its two ends."""
    path = np.array(joints, float)
    along = np.gradient(path, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    side = along[:, ::-1] * (1, -1) * np.linspace(*widths, len(path))[:, None] / 2
    return rounded(np.concatenate([path + side, (path - side)[::-1]]))


def oval(x, y, rx, ry, start=0, stop=360, count=24):
    """Points on an ellipse between two angles (degrees, clockwise from the right)."""
    a = np.radians(np.linspace(start, stop, count, endpoint=stop - start < 360))
    return np.stack([x + rx * np.cos(a), y + ry * np.sin(a)], 1)


class Canvas:
    """An RGBA `image` at `scale` times `size`; `light` is its direction (x, y) and strength."""

    def __init__(self, rng, size, light, scale):
        self.rng, self.size, self.light, self.scale = rng, size, light, scale
        self.image = Image.new("RGBA", (size[0] * scale, size[1] * scale))
        self.origin, self.axes, self.unit = np.zeros(2), np.eye(2), 1.0

    def frame(self, x, y, unit, side=1, tilt=0.0):
        """The same canvas, its origin at (x, y), `unit` long units; side -1 mirrors it."""
        view = copy.copy(self)
        turn = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
        view.origin, view.unit = self.pixels((x, y)), self.unit * unit
        view.axes = unit * np.diag([side, 1.0]) @ turn @ self.axes
        return view

    def pixels(self, points):
        """Where points (..., 2) of the frame lie in the final picture."""
        return np.asarray(points, float) @ self.axes + self.origin

    def shape(self, outline, paint):
        """Fill an outline with a colour or a cloth(x, y), its rim brighter where it faces light."""
        points = self.pixels(outline)
        low = np.clip(np.floor(points.min(0)) - 6, 0, self.size).astype(int)
        w, h = (np.clip(np.ceil(points.max(0)) + 6, 0, self.size).astype(int) - low).tolist()
        if min(w, h) < 2:  # off the picture
            return
        mask = Image.new("L", (w * self.scale, h * self.scale))
        ImageDraw.Draw(mask).polygon(((points - low) * self.scale).ravel().tolist(), fill=255)
        inside = np.asarray(mask.reduce(self.scale), np.float32) / 255
        reach = float(np.clip(0.11 * np.ptp(points, axis=0).min(), 0.7, 8))
        slope_y, slope_x = np.gradient(blur(inside, reach))
        lx, ly, strength = self.light
        shade = 1 - 1.3 * strength * reach * (slope_x * lx + slope_y * ly)
        if callable(paint):
            y, x = np.mgrid[:h, :w]
            paint = paint(x + low[0], y + low[1])
        tile = Image.fromarray(np.clip(paint * shade[..., None], 0, 255).astype(np.uint8))
        tile = tile.resize(mask.size).convert("RGBA")
        self.image.paste(tile, tuple((low * self.scale).tolist()), mask)

    def strands(self, roots, angles, lengths, colour, curl=0.0, fall=0.0):
        """The finest strokes, one from each root (N, 2), that bend, curl and fall as they go."""
        rng, pen, count = self.rng, ImageDraw.Draw(self.image), len(roots)
        steps = 14 if curl > 0.5 else 7
        s = np.linspace(0, 1, steps)
        turn = angles[:, None] + rng.normal(0, 0.45, (count, 1)) * s
        turn = turn + curl * np.sin(9 * s + rng.uniform(0, 6.3, (count, 1)))
        step = np.stack([np.cos(turn), np.sin(turn) + fall * s], -1)
        curves = roots[:, None] + np.cumsum(step * (lengths / steps)[:, None, None], 1)
        curves = (self.pixels(curves) * self.scale).reshape(count, -1).tolist()
        tones = np.clip(np.outer(rng.normal(1.0, 0.2, count), colour), 0, 255).astype(int)
        for curve, tone in zip(curves, tones.tolist()):
            pen.line(curve, fill=(*tone, 255))

    def hair(self, outline, colour, length, curl=0.0, lean=0.0, fall=0.0, tips=1.0):
        """A mass, strands along its normals (lean 0) or outline (1), `tips` as long at the face."""
        self.shape(outline, colour)
        edge = np.roll(outline, -1, 0) - outline
        span = np.linalg.norm(edge, axis=1) + 1e-6
        count = int(3.7 * span.sum() * self.unit * self.scale)
        chosen = self.rng.choice(len(span), count, p=span / span.sum())
        roots = outline[chosen] + edge[chosen] * self.rng.random((count, 1))
        tangent = edge[chosen] / span[chosen, None]
        normal = tangent[:, ::-1] * (1, -1)
        way = (1 - lean) * normal + lean * tangent * np.where(tangent[:, 1:] < 0, -1, 1)
        angles = np.arctan2(way[:, 1], way[:, 0]) + self.rng.normal(0, 0.3, count)
        lengths = np.minimum(self.rng.exponential(1.7 * length, count), 4 * length)
        lengths *= np.where((normal[:, 1] > 0.4) | (way[:, 0] * roots[:, 0] < 0), tips, 1.0)
        depth = self.rng.uniform(0.3, 2.3, (count, 1)).clip(max=1)  # a third grows further in
        roots = outline.mean(0) + (roots - outline.mean(0)) * depth
        self.strands(roots, angles, lengths, colour, curl, fall)

    def average(self, sigma):
        """(colour times coverage (H, W, 3), coverage (H, W)) in 0..1, final size, blurred."""
        (w, h), n = self.size, self.scale
        rgba = np.asarray(self.image, np.float32) / 255  # a pixel is all 0 where nothing is painted
        rgba = blur(rgba.reshape(h, n, w, n, 4).mean((1, 3)), sigma)
        return rgba[..., :3], rgba[..., 3]


def cloth(rng, palette):
    """Plain, striped or checked: a function of pixel positions (H, W) that gives colours."""
    first, second = rng.permutation(palette)[:2]
    pitch, stripes, checks = rng.uniform(4, 10), rng.choice([0, 0, 0.5]), rng.choice([0, 0.4])

    def paint(x, y):
        mix = stripes * (np.sin(y * 6.3 / pitch) > 0) + checks * (np.sin(x * 6.3 / pitch) > 0)
        return first + (second - first) * mix[..., None]
    return paint


def place(rng, size):
    """Where a person stands in a picture: x and y of the head's centre, and its height, in px."""
    w, h = size
    unit = rng.uniform(0.30, 0.44) * min(h, 1.1 * w)
    return w * rng.uniform(0.35, 0.65), h * rng.uniform(0.06, 0.13) + 0.70 * unit, unit


class Person(Canvas):
    """One person on a clear canvas at `spot` (see `place`), in units of the head's height."""

    def __init__(self, rng, size, light, spot, scale=SCALE):
        super().__init__(rng, size, light, scale)
        tone, self.style = rng.integers(6), rng.choice(list(CURLS))
        self.skin, self.colour = SKINS[tone], HAIRS[rng.integers(7 if tone < 3 else 3)]
        self.ways = {"curl": CURLS[self.style], "fall": 0.2 if self.style == "afro" else 0.7}
        self.reach = rng.uniform(0.75, 1.35)  # how far down long hair comes
        body = self.frame(*spot, side=rng.choice([-1, 1]))
        head = body.frame(0, 0, 1, tilt=rng.normal(0, 0.10))
        head.hair_behind()
        body.body(cloth(rng, rng.choice(PALETTES)))
        head.face()
        head.hair_in_front()

    def hair_behind(self):
        """What hangs, stands or is tied behind the body."""
        y = np.arange(0, self.reach, 0.17)
        x = 0.5 + 0.06 * self.ways["curl"] + self.rng.normal(0, 0.025, len(y))
        long = mirrored((0, -0.60), (0.36, -0.46), *zip(x, y), (0.25, self.reach + 0.1))
        tail = limb((0.2, -0.4), (0.6, -0.3), (0.7, 0.2), (0.6, self.reach), widths=(0.3, 0.2))
        outlines = {"short": oval(0, -0.1, 0.4, 0.4), "bun": oval(0.05, -0.68, 0.21, 0.18),
                    "tail": tail, "afro": oval(0, -0.16, 0.58, 0.56)}
        self.hair(outlines.get(self.style, long), self.colour * 0.85, 0.09, lean=0.5, **self.ways)

    def body(self, top):
        """Torso, neck, sometimes a fluffy collar, arms that hang, rest on the hip or are raised."""
        rng, broad = self.rng, self.rng.uniform(0.82, 1.02)
        self.shape(mirrored((0.2, 0.66), (0.52, 0.78), (broad, 0.95), (broad - 0.04, 1.35),
                            (0.66, 2.0), (0.76, 2.7), (0.76, 7.0)), top)
        self.shape(mirrored((0.17, 0.3), (0.19, 0.64), (0.32, 0.74), (0.12, 1)), self.skin * 0.85)
        if rng.random() < 0.25:
            collar = limb((-0.5, 0.8), (-0.3, 1.0), (0.3, 1.0), (0.5, 0.8), widths=(0.26, 0.26))
            self.hair(collar, rng.choice(HAIRS), 0.06, curl=0.8)
        poses = [((1.02, 1.95), (0.98, 2.9)), ((1.42, 1.8), (0.74, 2.35)),
                 ((1.36, 1.35), (1.28, 0.45))]
        for s in (-1, 1):
            elbow, wrist = rng.choice(poses, p=[0.5, 0.3, 0.2]) * (s, 1)
            self.shape(oval(*(wrist + 0.2 * (wrist - elbow)), 0.14, 0.17), self.skin)
            self.shape(limb((s * (broad - 0.14), 1.06), elbow, wrist, widths=(0.36, 0.21)), top)

    def face(self):
        """The head with eyes, brows and mouth."""
        turn, jaw = self.rng.uniform(-0.08, 0.08), self.rng.uniform(0.24, 0.31)
        self.shape(mirrored((0.25, -0.5), (0.40, -0.2), (0.38, 0.15), (jaw, 0.4), (0.1, 0.52)),
                   self.skin)
        for x in (turn - 0.155, turn + 0.155):
            self.shape(oval(x, 0.045, 0.062, 0.036), (250, 247, 243))
            self.shape(oval(x + turn * 0.2, 0.04, 0.033, 0.036), (46, 34, 34))
            brow = limb(*oval(x, -0.02, 0.1, 0.06, 210, 330, 5), widths=(0.03, 0.03))
            self.shape(brow, self.colour * 0.6)
        smile = limb(*oval(turn, 0.25, 0.12, 0.085, 25, 155, 6), widths=(0.035, 0.035))
        self.shape(smile, (160, 72, 70))

    def hair_in_front(self):
        """The cap, single strands that fly away, locks over the shoulders."""
        rng, ways = self.rng, self.ways
        cap = mirrored((0, -0.64), (0.3, -0.52), (0.45, -0.2), (0.42, 0.08), (0.36, -0.12),
                       (0.24, -0.25), (0, -0.34))
        self.hair(cap, self.colour, 0.07, lean=0.4, tips=0.3, **ways)
        angles = np.radians(np.linspace(170, 370, 240)) + rng.normal(0, 0.6, 240)
        ring = oval(0, -0.1, 0.42, 0.46, 170, 370, 240)
        self.strands(ring, angles, rng.uniform(0.1, 0.4, 240), self.colour, **ways)
        for s in (-1, 1) if self.style in ("long", "wavy", "curly") else ():
            end = (s * rng.uniform(0.42, 0.56), self.reach)
            lock = limb((s * 0.41, -0.12), (s * 0.47, 0.4), end, widths=(0.15, 0.24))
            self.hair(lock, self.colour, 0.11, lean=0.75, tips=0.5, **ways)


def likeness(c):
    """A person in two colours: a poster on the wall or a bust on a pedestal."""
    size = int(1.6 * c.unit), int(1.8 * c.unit)
    spot = 0.8 * c.unit, 0.85 * c.unit, 0.72 * c.unit
    drawn, flat = Person(c.rng, size, c.light, spot, c.scale).image, c.rng.random() < 0.5
    dark, pale = np.array([(68, 60, 58), (244, 220, 196)]) * c.rng.uniform(0.7, 1.0, 3)
    grey = np.asarray(drawn.convert("L"))[..., None] / 255
    inked = Image.fromarray((dark + (pale - dark) * grey).astype(np.uint8)).convert("RGBA")
    if not flat:
        c.shape(limb((0, -1.5), (0, 0.3), widths=(1.6, 1.6)), pale)
    corner = (c.pixels((-0.8, -4.0 if flat else -3.1)) * c.scale).astype(int).tolist()
    c.image.paste(inked, tuple(corner), None if flat else drawn.getchannel("A"))


def coat(c):
    """A coat on a hook, with a fur collar."""
    fabric = cloth(c.rng, c.rng.choice(PALETTES))
    for s in (-0.7, 0.7):
        c.shape(limb((0.6 * s, -3.0), (s, -2.3), (s, -1.4), widths=(0.3, 0.3)), fabric)
    c.shape(mirrored((0.1, -3.3), (0.65, -3.0), (0.55, -1.0)), fabric)
    c.hair(oval(0, -3.1, 0.35, 0.14), c.rng.choice(HAIRS), 0.06)


def mop(c):
    """A mop that stands on its stick, or a tuft of reed."""
    c.shape(limb((0, 0), (0.1, -2.6), widths=(0.08, 0.08)), (176, 132, 90))
    yarn = c.rng.choice(np.concatenate([HAIRS, GREENS]))
    c.hair(oval(0, -2.7, 0.42, 0.55), yarn, 0.16, curl=0.4, lean=0.7, fall=0.8)


def tree(c):
    """A tree with leaves as fine as curls."""
    c.shape(limb((0, 0), (0, -3.0), widths=(0.5, 0.3)), c.rng.choice(SKINS[3:]))
    leaves = c.rng.choice(GREENS)
    for x, y, r in ((-0.8, -2.8, 0.8), (0.8, -2.9, 0.8), (0, -3.5, 1.0), (0.1, -2.7, 0.7)):
        c.hair(oval(x, y, r, 0.85 * r), leaves * c.rng.uniform(0.85, 1.1), 0.09, curl=1.5)


def scene(rng, size, light, spot):
    """A room or a garden; a far and a near thing, each at (0, 0) of its frame, beside `spot`."""
    c, (x, _, unit), (w, h) = Canvas(rng, size, light, scale=2), spot, size
    (wall, pale), ground = rng.choice(PALETTES)[:2], int(h * rng.uniform(0.74, 0.86))
    inside, green = rng.random() < 0.6, rng.choice(GREENS)
    floor = SKINS[2] * rng.uniform(0.6, 1.0) if inside else green
    for top, colour in ((0, wall), (ground - 4, pale), (ground, floor)):
        c.image.paste(tuple(colour.astype(int)), (0, 2 * top, 2 * w, 2 * h))
    if not inside:
        roots = np.stack([rng.uniform(0, w, 900), rng.uniform(ground, h + 9, 900)], 1)
        c.strands(roots, rng.normal(-1.57, 0.3, 900), rng.uniform(3, 25, 900), green)
    for near in (0.0, 0.6):
        at = x + rng.choice([-1, 1]) * rng.uniform(1.2, 2.2) * unit
        base = ground + near * rng.random() * (h - ground)
        draw = rng.choice([likeness, coat if inside else tree, mop], p=[0.4, 0.4, 0.2])
        draw(c.frame(at, base, unit * rng.uniform(0.45, 0.65)))
    return c


def backdrop(rng, w, h):
    """A smooth background (H, W, 3) in 0..1 with nothing in it: two colours in clouds."""
    first, second = rng.permutation(rng.choice(PALETTES))[:2] / 255
    cloud = blur(rng.normal(size=(h, w)), rng.uniform(6, 40))
    mix = np.clip(0.5 + 0.3 * (cloud - cloud.mean()) / cloud.std(), 0, 1)[..., None]
    return first * (1 - mix) + second * mix


def contours(inside):
    """Closed outlines [(N, 2) corner positions x, y] of a bool (H, W); holes run the other way."""
    padded, after, loops = np.pad(inside, 1), {}, []
    for shift, (ax, ay), (bx, by) in (((1, 0), (0, 0), (1, 0)), ((0, -1), (1, 0), (1, 1)),
                                      ((-1, 0), (1, 1), (0, 1)), ((0, 1), (0, 1), (0, 0))):
        for y, x in np.argwhere(padded & ~np.roll(padded, shift, (0, 1))).tolist():
            after[x + ax, y + ay] = (x + bx, y + by)
    while after:
        at, loop = next(iter(after)), []
        while at in after:
            loop.append(at)
            at = after.pop(at)
        loops.append(np.array(loop, float) - 1)
    return loops


def coarse_mask(rng, alpha):
    """What a hurried annotator clicks, (H, W) bool, for a matte (H, W) in 0..1: the solid person's
    outline, without the fringe of hair, in segments of 10 to 16 px between clicks that miss."""
    solid = blur((blur(alpha, 1) > 0.76).astype(np.float32), 2) > 0.5
    mask = Image.new("1", alpha.shape[::-1])
    for loop in sorted(contours(np.pad(solid, 20, mode="edge")), key=len, reverse=True):
        clicks = np.cumsum(rng.integers(10, 17, len(loop) // 10))
        points = loop[clicks[clicks < len(loop)]]
        x, y = (points - 20.5 + rng.normal(0, 0.8, points.shape)).T
        area = 0.5 * np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))  # of a hole it is negative
        if abs(area) > 100:
            ImageDraw.Draw(mask).polygon(list(zip(x, y)), fill=int(area > 0))
    return np.asarray(mask)


def cutout(rng, size):
    """A studio shot: straight colour (H, W, 3), continued beyond the outline, and matte (H, W)."""
    canvas = Person(rng, size, (0.0, -1.0, 0.35), place(rng, size))
    colour, alpha = canvas.average(rng.choice([0.4, 0.5, 0.8]))
    total, weight = colour.copy(), alpha[..., None].copy()
    for reach in (1, 2, 4, 8, 16, 32):  # a pixel with hardly a colour takes its neighbours'
        missing = np.clip(1 - 8 * weight, 0, 1)
        total += missing * blur(colour, reach)
        weight += missing * blur(alpha, reach)[..., None]
    return total / np.maximum(weight, 1e-6), alpha


def photograph(rng):
    """A natural picture (H, W, 3) and its matte (H, W), in 0..1: person and scene share a light."""
    w, h = size = SHAPES[rng.integers(3)]
    angle, spot = rng.uniform(-2.7, -0.45), place(rng, size)
    light = np.cos(angle), np.sin(angle), rng.uniform(0.5, 0.9)
    sharp = rng.choice([0.45, 0.55, 0.8])
    around, _ = scene(rng, size, light, spot).average(sharp + 0.3)
    colour, alpha = Person(rng, size, light, spot).average(sharp)
    picture = colour + (1 - alpha[..., None]) * around
    # The light of the place falls on both alike: tint, brightness, fall-off, vignette
    y, x = np.mgrid[-1:1:h * 1j, -1:1:w * 1j]
    falloff = 1 + 0.14 * (x * light[0] + y * light[1]) - 0.10 * (x ** 2 + y ** 2)
    tint = rng.uniform(0.85, 1.08) + rng.normal(0, 1) * np.array((0.07, 0.01, -0.08))
    return picture * falloff[..., None] * tint + rng.normal(0, 0.01, picture.shape), alpha


def main():
    """Write all pictures, each a function of the seed, the split and its index alone."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for split, (part, count) in enumerate(COUNTS.items()):
        for index in range(count):
            rng = np.random.default_rng([args.seed, split, index])
            if part == "background":
                drawn = {"matte/background": backdrop(rng, 240, 240)}
            elif part == "foreground":
                drawn = dict(zip(("matte/foreground", "matte/alpha"), cutout(rng, SHAPES[0])))
            else:
                drawn = dict(zip((f"{part}/image", f"{part}/alpha"), photograph(rng)))
            if part == "segmentation":
                drawn["segmentation/mask"] = coarse_mask(rng, drawn[f"{part}/alpha"])
            for name, picture in drawn.items():
                path = args.folder / name / f"{index:03d}.{'jpg' if picture.ndim == 3 else 'png'}"
                path.parent.mkdir(parents=True, exist_ok=True)
                if picture.dtype != bool:
                    picture = np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)
                Image.fromarray(picture).save(path, quality=86, optimize=True)


if __name__ == "__main__":
    main()
