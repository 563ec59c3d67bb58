# SPDX-License-Identifier: MIT
"""Draw the sample data: people with exact mattes, in the two kinds that Matte Label Blending mixes.

    matte/          D_m: a few cut-outs with exact mattes, and unrelated smooth backgrounds
    segmentation/   D_s: many natural pictures with coarse masks (the mattes are for measuring only)
    test/           natural pictures with exact mattes

Everything is drawn, so every matte is exact: a person is painted at SCALE times the final size,
strand by strand, and averaged down to a colour F and a coverage alpha; a picture is then
alpha * F + (1 - alpha) * scene, before the camera adds its noise. D_m stands people in even studio
light; natural pictures give person and scene one light, and fill the scene with what is easily
taken for a person or for hair (posters, busts, coats, mops, fur): D_m cannot teach those.
"""
import argparse
import copy
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SCALE = 4  # people are painted this much larger: a strand one stroke wide covers 1/4 pixel
COUNTS = {"foreground": 12, "background": 24, "segmentation": 96, "test": 32}
SHAPES = [(192, 240), (192, 192), (240, 192)]  # (width, height) of natural pictures
PALETTES = [[tuple(bytes.fromhex(c)) for c in row.split()] for row in (  # wall, light, 4 accents
    "f0dfc8 faf3e6 c96f4a 2f6f73 e0a83e 2b3a55", "b4c7aa f2efe6 3f5f4a b3553a d9c2a0 6b4257",
    "b9cfdd f6f4f1 4c6a8d e5826a f0d27a 3d4656", "cdc4dd f5efe8 6f5b8f d98a9e 9a9a66 34304a",
    "c3ded0 f6d3bc 2f7d67 a8483a e3b05f 5d4237", "d4d6d6 f7f3ee 43474d d95f4b 8fb8d4 f2dca0")]
SKINS = [(246, 208, 180), (235, 188, 155), (214, 160, 122), (178, 122, 86), (132, 86, 60),
         (96, 62, 46)]
HAIRS = [(34, 27, 28), (62, 42, 32), (48, 36, 44), (98, 62, 38),  # the dark ones first
         (140, 78, 42), (206, 164, 98), (176, 172, 168), (226, 196, 140)]
STYLES = ["short", "long", "curly", "bun", "ponytail", "afro", "wavy", "bald"]
WEAVES = [  # share of the second colour at u, v, phases across and along the cloth
    lambda u, v: 0 * u, lambda u, v: 1.0 * (np.sin(u) > 0.2),
    lambda u, v: 0.45 * (np.sin(u) > 0) + 0.45 * (np.sin(v) > 0),
    lambda u, v: 1.0 * (np.cos(u) + np.cos(v) > 1.2),
    lambda u, v: 0.3 + 0.3 * np.sin(2.2 * v + 2 * np.abs(np.sin(u))),
    lambda u, v: 0.15 * (np.sin(3 * u) > 0)]


def pick(rng, items):
    return items[rng.integers(len(items))]


# ---------------------------------------------------------------------------------------- geometry

def blur(field, sigma):
    """Gaussian blur of an (H, W) or (H, W, C) float array, edges repeated."""
    reach = int(np.ceil(3 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    for axis in (0, 1):
        pad = [(reach, reach) if a == axis else (0, 0) for a in range(field.ndim)]
        padded, size = np.pad(field, pad, mode="edge"), field.shape[axis]
        field = sum(k * (padded[i:i + size] if axis == 0 else padded[:, i:i + size])
                    for i, k in enumerate((kernel / kernel.sum()).tolist()))
    return field


def rounded(points, closed=True):
    """Cut the corners of an (N, 2) polyline three times (Chaikin): a smooth curve near it."""
    points = np.asarray(points, float)
    for _ in range(3):
        after = np.roll(points, -1, 0) if closed else points[1:]
        start = points if closed else points[:-1]
        cut = np.stack([0.75 * start + 0.25 * after, 0.25 * start + 0.75 * after], 1).reshape(-1, 2)
        points = cut if closed else np.concatenate([points[:1], cut, points[-1:]])
    return points


def area(loop):
    """Signed area of a closed (N, 2) polygon, positive when it runs clockwise on the screen."""
    x, y = loop.T
    return 0.5 * np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))


def limb(joints, widths):
    """Outline (N, 2) of a smooth tube through `joints`, `widths` thick at its two ends."""
    path = rounded(joints, closed=False)
    along = np.gradient(path, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-6
    side = along[:, ::-1] * (1, -1) * np.linspace(*widths, len(path))[:, None] / 2
    around = np.radians([-60, -30, 0, 30, 60])[:, None]  # round ends
    ends = [np.cos(around) * a * w / 2 + np.sin(around) * b for a, w, b in
            ((along[-1], widths[1], -side[-1]), (-along[0], widths[0], side[0]))]
    return np.concatenate([path + side, path[-1] + ends[0], (path - side)[::-1], path[0] + ends[1]])


def oval(x, y, rx, ry, start=0.0, stop=360.0, count=24):
    """Points (count, 2) on an ellipse between two angles (degrees, clockwise from the right)."""
    a = np.radians(np.linspace(start, stop, count, endpoint=stop - start < 360))
    return np.stack([x + rx * np.cos(a), y + ry * np.sin(a)], 1)


def rect(left, top, right, bottom):
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], float)


# ---------------------------------------------------------------------------------------- painting

class Canvas:
    """Colour `rgb` and coverage `cover` at `scale` times `size` (w, h) px.

    Points and lengths are in units of a frame, at first a pixel of the final size (see `frame`).
    `light` is the direction it comes from (x, y), and how strong a relief it gives.
    """

    def __init__(self, size, light, scale=SCALE):
        self.size, self.light, self.scale = size, light, scale
        self.rgb = Image.new("RGB", (size[0] * scale, size[1] * scale))
        self.cover = Image.new("L", self.rgb.size, 0)
        self.pens = ImageDraw.Draw(self.rgb), ImageDraw.Draw(self.cover)
        self.origin, self.unit, self.side = (0, 0), 1, 1

    def frame(self, x, y, unit, side=1):
        """The same canvas, with its origin at (x, y) and `unit` px for a unit; side -1 mirrors."""
        view = copy.copy(self)
        view.origin, view.unit, view.side = (x, y), unit, side
        return view

    def pixels(self, points):
        return np.asarray(points, float) * (self.unit * self.side, self.unit) + self.origin

    def shape(self, points, paint, relief=1.0, shadow=0.0):
        """Fill a polygon with a colour or a cloth(x, y); `relief` and `shadow` tell how strongly
        the light rounds it and how dark (0..1) a shadow it throws on what is there already."""
        points, size = self.pixels(points), np.array(self.size)
        low = np.clip(np.floor(points.min(0)) - 6, 0, size).astype(int)
        high = np.clip(np.ceil(points.max(0)) + 6, 0, size).astype(int)
        if (high - low < 2).any():  # off the picture
            return
        (w, h), corner = (int(v) for v in high - low), tuple(int(v) for v in low * self.scale)
        mask = Image.new("L", (w * self.scale, h * self.scale))
        ImageDraw.Draw(mask).polygon(((points - low) * self.scale).ravel().tolist(), fill=255)
        inside = np.asarray(mask.reduce(self.scale), np.float32) / 255
        if shadow:
            dim = np.pad(blur(inside, 2.5), ((2, 0), (0, 0)))[:h] * shadow * 255
            dim = Image.fromarray(dim.astype(np.uint8)).resize(mask.size)
            self.rgb.paste((38, 26, 40), corner, dim)
        reach = float(np.clip(0.11 * np.ptp(points, axis=0).min(), 0.7, 8))
        slope_y, slope_x = np.gradient(blur(inside, reach))
        lx, ly, strength = self.light  # a rim that faces the light is brighter
        shade = 1 - relief * strength * 1.3 * reach * (slope_x * lx + slope_y * ly)
        shade = np.asarray(Image.fromarray(shade.astype(np.float32)).resize((2 * w, 2 * h)))
        if callable(paint):  # at twice the final size: fine enough for cloth
            y, x = np.mgrid[:2 * h, :2 * w].astype(np.float32) / 2
            paint = paint(x + low[0], y + low[1])
        tile = np.clip(np.asarray(paint, np.float32) * shade[..., None], 0, 255).astype(np.uint8)
        self.rgb.paste(Image.fromarray(tile).resize(mask.size), corner, mask)
        self.cover.paste(255, corner, mask)

    def line(self, points, colour, width):
        points = (self.pixels(points) * self.scale).ravel().tolist()
        for pen, ink in zip(self.pens, (tuple(int(v) for v in colour), 255)):
            pen.line(points, fill=ink, width=max(1, round(width * self.unit * self.scale)))

    def strands(self, rng, roots, angles, lengths, colour, curl=0.0, fall=0.0):
        """The finest strokes, one from each root (N, 2), that bend, curl and fall as they go."""
        steps = 14 if curl > 0.5 else 7
        s, count = np.linspace(0, 1, steps), len(roots)
        turn = angles[:, None] + rng.normal(0, 0.45, (count, 1)) * s
        turn = turn + curl * np.sin(9 * s + rng.uniform(0, 6.3, (count, 1)))
        step = np.stack([np.cos(turn), np.sin(turn) + fall * s], -1)
        curves = roots[:, None] + np.cumsum(step * (lengths / steps)[:, None, None], 1)
        curves = (self.pixels(curves) * self.scale).reshape(count, -1).tolist()
        tones = np.clip(np.outer(rng.normal(1.0, 0.2, count), colour), 0, 255).astype(int).tolist()
        for curve, tone in zip(curves, tones):
            self.pens[0].line(curve, fill=tuple(tone))
            self.pens[1].line(curve, fill=255)

    def hair(self, rng, outline, colour, length, curl=0.0, lean=0.5, fall=0.0, tips=1.0, dense=7):
        """A mass with strands within it and a fringe of strands around it.

        Strands leave along the outward normal (lean 0) or down along the outline (lean 1), about
        `length` long, `dense` to a pixel of outline; those that point down, or in to x = 0 (the
        face), are `tips` as long.
        """
        outline = rounded(outline)
        if area(outline) < 0:
            outline = outline[::-1]  # one sense of rotation, so that normals point outward
        self.shape(outline, colour, shadow=0.15)
        edge = np.roll(outline, -1, 0) - outline
        span = np.linalg.norm(edge, axis=1) + 1e-6
        count = int(1.6 * span.sum() * self.unit * dense * self.scale / SCALE)
        pick = rng.choice(len(span), count, p=span / span.sum())
        roots = outline[pick] + edge[pick] * rng.random((count, 1))
        tangent = edge[pick] / span[pick, None]
        normal = tangent[:, ::-1] * (1, -1)
        tangent *= np.where(tangent[:, 1:] < 0, -1, 1)
        way = (1 - lean) * normal + lean * tangent
        angles = np.arctan2(way[:, 1], way[:, 0]) + rng.normal(0, 0.3, count)
        lengths = np.minimum(rng.exponential(1.7 * length, count), 4 * length)
        lengths *= np.where((normal[:, 1] > 0.4) | (way[:, 0] * roots[:, 0] < 0), tips, 1.0)
        few, centre = count // 3, outline.mean(0)  # some grow from further in: the mass's grain
        within = centre + (roots[:few] - centre) * rng.uniform(0.3, 0.93, (few, 1))
        self.strands(rng, within, angles[:few], lengths[:few], colour, curl, fall)
        self.strands(rng, roots, angles, lengths, colour, curl, fall)

    def average(self):
        """(premultiplied colour (H, W, 3), coverage (H, W)) at the final size, in 0..1."""
        painted = Image.composite(self.rgb, Image.new("RGB", self.rgb.size), self.cover)
        return tuple(np.asarray(image.reduce(self.scale), np.float32) / 255
                     for image in (painted, self.cover))

    def paste(self, other, left, top, recolour=None):
        """Put another canvas on this one, its brightness mapped between two colours."""
        rgb = other.rgb
        if recolour is not None:
            grey = np.asarray(rgb.convert("L"), np.float32)[..., None] / 255
            dark, pale = (np.array(colour, np.float32) for colour in recolour)
            rgb = Image.fromarray((dark + (pale - dark) * grey).astype(np.uint8))
        corner = (self.pixels((left, top)) * self.scale).astype(int).tolist()
        self.rgb.paste(rgb, tuple(corner), other.cover)


def cloth(rng, palette):
    """A textile: a function of pixel positions x, y (H, W) that gives colours (H, W, 3)."""
    first, second = (np.array(palette[i], np.float32) for i in rng.permutation(6)[:2])
    weave = pick(rng, WEAVES)
    pitch, slant = rng.uniform(4, 10), rng.choice([0.0, np.pi / 2, 0.8])
    second = second if rng.random() < 0.5 else first * 0.45 + np.array(palette[1]) * 0.55

    def paint(x, y):
        u = (x * np.cos(slant) + y * np.sin(slant)) * 2 * np.pi / pitch
        v = (y * np.cos(slant) - x * np.sin(slant)) * 2 * np.pi / pitch
        u = u + 0.5 * np.sin(y / 11)  # cloth hangs in waves
        mix = weave(u, v)[..., None]
        folds = 1 + 0.05 * np.sin(x / 7 + 1.5 * np.sin(y / 13)) * np.cos(y / 19)
        return (first * (1 - mix) + second * mix) * folds[..., None]
    return paint


# ------------------------------------------------------------------------------------------ people

def place(rng, size):
    """Where a person stands in a picture: x and y of the head's centre, and its height, in px."""
    w, h = size
    unit = rng.uniform(0.30, 0.44) * min(h, 1.1 * w)
    return w * rng.uniform(0.35, 0.65), h * rng.uniform(0.06, 0.13) + 0.70 * unit, unit


def person(rng, size, light, spot, style=None, scale=SCALE):
    """One person on a clear Canvas at `spot` (see `place`), in units of the head's height."""
    clear = Canvas(size, light, scale)
    c = clear.frame(*spot, side=rng.choice([-1, 1]))
    tilt, turn, broad = rng.normal(0, 0.10), rng.uniform(-0.08, 0.08), rng.uniform(0.82, 1.02)
    palette, tone = pick(rng, PALETTES), rng.integers(6)
    skin = np.array(SKINS[tone]) * rng.uniform(0.95, 1.03)
    colour = np.array(HAIRS[rng.integers(8 if tone < 3 else 4)], float)
    style = style or pick(rng, STYLES)
    feminine = style in ("long", "bun", "ponytail", "wavy") or rng.random() < 0.3
    top, outer = cloth(rng, palette), cloth(rng, palette)
    jacket, fluffy = rng.random() < 0.35, rng.random() < 0.25
    fluff = np.array(palette[rng.integers(6)], float)

    def head(points):  # turned about the top of the neck
        turned = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
        return (np.asarray(points, float) - (0, 0.45)) @ turned + (0, 0.45)

    # Hair behind the body
    reach = rng.uniform(0.75, 1.35)  # how far down long hair comes
    curl = {"curly": 1.5, "afro": 1.9, "wavy": 0.9}.get(style, 0.15)
    look = {"curl": curl, "fall": 0.2 if style == "afro" else 0.7}
    if style in ("long", "wavy", "curly"):
        wide = 0.50 if style == "long" else 0.60
        sides = [(wide + rng.normal(0, 0.025), y) for y in np.arange(0.0, reach, 0.17)]
        c.hair(rng, head([(0, -0.60), (0.36, -0.46), *sides, (0.25, reach + 0.12),
                          (-0.25, reach + 0.08), *[(-a, b) for a, b in sides[::-1]],
                          (-0.36, -0.46)]), colour * 0.82, 0.12, lean=0.6, **look)
    elif style == "afro":
        ring = oval(0, -0.16, 0.58, 0.56) * (1 + rng.normal(0, 0.02, (24, 1)))
        c.hair(rng, head(ring), colour * 0.9, 0.10, lean=0.0, **look)
    elif style == "ponytail":
        c.hair(rng, head(limb([(0.2, -0.4), (0.62, -0.35), (0.68, 0.2), (0.60, reach)],
                              (0.3, 0.2))), colour * 0.85, 0.09, lean=0.6, **look)
    elif style == "bun":
        c.hair(rng, head(oval(0.05, -0.68, 0.21, 0.18)), colour * 0.9, 0.06, lean=0.6, curl=0.6)

    # Body: trousers or skirt, torso, neck
    lower = palette[rng.choice([2, 5])]
    if feminine and rng.random() < 0.6:
        c.shape(rounded([(-0.6, 2.2), (0.6, 2.2), (1.0, 4.2), (1.0, 7), (-1.0, 7), (-1.0, 4.2)]),
                lower)
    else:
        for s in (-1, 1):
            c.shape(limb([(s * 0.34, 2.2), (s * 0.37, 4), (s * 0.4, 7)], (0.74, 0.56)), lower)
    b, waist = broad, 0.60 if feminine else 0.72
    c.shape(rounded([(-0.2, 0.66), (-0.52, 0.78), (-b, 0.95), (-b + 0.04, 1.35), (-waist, 2.0),
                     (-0.76, 2.7), (0.76, 2.7), (waist, 2.0), (b - 0.04, 1.35), (b, 0.95),
                     (0.52, 0.78), (0.2, 0.66)]), top, shadow=0.2)
    dip = rng.uniform(0.8, 1.12)  # neckline
    c.shape(rounded([(-0.17, 0.3), (0.17, 0.3), (0.19, 0.64), (0.32, 0.74), (0.12, dip),
                     (-0.12, dip), (-0.32, 0.74), (-0.19, 0.64)]), skin * 0.95)
    if jacket:
        for s in (-1, 1):
            panel = np.array([(0.24, 0.62), (0.55, 0.76), (b, 0.95), (b, 1.4), (waist + 0.05, 2.0),
                              (0.82, 2.8), (0.28, 2.8), (0.22, 1.6), (0.34, 1.1)])
            c.shape(rounded(panel * (s, 1)), outer, shadow=0.3)
    if fluffy:
        collar = limb([(-0.55, 0.80), (-0.32, 1.02), (0, 1.10), (0.32, 1.02), (0.55, 0.80)],
                      (0.26, 0.26))
        c.hair(rng, collar, fluff, 0.06, lean=0.0, curl=0.8)

    # Arms: elbow and wrist of each, the crossed pair in front
    poses = {"down": ((1.02, 1.95), (0.98, 2.9)), "hip": ((1.42, 1.8), (0.74, 2.35)),
             "raised": ((1.36, 1.35), (1.28, 0.45)), "crossed": ((1.05, 1.9), (-0.3, 1.72))}
    pair = [str(rng.choice(list(poses), p=[0.45, 0.25, 0.18, 0.12])) for _ in range(2)]
    pair = ["crossed"] * 2 if "crossed" in pair else pair
    short_sleeves = rng.random() < 0.35 and not jacket
    sleeve = outer if jacket else top
    for s, pose in zip((-1, 1), pair):
        elbow, wrist = (np.array(p) * (s, 1) for p in poses[pose])
        shoulder, lift = np.array((s * (b - 0.13), 1.10)), 0.12 * (s > 0) * (pose == "crossed")
        wrist = wrist + rng.normal(0, 0.05, 2) - (0, lift)
        hand = wrist + (wrist - elbow) / np.linalg.norm(wrist - elbow) * 0.12
        c.shape(rounded(oval(*hand, 0.12, 0.12)), skin, shadow=0.2)
        if pose == "raised":
            for finger in np.linspace(-0.6, 0.6, 4):
                tip = hand + 0.25 * np.array((np.sin(finger), -np.cos(finger)))
                c.shape(limb([hand, tip], (0.07, 0.055)), skin)
        if short_sleeves:
            c.shape(limb([shoulder, elbow, wrist], (0.22, 0.15)), skin, shadow=0.25)
            c.shape(limb([shoulder, 0.45 * shoulder + 0.55 * elbow], (0.36, 0.32)), sleeve)
        else:
            c.shape(limb([shoulder, elbow, wrist], (0.36, 0.21)), sleeve, shadow=0.3)

    # Head
    for s in (-1, 1):
        c.shape(head(oval(s * 0.37, 0.06, 0.06, 0.09)), skin * 0.92)
    jaw = 0.25 if feminine else 0.30
    c.shape(rounded(head([(-0.25, -0.5), (0.25, -0.5), (0.40, -0.2), (0.38, 0.15), (jaw, 0.4),
                          (0.1, 0.52), (-0.1, 0.52), (-jaw, 0.4), (-0.38, 0.15), (-0.40, -0.2)])),
            skin, shadow=0.45)
    dark = colour * 0.6 if style != "bald" else skin * 0.35
    for s in (-1, 1):
        x = turn + 0.155 * s
        c.shape(head(oval(x * 1.15, 0.2, 0.075, 0.05)), skin * (1.02, 0.88, 0.86), relief=0)
        c.shape(head(oval(x, 0.045, 0.062, 0.036)), (250, 247, 243), relief=0)
        c.shape(head(oval(x + turn * 0.2, 0.045, 0.033, 0.036)), (52, 38, 36), relief=0)
        c.line(head(oval(x, 0.05, 0.068, 0.045, 195, 345, 8)), (40, 28, 30), 0.012)
        c.line(head(oval(x, -0.02, 0.095, 0.06, 215, 325, 8)), dark, 0.03)
    c.line(head([(turn * 1.4, 0.05), (turn * 1.5 + 0.035, 0.19), (turn * 1.4 - 0.02, 0.205)]),
           skin * 0.76, 0.018)
    if rng.random() < 0.4:
        c.shape(head(oval(turn, 0.29, 0.11, 0.09, 0, 180, 12)), (150, 52, 56), 0)
        c.shape(head(oval(turn, 0.300, 0.085, 0.018)), (250, 246, 240), 0)
    else:
        c.line(head(oval(turn, 0.25, 0.12, 0.085, 25, 155, 10)), skin * (0.68, 0.42, 0.42), 0.026)
    if not feminine and rng.random() < 0.45:
        beard = [(-0.37, 0.1), (-0.27, 0.23), (0, 0.21), (0.27, 0.23), (0.37, 0.1), (0.33, 0.42),
                 (0.12, 0.6), (-0.12, 0.6), (-0.33, 0.42)]
        c.hair(rng, head(beard), colour * 0.9, 0.05, curl=0.4, lean=0.75, dense=5)
        c.shape(head(oval(turn, 0.33, 0.09, 0.03)), (176, 92, 88), relief=0)
    if rng.random() < 0.25:
        for s in (-1, 1):
            c.line(head(oval(turn + 0.16 * s, 0.05, 0.115, 0.1)), (46, 38, 42), 0.022)
        c.line(head([(turn - 0.05, 0.04), (turn + 0.05, 0.04)]), (46, 38, 42), 0.022)

    # Hair in front: the cap with its parting, then locks over the shoulders
    part = rng.uniform(-0.15, 0.15)
    if style != "bald":
        low = {"afro": 0.02, "curly": 0.06}.get(style, 0.0)
        cap = [(-0.42, 0.08), (-0.45, -0.2), (-0.3, -0.52), (0, -0.64), (0.3, -0.52), (0.45, -0.2),
               (0.42, 0.08), (0.36, -0.12), (0.24, -0.27 + low), (part, -0.36 + low),
               (-0.24, -0.27 + low), (-0.36, -0.12)]
        length = {"short": 0.075, "bun": 0.04, "ponytail": 0.04, "long": 0.05}.get(style, 0.08)
        c.hair(rng, head(cap), colour, length, tips=0.3, lean=0.5 if curl < 0.5 else 0.1, **look)
        loose = oval(0, -0.1, 0.42, 0.46, 170, 370, 240)  # single strands that fly away
        ways = np.radians(np.linspace(170, 370, 240)) + rng.normal(0, 0.6, 240)
        c.strands(rng, head(loose), ways, rng.uniform(0.1, 0.4, 240), colour, curl, fall=0.5)
    if style in ("long", "wavy", "curly"):
        for s in (-1, 1):
            lock = [(s * 0.41, -0.12), (s * 0.47, 0.4), (s * rng.uniform(0.42, 0.56), reach)]
            c.hair(rng, head(limb(lock, (0.13, 0.22))), colour, 0.11, lean=0.75, tips=0.5,
                   **look)
            away = rng.normal(1.57 - 0.7 * s, 0.35, 120)  # loose ones, before the scene behind
            roots = np.stack([np.full(120, s * 0.5), rng.uniform(-0.2, 0.9 * reach, 120)], 1)
            c.strands(rng, head(roots), away, rng.uniform(0.2, 0.6, 120), colour, curl, fall=0.5)
    if rng.random() < 0.14 and style != "afro":
        felt = np.array(palette[rng.integers(2, 6)], float)
        c.shape(rounded(head([(-0.45, -0.2), (-0.44, -0.5), (-0.25, -0.74), (0.25, -0.74),
                              (0.44, -0.5), (0.45, -0.2)])), felt, shadow=0.3)
        c.shape(rounded(head(rect(-0.47, -0.36, 0.47, -0.2))), felt * 0.85)
        c.hair(rng, head(oval(0, -0.8, 0.13, 0.12)), felt * 1.1, 0.04, lean=0)
    return clear


# ------------------------------------------------------------------------------------------ scenes
# Things in a scene, each in a frame that stands at (0, 0) with about a head's height for its unit.

def poster(c, rng, palette):
    """A framed picture on the wall: a flat two-colour portrait, or a sun over a hill."""
    c.shape(rect(-0.82, -4.07, 0.82, -2.13), palette[rng.integers(2, 6)], 0.4, 0.4)
    c.shape(rect(-0.75, -4.0, 0.75, -2.2), palette[1], 0)
    if rng.random() < 0.75:
        inks = (palette[5], palette[rng.integers(2, 5)]), ((70, 44, 40), (250, 214, 180))
        size = int(1.5 * c.unit), int(1.8 * c.unit)
        spot = 0.75 * c.unit, 0.9 * c.unit, 0.75 * c.unit
        c.paste(person(rng, size, c.light, spot, scale=c.scale), -0.75, -4.0, pick(rng, inks))
    else:
        c.shape(oval(0, -3.3, 0.45, 0.45), palette[3], 0)
        c.shape(rect(-0.75, -2.9, 0.75, -2.2), palette[2], 0)


def window(c, rng, palette):
    c.shape(rect(-0.96, -4.26, 0.96, -1.64), (248, 245, 238), shadow=0.3)
    c.shape(rect(-0.9, -4.2, 0.9, -1.7), (212, 228, 236), 0)
    for bar in ([(0, -4.2), (0, -1.7)], [(-0.9, -2.9), (0.9, -2.9)]):
        c.line(bar, (248, 245, 238), 0.06)
    fabric = cloth(rng, palette)
    for s in (-1, 1):
        curtain = np.multiply([(0.5, -4.4), (1.3, -4.4), (1.35, -0.2), (0.75, -0.2)], (s, 1))
        c.shape(rounded(curtain), fabric, shadow=0.3)


def shelf(c, rng, palette):
    """Two boards of books, and a vase on each."""
    for board in (-2.2, -3.4):
        for x in np.arange(-1.0, 0.6, 0.2)[rng.random(8) < 0.8]:
            tall = rng.uniform(0.5, 0.85)
            c.shape(rect(x, board - tall, x + 0.18, board), palette[rng.integers(1, 6)])
        c.shape(rect(-1.1, board, 1.1, board + 0.08), (150, 108, 76), shadow=0.3)
        c.shape(rounded(rect(0.72, board - 0.5, 1.05, board)), pick(rng, SKINS))


def bust(c, rng, palette):
    """A head and shoulders of stone, wood or bronze on a pedestal."""
    style = pick(rng, ["bald", "short", "bun", "afro", "long"])
    stuff = pick(rng, [((84, 78, 80), (240, 234, 224)), ((110, 72, 52), (246, 206, 170)),
                       ((58, 66, 62), (168, 186, 170))])
    size, spot = (int(2.0 * c.unit), int(1.75 * c.unit)), (c.unit, 0.8 * c.unit, 0.8 * c.unit)
    c.shape(rect(-0.7, -1.4, 0.7, 0.3), palette[1], shadow=0.3)
    c.paste(person(rng, size, c.light, spot, style, c.scale), -1.0, -3.12, stuff)


def garment(c, rng, palette):
    """A coat on a hook at (0, 0), sometimes with a fur collar."""
    fabric = cloth(rng, palette)
    for s in (-1, 1):
        c.shape(limb([(s * 0.45, 0.3), (s * 0.72, 1.0), (s * 0.66, 1.9)], (0.3, 0.26)), fabric,
                shadow=0.3)
    c.shape(rounded([(-0.1, 0), (0.1, 0), (0.65, 0.3), (0.55, 2.3), (-0.55, 2.3), (-0.65, 0.3)]),
            fabric, shadow=0.3)
    if rng.random() < 0.5:
        c.hair(rng, oval(0, 0.2, 0.35, 0.14), np.array(pick(rng, HAIRS)), 0.08, lean=0)


def coats(c, rng, palette):
    """A coat rack with a coat and a woolly hat."""
    c.shape(limb([(0, 0), (0, -2.0), (0, -3.9)], (0.1, 0.08)), (112, 78, 56), shadow=0.3)
    garment(c.frame(*c.pixels((0, -3.3)), c.unit), rng, palette)
    c.shape(rounded(rect(-0.4, -4.2, 0.4, -3.6)), palette[3])
    c.hair(rng, oval(0, -4.2, 0.14, 0.13), np.array(palette[4]), 0.05, lean=0)


def laundry(c, rng, palette):
    c.line([(-9, -3.5), (0, -3.05), (9, -3.5)], (96, 88, 86), 0.03)
    for x in (-0.8, 0.8):
        garment(c.frame(*c.pixels((x, -3.1)), 0.9 * c.unit), rng, palette)


def mop(c, rng, palette):
    """A mop that stands on its stick."""
    c.shape(limb([(0, 0), (0.05, -2.0), (0.1, -2.6)], (0.08, 0.08)), (176, 132, 90), shadow=0.3)
    yarn = np.array(pick(rng, HAIRS))
    c.hair(rng, oval(0, -2.7, 0.42, 0.55), yarn, 0.16, curl=0.4, lean=0.7, fall=0.8)


def plant(c, rng, palette):
    """A pot of broad leaves or of grass."""
    green = np.array(pick(rng, [(70, 118, 78), (96, 140, 84), (58, 96, 84)]))
    grassy = rng.random() < 0.5
    for a in rng.uniform(-2.7, -0.45, 0 if grassy else 13):
        x, y = np.array((np.cos(a), np.sin(a))) * rng.uniform(1.0, 1.9)
        c.shape(limb([(0, -0.7), (0.4 * x, 0.8 * y - 0.7), (x, y - 0.7)], (0.10, 0.24)),
                green * rng.uniform(0.8, 1.2), shadow=0.15)
    count = 500 if grassy else 60
    roots = np.stack([rng.normal(0, 0.15, count), np.full(count, -0.7)], 1)
    c.strands(rng, roots, rng.normal(-1.57, 0.4, count), rng.uniform(0.8, 2.6, count), green,
              curl=0.1, fall=1.2)
    c.shape(rounded([(-0.45, -0.7), (0.45, -0.7), (0.32, 0), (-0.32, 0)]),
            palette[rng.integers(2, 6)], shadow=0.3)


def teddy(c, rng, palette):
    """A big furry bear on a stool."""
    fur = np.array(HAIRS[rng.integers(3, 7)])
    c.shape(rect(-0.6, -0.8, 0.6, 0.1), palette[2], shadow=0.3)
    for x, y, rx, ry in ((0, -1.3, 0.55, 0.6), (-0.5, -1.4, 0.2, 0.4), (0.5, -1.4, 0.2, 0.4),
                         (-0.33, -2.55, 0.17, 0.17), (0.33, -2.55, 0.17, 0.17),
                         (0, -2.2, 0.45, 0.42)):
        c.hair(rng, oval(x, y, rx, ry), fur, 0.07, lean=0.2)
    c.shape(oval(0, -2.07, 0.2, 0.15), np.minimum(fur * 1.35, 255))
    for x, y in ((-0.17, -2.3), (0.17, -2.3), (0, -2.12)):
        c.shape(oval(x, y, 0.05, 0.05), (30, 24, 26))


def sofa(c, rng, palette):
    fabric = cloth(rng, palette)
    for box in ((-1.8, -1.9, 1.8, 0), (-1.9, -0.8, 1.9, 0.3), (-2.1, -1.2, -1.5, 0.3),
                (1.5, -1.2, 2.1, 0.3)):
        c.shape(rounded(rect(*box)), fabric, shadow=0.35)
    c.shape(rounded(rect(-1.3, -1.5, -0.4, -0.7)), cloth(rng, palette), shadow=0.3)


def lamp(c, rng, palette):
    c.shape(limb([(0, 0), (0, -1.0), (0, -3.0)], (0.08, 0.08)), (86, 70, 62), shadow=0.3)
    c.shape(oval(0, 0, 0.4, 0.1), (86, 70, 62))
    c.shape([(-0.35, -3.5), (0.35, -3.5), (0.6, -2.7), (-0.6, -2.7)], (252, 232, 186), 0.5, 0.25)


def balloons(c, rng, palette):
    """Three balloons, most of them in colours of skin."""
    for x in (-0.6, 0, 0.6):
        y = -3.3 - 0.5 * rng.random()
        colour = SKINS[rng.integers(5)] if rng.random() < 0.6 else palette[rng.integers(2, 5)]
        c.line([(x, y), (0.05, -1.6), (0, 0)], (120, 108, 104), 0.01)
        c.shape(oval(x, y, 0.42, 0.52), colour, 1.4, 0.2)
        c.shape(oval(x - 0.14, y - 0.2, 0.07, 0.1), (255, 248, 240), 0)


def tree(c, rng, palette):
    bark = np.array(SKINS[rng.integers(3, 6)]) * 0.9
    for x in (-0.5, 0, 0.5):
        c.shape(limb([(0, 0), (0, -1.6), (x, -3.0)], (0.4, 0.14)), bark)
    leaves = np.array(pick(rng, [(88, 132, 84), (122, 150, 82), (178, 128, 70), (74, 112, 92)]))
    for x, y, r in ((-0.8, -2.8, 0.8), (0.8, -2.9, 0.8), (0, -3.5, 1.0), (0.1, -2.7, 0.7)):
        ring = oval(x, y, r, 0.85 * r) + rng.normal(0, 0.05, (24, 2))
        c.hair(rng, ring, leaves * rng.uniform(0.85, 1.1), 0.09, curl=1.5, lean=0.1, dense=5)


def bench(c, rng, palette):
    for y in (-1.5, -1.15, -0.7, -0.55):
        c.shape(rect(-1.6, y, 1.6, y + 0.22), (158, 112, 78), shadow=0.25)
    for x in (-1.3, 1.3):
        c.shape(rect(x - 0.06, -1.6, x + 0.06, 0.2), (96, 68, 48))


def house(c, rng, palette):
    c.shape(rect(-1.4, -2.2, 1.4, 0), palette[1], 0.4)
    c.shape([(-1.7, -2.2), (0, -3.4), (1.7, -2.2)], palette[3], 0.4)
    for x in (-0.9, 0.5):
        c.shape(rect(x, -1.6, x + 0.4, -1.0), palette[5])


INDOORS = [poster, poster, shelf, window], [bust, coats, mop, plant, teddy, sofa, lamp, balloons]
OUTDOORS = [laundry, tree, tree, house], [bust, balloons, bench, plant, tree, mop]


def room(c, rng, palette, ground):
    """Papered wall down to y = `ground`, skirting and floorboards."""
    (w, h), paper, wall = c.size, cloth(rng, palette), np.array(palette[0])
    busy = rng.choice([0.0, 0.25])  # how much of the wallpaper's pattern shows
    wood = np.array(pick(rng, [(196, 152, 112), (160, 118, 88), (214, 186, 150)]))

    def boards(x, y):  # seams that meet at a vanishing point
        seam = np.sin((x - w / 2) * 40 / (y - ground + 30)) > 0.9
        return wood * (1 - 0.08 * seam[..., None])

    c.shape(rect(-9, -9, w + 9, ground), lambda x, y: wall + busy * (paper(x, y) - wall), 0)
    c.shape(rect(-9, ground, w + 9, h + 9), boards, 0)
    c.shape(rect(-9, ground - 4, w + 9, ground), palette[1], 0.5)


def garden(c, rng, palette, ground):
    """Sky, two lines of hills, and a lawn from y = `ground` with its blades of grass."""
    w, h = c.size
    sky = np.array(pick(rng, [(176, 208, 228), (236, 214, 190), (200, 214, 218)]))
    green = np.array((132, 162, 106)) * rng.uniform(0.85, 1.1)
    c.shape(rect(-9, -9, w + 9, h), lambda x, y: sky + (250 - sky) * (y / h)[..., None] * 0.6, 0)
    for far in (0.7, 0.4):
        tops = ground - far * h * rng.uniform(0.08, 0.4, 6)
        crest = zip(np.linspace(-20, w + 20, 6), tops)
        c.shape(rounded([(-60, h), *crest, (w + 60, h)]), green * (1 - far) + sky * 0.85 * far, 0.3)
    c.shape(rect(-9, ground, w + 9, h + 9), green, 0)
    roots = np.stack([rng.uniform(0, w, 900), rng.uniform(ground, h + 9, 900)], 1)
    c.strands(rng, roots, rng.normal(-1.57, 0.3, 900), rng.uniform(3, 12, 900), green * 0.95)


def scene(rng, size, light, spot):
    """A room or a garden on a Canvas, a far and a near thing beside the person at `spot`."""
    c, (x, _, unit), h = Canvas(size, light, scale=2), spot, size[1]
    palette, inside = pick(rng, PALETTES), rng.random() < 0.6
    ground = h * rng.uniform(0.74, 0.86)
    (room if inside else garden)(c, rng, palette, ground)
    for near, things in enumerate(INDOORS if inside else OUTDOORS):
        side, which = rng.choice([-1, 1]), rng.choice(len(things), 1)[0]
        at = x + side * rng.uniform(1.2, 2.2) * unit
        base = ground + near * rng.uniform(0.05, 0.6) * (h - ground)
        things[which](c.frame(at, base, unit * rng.uniform(0.45, 0.65)), rng, palette)
    return c


def backdrop(rng, size):
    """A smooth background (H, W, 3) in 0..1 with nothing in it: gradient, bokeh, sky or studio."""
    w, h = size
    y, x = np.mgrid[:h, :w].astype(np.float32) / h
    palette = np.array(pick(rng, PALETTES)) / 255
    first, second, third = (palette[i] for i in rng.permutation(6)[:3])
    a = rng.uniform(0, 6.3)
    mix = np.clip(0.5 + 0.7 * ((x - 0.5) * np.cos(a) + (y - 0.5) * np.sin(a)), 0, 1)[..., None]
    picture = first * (1 - mix) + second * mix
    kind = rng.integers(4)
    if kind == 1:  # lights out of focus
        for _ in range(26):
            far = np.hypot(x - rng.uniform(0, w / h), y - rng.uniform(0, 1))
            disc = (far < rng.uniform(0.03, 0.12))[..., None]
            picture = picture + (1 - picture) * 0.35 * rng.random() * disc
        picture = blur(picture, 2.0)
    elif kind == 2:  # clouds: smooth noise of two sizes
        cloud = blur(rng.normal(size=(h, w)), 9) * 9 + blur(rng.normal(size=(h, w)), 22) * 22
        picture = picture + (0.97 - picture) * np.clip(0.4 + 0.5 * cloud, 0, 0.9)[..., None]
    elif kind == 3:  # a studio's paper roll under a spot
        spot = np.exp(-((x - rng.uniform(0.3, 0.7)) ** 2 + (y - 0.4) ** 2) / 0.15)[..., None]
        picture = picture * 0.6 + third * 0.4 * spot
    return np.clip(picture, 0, 1)


# ------------------------------------------------------------------------------------ annotations

def contours(inside):
    """Closed outlines [(N, 2) corner positions x, y] of a bool (H, W); holes run the other way."""
    padded, after = np.pad(inside, 1), {}
    for shift, a, b in (((1, 0), (0, 0), (0, 1)), ((0, -1), (0, 1), (1, 1)),
                        ((-1, 0), (1, 1), (1, 0)), ((0, 1), (1, 0), (0, 0))):
        for y, x in np.argwhere(padded & ~np.roll(padded, shift, (0, 1))).tolist():
            after.setdefault((x + a[1] - 1, y + a[0] - 1), []).append((x + b[1] - 1, y + b[0] - 1))
    loops = []
    while after:
        loop = [next(iter(after))]
        while loop[-1] in after:
            ways = after[loop[-1]]
            loop.append(ways.pop())
            if not ways:
                del after[loop[-2]]
        loops.append(np.array(loop[:-1], float))
    return loops


def coarse_mask(rng, alpha):
    """What a hurried annotator clicks, (H, W) bool, for a matte (H, W) in 0..1.

    The outline follows the solid person, without the fringe of hair, in straight segments of 10 to
    16 px between clicks that miss by about a pixel; narrow gaps are closed.
    """
    height, width = alpha.shape
    solid = blur((blur(alpha, 1) > 0.85).astype(np.float32), 2) > 0.5
    mask = Image.new("1", (width, height))
    for loop in sorted(contours(solid), key=len, reverse=True):
        filled = area(loop) > 0
        if abs(area(loop)) < (60 if filled else 150):
            continue
        bend = np.linalg.norm(np.roll(loop, 5, 0) + np.roll(loop, -5, 0) - 2 * loop, axis=1)
        at, clicks = 0, []
        while at < len(loop) - 5:
            clicks.append(at)
            reach = np.arange(at + 10, at + 17)  # the next click: where the outline bends most
            at = int(reach[np.argmax(bend[reach % len(loop)])])
        points = loop[clicks] + rng.normal(0, 0.8, (len(clicks), 2))
        edge = (loop[clicks] <= 0) | (loop[clicks] >= (width, height))  # cut by the picture's edge
        points = np.where(edge, loop[clicks], points) - 0.5
        ImageDraw.Draw(mask).polygon([tuple(p) for p in points], fill=int(filled))
    return np.asarray(mask)


# ------------------------------------------------------------------------------------ photographs

def cutout(rng, size, style):
    """A studio shot: straight colour (H, W, 3), continued beyond the outline, and matte (H, W)."""
    colour, alpha = person(rng, size, (0.0, -1.0, 0.35), place(rng, size), style).average()
    sigma = rng.uniform(0.35, 0.5) if rng.random() < 0.75 else rng.uniform(0.7, 1.1)
    colour, alpha = blur(colour, sigma), blur(alpha, sigma)
    total, weight = colour.copy(), alpha[..., None].copy()
    for reach in (1, 2, 4, 8, 16, 32):  # a pixel with hardly a colour takes its neighbours'
        missing = np.clip(1 - 8 * weight, 0, 1)
        total += missing * blur(colour, reach)
        weight += missing * blur(alpha, reach)[..., None]
    return total / np.maximum(weight, 1e-6), alpha


def photograph(rng):
    """A natural picture (H, W, 3) and its matte (H, W), in 0..1: person and scene share a light."""
    size = pick(rng, SHAPES)
    w, h = size
    angle = rng.uniform(-2.7, -0.45)
    light = np.cos(angle), np.sin(angle), rng.uniform(0.5, 0.9)
    spot = place(rng, size)
    around, _ = scene(rng, size, light, spot).average()
    colour, alpha = person(rng, size, light, spot).average()
    sharp = rng.uniform(0.4, 0.6) if rng.random() < 0.75 else rng.uniform(0.7, 1.0)
    colour, alpha, around = blur(colour, sharp), blur(alpha, sharp), blur(around, sharp + 0.3)
    alpha8 = np.round(alpha * 255) / 255
    straight = colour / np.maximum(alpha, 1e-3)[..., None]
    aside = 9 + round(9 * light[0])  # the person's shadow falls away from the light
    shadow = np.pad(blur(alpha, 5), ((4, 0), (9, 9)), mode="edge")[:h, aside:aside + w]
    around = around * (1 - 0.3 * shadow[..., None])
    picture = alpha8[..., None] * straight + (1 - alpha8[..., None]) * around
    # The light of the place falls on both alike: tint, brightness, fall-off, vignette
    y, x = np.mgrid[-1:1:h * 1j, -1:1:w * 1j]
    falloff = 1 + 0.14 * (x * light[0] + y * light[1]) - 0.10 * (x ** 2 + y ** 2)
    tint = 1 + rng.normal(0, 1) * np.array((0.07, 0.01, -0.08))
    picture = picture * falloff[..., None] * tint * rng.uniform(0.85, 1.08)
    noise = rng.normal(0, rng.uniform(0.004, 0.014), picture.shape)
    return np.clip(picture + noise, 0, 1), alpha8


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    def save(name, index, picture):
        path = args.folder / name / f"{index:02d}.{'jpg' if picture.ndim == 3 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if picture.dtype != bool:
            picture = np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)
        Image.fromarray(picture).save(path, quality=86, optimize=True)

    for split, (part, count) in enumerate(COUNTS.items()):
        for index in range(count):
            rng = np.random.default_rng([args.seed, split, index])  # each person is drawn once
            if part == "foreground":
                colour, alpha = cutout(rng, SHAPES[0], STYLES[index % len(STYLES)])
                save("matte/foreground", index, colour)
                save("matte/alpha", index, alpha)
            elif part == "background":
                save("matte/background", index, backdrop(rng, (240, 240)))
            else:
                picture, alpha = photograph(rng)
                save(f"{part}/image", index, picture)
                save(f"{part}/alpha", index, alpha)
                if part == "segmentation":
                    save("segmentation/mask", index, coarse_mask(rng, alpha))


if __name__ == "__main__":
    main()
